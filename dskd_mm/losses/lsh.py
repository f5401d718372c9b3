"""Feature distillation by locality-sensitive hashing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dskd_mm.distributed import joined_mean, mean_over_ranks
from dskd_mm.registry import MODELS

CHUNK = 2**22
"""Projections that are computed at a time."""


@MODELS.register_module()
class LSHDistillLoss(nn.Module):
    r"""Pulls a feature's hash to that of a target feature (LSHFM: Wang, Ge & Wu, TPAMI 2021, section 3.2).

    With a frozen Gaussian W of shape (N, D) and a bias b: :math:`a = W f + b`, :math:`h = 1[W f^* + b > 0]`, and the loss is
    the binary cross-entropy of a against h, averaged over samples and bits. The hash mimics the target's *direction*;
    ``magnitude`` adds the mean squared error of LSHFM's full loss for its length. Everything is computed in float32, in which
    half-precision overflows of the original cannot occur.

    With ``soft`` the loss says only what differs, in direction alone. Both vectors are centred and brought to unit length,
    the bits are probabilities :math:`h = \sigma(W u^*)`, and their entropy is taken away:
    :math:`\mathrm{softplus}(a) - \mathrm{softplus}(a^*) - h (a - a^*)`, the divergence of the bits. Its gradient is 0 where
    both vectors are equal, and never along the vector; that of hard bits goes on lengthening a vector whose bits all agree.

    ``project='null'`` hashes only what the teacher's classifier cannot see: both vectors are projected onto the null space of
    its weight first (for exclusive classes, of what tells these apart).

    W comes from ``seed`` alone, so it is equal on all ranks and in every run; it is part of the state dict.

    Args:
        in_channels (int): Length D of the vectors.
        bits (int): Number of hash functions N. Defaults to 2048.
        std (float, optional): Standard deviation of W: how sharply a sign is asked for. None takes that of the teacher's
            classification weights, as LSHFM does, set through :meth:`set_classifier`; 1 with ``soft``. Defaults to None.
        bias (str): 'zero'; or 'mean' or 'median', minus that statistic of :math:`W f^*`, so that every bit splits the data in
            halves; with ``soft`` it is that of the vectors themselves. LSHFM takes it over the training set; the target here
            moves with training, so it is a running average over batches. Defaults to 'mean'.
        momentum (float): Weight of a new batch in the running average. Defaults to 0.01.
        magnitude (float): Weight of the mean squared error. Defaults to 0.
        soft (bool): Whether bits are probabilities of vectors of unit length. Defaults to False.
        seed (int): Seed of W. Defaults to 0.
        project (str, optional): 'null' for what the classifier of :meth:`set_classifier` cannot see. Defaults to None: all.

    Raises:
        ValueError: If ``bias`` or ``project`` is unknown.
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
        soft: bool = False,
        project: str | None = None,
    ) -> None:
        super().__init__()
        if bias not in ('zero', 'mean', 'median'):
            raise ValueError(f"bias of LSHDistillLoss must be 'zero', 'mean' or 'median', but got {bias!r}.")
        if project not in (None, 'null'):
            raise ValueError(f"project of LSHDistillLoss must be 'null' or None, but got {project!r}.")
        self.project = project
        self.null: Tensor | None
        # There from the start: hooks that average a model pair its buffers one by one, before the teacher is loaded.
        self.register_buffer('null', torch.zeros(in_channels, in_channels) if project else None, persistent=False)
        self.bias = bias
        self.momentum = momentum
        self.magnitude = magnitude
        self.soft = soft
        self.std_from_teacher = std is None and not soft
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer('projection', torch.randn(bits, in_channels, generator=generator, device='cpu'))
        self.register_buffer('std', torch.tensor(1.0 if std is None else float(std)))
        self.register_buffer('center', torch.zeros(in_channels if soft else bits))
        self.register_buffer('num_batches', torch.zeros((), dtype=torch.long))

    def set_classifier(self, *weights: Tensor, sigmoid: bool = False) -> None:
        """Take from the teacher's classifiers what follows from them: ``std``, unless it was given, and the projection.

        Args:
            weights (Tensor): Of each classifier, (K, D) or (K, D, k, k).
            sigmoid (bool): Whether classes are independent. Defaults to False.

        Raises:
            ValueError: If the hash is of what classifiers cannot see, and they see all.
        """
        if self.std_from_teacher:
            self.std.copy_(torch.cat([weight.flatten() for weight in weights]).std())
        if self.null is not None:
            self.null.copy_(null_projection(weights, sigmoid))

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
            if self.null is not None:
                feature, target = feature @ self.null, target @ self.null
            weight = feature.new_ones(len(feature)) if weight is None else weight.float()
            # Of the joined batch; without vectors of its own a process takes part, or the others would wait for it.
            share = weight / mean_over_ranks(weight.sum()).clamp(min=1)
            if self.bias != 'zero' and self.training:
                # Directions are scaled when they are taken, projections before.
                self._update_center(target.detach() * (1.0 if self.soft else self.std), weight)
            if feature.shape[0] == 0:
                return feature.sum() * 0, feature.new_zeros(())
            # W's deviation is taken in by the vectors, the smaller operands.
            offset = torch.zeros_like(self.projection[:, 0]) if self.soft or self.bias == 'zero' else -self.center
            vectors = [(self._direction(v) if self.soft else v) * self.std for v in (feature, target)]
            loss, agreement = HashCrossEntropy.apply(*vectors, self.projection, offset, share, self.soft)
            if self.magnitude:
                loss = loss + self.magnitude * (feature - target).square().mean(dim=1) @ share
        return loss, agreement

    def _direction(self, vectors: Tensor) -> Tensor:
        """Return vectors (M, D) centred and of unit length; those that are far too short for a direction stay shorter."""
        vectors = vectors - self.center
        length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        return vectors / torch.maximum(length, 0.01 * length.detach().mean()).clamp(min=1e-6)

    @torch.no_grad()
    def _update_center(self, target: Tensor, weight: Tensor) -> None:
        amount = weight.sum()[None]
        if len(target) == 0:
            center = torch.zeros_like(self.center)
        elif self.bias == 'mean':
            # The mean of the projections is the projection of the mean.
            center = self._centred(weight @ target / amount.clamp(min=1e-12))
        else:
            # What does not count comes last: picking rows out would wait for the device. A median is not deterministic there.
            counts = weight > 0
            in_order = torch.where(counts[:, None], self._centred(target), torch.inf).sort(dim=0).values
            center = in_order[((counts.sum() - 1) // 2).clamp(min=0)[None]][0]
        center = torch.where(amount > 0, center, 0.0)
        # Ranks must hash alike, so they share one centre, the joined batch's ('median': the mean of theirs).
        center, amount = joined_mean(center, amount)
        has_vectors = (amount > 0).float()
        # One batch that is not finite must not stay in the average for good.
        center = torch.where(torch.isfinite(center), center, self.center)
        self.num_batches += has_vectors[0].long()
        # A plain average of the first batches, an exponential one later: no start-up bias.
        rate = torch.clamp(1 / self.num_batches.clamp(min=1).float(), min=self.momentum)
        self.center.lerp_(center, rate * has_vectors)

    def _centred(self, vectors: Tensor) -> Tensor:
        """Return what has a centre: the projections of vectors, or themselves."""
        return vectors if self.soft else F.linear(vectors, self.projection)


@torch.no_grad()
def null_projection(weights: Sequence[Tensor], sigmoid: bool) -> Tensor:
    """Return the symmetric projection onto what linear classifiers cannot see, (D, D).

    Args:
        weights (Sequence[Tensor]): (K, D), or (K, D, k, k): every place of a kernel sees for itself.
        sigmoid (bool): Whether classes are independent; what shifts all of several exclusive ones alike tells nothing.

    Raises:
        ValueError: If they see all D directions.
    """
    centred = [weight if sigmoid or len(weight) == 1 else weight - weight.mean(dim=0, keepdim=True) for weight in weights]
    rows = torch.cat([weight.flatten(2).permute(0, 2, 1).flatten(0, 1) if weight.ndim > 2 else weight for weight in centred])
    _, sizes, seen = torch.linalg.svd(rows.double(), full_matrices=False)
    seen = seen[sizes > 1e-5 * sizes.max()]
    if len(seen) == rows.shape[1]:
        raise ValueError(
            f"project='null' of LSHDistillLoss expects a classifier that leaves a direction unseen, but the teacher's sees all "
            f'{rows.shape[1]} of its feature: leave project out.'
        )
    return (torch.eye(rows.shape[1], dtype=seen.dtype, device=seen.device) - seen.T @ seen).float()


class HashCrossEntropy(torch.autograd.Function):
    r"""Binary cross-entropy of projections against the bits of other projections, with its gradient in closed form.

    Of soft bits the entropy is taken away, which has no gradient. For :math:`a = W f + b` and bits h the gradient by f is
    :math:`W^\top (\sigma(a) - h)`: the forward pass knows it already.
    Nothing of the size of the projections, thousands of numbers a vector, is kept for the backward pass, and only
    :data:`CHUNK` of them are there at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, feature: Tensor, target: Tensor, projection: Tensor, offset: Tensor, share: Tensor, soft: bool
    ) -> Any:
        """Sum over vectors of ``share`` times the mean over bits, and the share of bits that agree.

        Args:
            ctx (FunctionCtx): Keeps the gradient.
            feature (Tensor): Vectors to train, (M, D).
            target (Tensor): Vectors whose bits are wanted, (M, D).
            projection (Tensor): W, (N, D).
            offset (Tensor): b, (N, ).
            share (Tensor): Weight of each vector, (M, ).
            soft (bool): Whether bits are probabilities.
        """
        bits, loss, agreement = len(projection), feature.new_zeros(()), feature.new_zeros(())
        gradient = torch.empty_like(feature)
        rows = max(CHUNK // bits, 1)
        for f, t, s, g in zip(*(tensor.split(rows) for tensor in (feature, target, share, gradient)), strict=True):
            ours = torch.addmm(offset, f, projection.t())
            theirs = torch.addmm(offset, t, projection.t())
            wanted = theirs > 0
            agreement += (wanted == (ours > 0)).float().mean(dim=1) @ s
            if soft:
                divergence = F.softplus(ours) - F.softplus(theirs) - theirs.sigmoid() * (ours - theirs)
            else:
                # log(1 + exp(a)) - h a, of which the first is the softplus of -a where h is 1.
                divergence = F.softplus(torch.where(wanted, -ours, ours))
            loss += divergence.mean(dim=1) @ s
            if ctx.needs_input_grad[0]:
                hashed = theirs.sigmoid_() if soft else wanted.float()
                torch.mm(ours.sigmoid_().sub_(hashed).mul_(s[:, None] / bits), projection, out=g)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(agreement)
        return loss, agreement

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Return the gradient by ``feature``; nothing else has one."""
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None, None, None, None, None
