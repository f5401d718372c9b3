"""A loss weighed by what its gradient is beside another's."""

import torch
from torch import Tensor, nn

from dskd_mm.distributed import mean_over_ranks


class GradientShare(nn.Module):
    """Weighs a loss so that its gradient by a feature is a given share of a reference's.

    Running averages of both norms, over the joined batch of all processes, are part of the state dict.

    Args:
        share (float): The share.
        limit (float): The largest weight, for a loss that has nearly vanished. Defaults to 1000.
        momentum (float): Weight of a new batch in the averages. Defaults to 0.1.
    """

    norms: Tensor

    def __init__(self, share: float, limit: float = 1000.0, momentum: float = 0.1) -> None:
        super().__init__()
        self.share = share
        self.limit = limit
        self.momentum = momentum
        self.register_buffer('norms', torch.zeros(2))

    def forward(self, loss: Tensor, reference: Tensor, feature: Tensor, counts: Tensor | None = None) -> Tensor:
        """Return the weight of a loss, a scalar without a graph.

        Args:
            loss (Tensor): The loss, a scalar.
            reference (Tensor): The other one, a scalar.
            feature (Tensor): Where both gradients are taken. Without a graph, or in evaluation mode, nothing is followed.
            counts (Tensor, optional): 1 where the loss may have a gradient, else 0, broadcast to the feature: that of the
                reference is compared there alone. Defaults to None: everywhere.
        """
        if self.training and torch.is_grad_enabled() and feature.requires_grad:
            gradients = [torch.autograd.grad(value, feature, retain_graph=True)[0] for value in (reference, loss)]
            self._follow([gradient if counts is None else gradient * counts for gradient in gradients])
        reference_norm, own = self.norms.unbind()
        weight = self.share * reference_norm / own.clamp(min=1e-12)
        return torch.where(own > 0, weight, 0.0).clamp(max=self.limit)

    @torch.no_grad()
    def _follow(self, gradients: list[Tensor]) -> None:
        # Squares add up over processes; what they are divided by is the same for both.
        norms = mean_over_ranks(torch.stack([gradient.float().square().sum() for gradient in gradients])).sqrt()
        # One batch that is not finite must not stay in the averages for good.
        norms = torch.where(torch.isfinite(norms).all(), norms, self.norms)
        rate = torch.where(self.norms[1] == 0, 1.0, self.momentum)
        self.norms.lerp_(norms, rate)
