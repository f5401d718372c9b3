"""Feature distillation by locality-sensitive hashing."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.distributed import is_parallel, mean_over_ranks
from dskd_mm.registry import MODELS


@MODELS.register_module()
class LSHDistillLoss(nn.Module):
    r"""Pulls a feature's hash to that of a target feature (LSHFM: Wang, Ge & Wu, TPAMI 2021, section 3.2).

    With a frozen Gaussian W of shape (N, D) and a bias b: :math:`a = W f + b`, :math:`h = 1[W f^* + b > 0]`, and the loss is
    the binary cross-entropy of a against h, averaged over samples and bits. The hash mimics the target's *direction*;
    ``magnitude`` adds the mean squared error of LSHFM's full loss for its length. Everything is computed in float32, in which
    half-precision overflows of the original cannot occur.

    W comes from ``seed`` alone, so it is equal on all ranks and in every run; it is part of the state dict.

    Args:
        in_channels (int): Length D of the vectors.
        bits (int): Number of hash functions N. Defaults to 2048.
        std (float, optional): Standard deviation of W: how sharply a sign is asked for. None takes that of the teacher's
            classification weights, as LSHFM does, set through :meth:`set_std`. Defaults to None.
        bias (str): 'zero'; or 'mean' or 'median', minus that statistic of :math:`W f^*`, so that every bit splits the data in
            halves. LSHFM takes it over the training set; the target here moves with training, so it is a running average over
            batches. Defaults to 'mean'.
        momentum (float): Weight of a new batch in the running average. Defaults to 0.01.
        magnitude (float): Weight of the mean squared error. Defaults to 0.
        seed (int): Seed of W. Defaults to 0.

    Raises:
        ValueError: If ``bias`` is unknown.
    """

    projection: Tensor
    center: Tensor
    std: Tensor
    num_batches: Tensor

    def __init__(
        self,
        in_channels: int,
        bits: int = 2048,
        std: float | None = None,
        bias: str = 'mean',
        momentum: float = 0.01,
        magnitude: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if bias not in ('zero', 'mean', 'median'):
            raise ValueError(f"bias of LSHDistillLoss must be 'zero', 'mean' or 'median', but got {bias!r}.")
        self.bias = bias
        self.momentum = momentum
        self.magnitude = magnitude
        self.std_from_teacher = std is None
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer('projection', torch.randn(bits, in_channels, generator=generator))
        self.register_buffer('std', torch.tensor(1.0 if std is None else float(std)))
        self.register_buffer('center', torch.zeros(bits))
        self.register_buffer('num_batches', torch.zeros((), dtype=torch.long))

    def set_std(self, *classifier_weights: Tensor) -> None:
        """Take the standard deviation of the teacher's classification weights, unless ``std`` was given."""
        if self.std_from_teacher:
            self.std.copy_(torch.cat([weight.flatten() for weight in classifier_weights]).std())

    def forward(self, feature: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compare two sets of vectors.

        Args:
            feature (Tensor): Vectors to train, of shape (M, D). M may be 0: the loss is then a zero in the graph.
            target (Tensor): Vectors to mimic, of the same shape; without gradient through their signs.
            weight (Tensor, optional): Weight of each vector, (M, ), 0 to ignore it. Defaults to None: 1.

        Returns:
            tuple[Tensor, Tensor]: The loss and the share of bits that agree already, both scalars.
        """
        with torch.autocast(device_type=feature.device.type, enabled=False):
            feature, target = feature.float(), target.float()
            weight = feature.new_ones(len(feature)) if weight is None else weight.float()
            # Of the joined batch; without vectors of its own a process takes part, or the others would wait for it.
            share = weight / mean_over_ranks(weight.sum()).clamp(min=1)
            if feature.shape[0] == 0:
                if self.bias != 'zero':
                    self._update_center(feature.new_zeros(0, len(self.projection)), weight)
                return feature.sum() * 0, feature.new_zeros(())
            # One product for both sides: W is the expensive operand.
            projected = F.linear(torch.cat([feature, target]), self.projection) * self.std
            ours, theirs = projected.chunk(2)
            if self.bias != 'zero':
                self._update_center(theirs.detach(), weight)
                ours, theirs = ours - self.center, theirs - self.center
            code = (theirs > 0).float()
            # Of each vector, averaged over those that count.
            loss = F.binary_cross_entropy_with_logits(ours, code, reduction='none').mean(dim=1) @ share
            if self.magnitude:
                loss = loss + self.magnitude * (feature - target).square().mean(dim=1) @ share
            agreement = ((ours.detach() > 0) == (code > 0)).float().mean(dim=1) @ share
        return loss, agreement

    @torch.no_grad()
    def _update_center(self, projected: Tensor, weight: Tensor) -> None:
        if not self.training:
            return
        amount = weight.sum()[None]
        if len(projected) == 0:
            center = torch.zeros_like(self.center)
        elif self.bias == 'mean':
            center = weight @ projected / weight.sum().clamp(min=1e-12)
        else:
            # NaN marks what does not count: picking rows out would wait for the device.
            center = torch.where(weight[:, None] > 0, projected, torch.nan).nanmedian(dim=0).values
        center = torch.where(amount > 0, center, 0.0)
        if is_parallel():
            # Ranks must hash alike, so they share one centre, the joined batch's ('median': the mean of theirs); one without
            # vectors takes part, or the others would wait for it.
            shared = torch.cat([center * amount, amount])
            torch.distributed.all_reduce(shared)
            center, amount = shared[:-1] / shared[-1:].clamp(min=1e-12), shared[-1:]
        has_vectors = (amount > 0).float()
        # One batch that is not finite must not stay in the average for good.
        center = torch.where(torch.isfinite(center), center, self.center)
        self.num_batches += has_vectors[0].long()
        # A plain average of the first batches, an exponential one later: no start-up bias.
        rate = torch.clamp(1 / self.num_batches.clamp(min=1).float(), min=self.momentum)
        self.center.lerp_(center, rate * has_vectors)
