"""Guidance through any head by autograd: the general case, for heads that do not end in a linear classifier."""

from collections.abc import Callable

import torch
from torch import Tensor


class HeadLossGuidance:
    r""":math:`G = -\nabla_x L_{head}(x)`, with the loss of the frozen head as the negative log-likelihood.

    One autograd pass through the head per sampling step, where the closed form of
    :class:`~dskd_mm.guidance.TeacherClassifier` needs none. The parameters of the head get no gradient.

    Args:
        head_loss (Callable[[Tensor], Tensor]): Maps features to the *sum* over the batch of the losses
            (a scalar), so that each sample's gradient is its own; multiply a mean by its denominator.
    """

    def __init__(self, head_loss: Callable[[Tensor], Tensor]) -> None:
        self.head_loss = head_loss

    def __call__(self, feature: Tensor) -> Tensor:
        """Gradient of the log-likelihood at a feature.

        Args:
            feature (Tensor): Features of any shape (B, ...), detached or not.

        Returns:
            Tensor: Gradient of the same shape, outside of any graph.
        """
        with torch.enable_grad():
            leaf = feature.detach().requires_grad_()
            loss = self.head_loss(leaf)
            if loss.ndim != 0:
                raise ValueError(f'head_loss must return a scalar, but got a tensor of shape {tuple(loss.shape)}.')
            (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        return torch.zeros_like(feature) if gradient is None else -gradient
