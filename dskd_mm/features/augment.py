"""Augmentation of feature maps that is learnt by gradient descent: SoKD's differentiable automatic feature augmentation."""

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.distributed import mean_over_ranks

OPERATORS = dict(
    shear_x=(-0.3, 0.3),
    shear_y=(-0.3, 0.3),
    translate_x=(-0.45, 0.45),
    translate_y=(-0.45, 0.45),
    rotate=(-30.0, 30.0),
    cutout=(0.0, 0.2),
    noise=(0.0, 0.1),
    shuffle=(0.0, 0.5),
    drop=(0.0, 0.5),
)
"""The operators and the strengths that the magnitudes 0 and 1 stand for. A strength of 0 leaves the feature as it is.

Shears are slopes, translations shares of the side, rotations degrees; a cutout's side is a share of the map's, noise has a
standard deviation in the feature's own unit; shuffle and drop concern a share of the channels (that of shuffle is ours: the
source names none).
"""
SUB_POLICIES = tuple(combinations(range(len(OPERATORS)), 2))
"""The 36 unordered pairs of operators, by their positions in :data:`OPERATORS`."""


class FeatureAugmentation(nn.Module):
    r"""Differentiable automatic feature augmentation, DAFA, of SoKD (Shen et al., arXiv 2409.18785).

    A sub-policy is a pair of operators, each with the probability β of being applied and a magnitude m. In every call one of
    the 36 is drawn with the logits α by the Gumbel-max trick, and its operators are applied one after the other, each to an
    image with probability β. What is drawn counts in the forward pass; backwards

    - α gets the gradient of the Gumbel-softmax: the result is x + w (s(x) − x), w being 1 forwards and the relaxed probability
      of the chosen sub-policy s backwards. Sub-policies that were not drawn are thereby taken to leave x as it is;
    - β gets that of the relaxed Bernoulli distribution of the same temperature;
    - m gets the operator's own derivative where there is one (shears, translations, rotation, noise), and a derivative of 1 at
      every element where the operator jumps (cutout, shuffle, drop): straight through.

    :meth:`search` makes one step of Adam on α, β and m. These are buffers, as are Adam's moments: they need no optimizer from
    outside, no parameter of the model is ever unused, and a checkpoint continues the search where it was.

    An approximation from a summary of the paper and a development repository, which differ: operators and their ranges, pairs,
    initial values, temperature and Adam's constants are known; the estimator of α (the repository's is RELAX, with a network
    of its own), one draw of β for each image, strengths about the centre, zeros from outside of the map and the meaning of
    'shuffle' and 'drop' (no rescaling) are ours.

    Args:
        temperature (float): Temperature of both relaxations. Defaults to 0.5.
        lr (float): Learning rate of Adam. Defaults to 3e-4.
        betas (tuple[float, float]): Decay of Adam's moments. Defaults to (0.5, 0.999).
        weight_decay (float): Adam's L2 penalty on α, β and m. Defaults to 1e-3.

    Raises:
        ValueError: If the temperature is not positive.
    """

    policy: Tensor
    moments: Tensor
    updates: Tensor
    pairs: Tensor
    ranges: Tensor

    def __init__(
        self,
        temperature: float = 0.5,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 1e-3,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f'temperature of FeatureAugmentation must be positive, but got {temperature}.')
        self.temperature = temperature
        self.lr = lr
        self.betas = betas
        self.weight_decay = weight_decay
        # Columns: α, β of both operators, m of both.
        self.register_buffer('policy', torch.tensor([1e-3, 0.5, 0.5, 0.5, 0.5]).repeat(len(SUB_POLICIES), 1))
        self.register_buffer('moments', torch.zeros(2, *self.policy.shape))
        self.register_buffer('updates', torch.zeros((), dtype=torch.long))
        self.register_buffer('pairs', F.one_hot(torch.tensor(SUB_POLICIES), len(OPERATORS)).float(), persistent=False)
        self.register_buffer('ranges', torch.tensor(list(OPERATORS.values())).T.contiguous(), persistent=False)

    @property
    def probability(self) -> Tensor:
        """Mean of β, a scalar: how often an operator of a chosen pair is applied."""
        return self.policy[:, 1:3].mean()

    def forward(self, maps: Sequence[Tensor], generator: torch.Generator, policy: Tensor | None = None) -> list[Tensor]:
        """Augment the levels of a feature alike: one sub-policy, and the same images, for all of them.

        Args:
            maps (Sequence[Tensor]): The maps, (B, C, H, W) a level.
            generator (torch.Generator): Where the randomness comes from.
            policy (Tensor, optional): α, β and m, (36, 5), to differentiate by. Defaults to None: :attr:`policy`.

        Returns:
            list[Tensor]: The augmented maps, of the same shapes, float32.
        """
        policy = self.policy if policy is None else policy
        device = policy.device
        with torch.autocast(device_type=device.type, enabled=False):
            weight, strengths, gates = self._draw(policy, len(maps[0]), generator)
            augmented = []
            for level in maps:
                plain = changed = level.float()
                for strength, gate in zip(strengths, gates, strict=True):
                    applied = operate(changed, strength, generator)
                    changed = changed + gate[:, None, None, None] * (applied - changed)
                augmented.append(plain + weight * (changed - plain))
        return augmented

    @torch.no_grad()
    def search(self, maps: Sequence[Tensor], students: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        r"""Augment, and move the policy to where the augmented feature is closer to the student's.

        One step of Adam on :math:`L_{aug} = \frac12 (s(f_t) - f_s)^2`, averaged over a level's elements and summed over
        levels; the gradient is averaged over ranks, so policies stay equal. β and m stay within [0, 1].

        Args:
            maps (Sequence[Tensor]): The teacher's maps :math:`f_t`, (B, C, H, W) a level.
            students (Sequence[Tensor]): The student's maps :math:`f_s`, of the same shapes; no gradient reaches them.
            generator (torch.Generator): Where the randomness comes from.

        Returns:
            list[Tensor]: The augmented maps, without a graph, drawn from the policy before the step.
        """
        with torch.enable_grad():
            policy = self.policy.clone().requires_grad_()
            augmented = self(maps, generator, policy)
            losses = [
                (ours - theirs.detach().float()).square().mean() / 2 for ours, theirs in zip(augmented, students, strict=True)
            ]
            (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), policy)
        self._update(mean_over_ranks(gradient))
        return [level.detach() for level in augmented]

    def _draw(self, policy: Tensor, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return a sub-policy: its weight, a scalar of 1, strengths of operators (2, 9) and whether to apply them (2, B)."""
        tiny = torch.finfo(torch.float32).tiny
        gumbel = -torch.rand(len(policy), generator=generator, device=policy.device).clamp(min=tiny).log().neg().log()
        soft = ((policy[:, 0] + gumbel) / self.temperature).softmax(dim=0)
        # Chosen by products with a one-hot vector: an index would have to be read from the device.
        choice = (torch.arange(len(policy), device=policy.device) == soft.argmax()).to(policy.dtype)
        weight = choice @ soft
        weight = 1 + (weight - weight.detach())
        row = choice @ policy
        operators = torch.einsum('p,pko->ko', choice, self.pairs)
        low, high = self.ranges
        strengths = operators * (low + (high - low) * row[3:, None])
        chance = row[1:3, None].clamp(1e-6, 1 - 1e-6)
        uniform = torch.rand(2, batch, generator=generator, device=policy.device).clamp(1e-6, 1 - 1e-6)
        relaxed = ((chance.logit() + uniform.logit()) / self.temperature).sigmoid()
        gates = (relaxed > 0.5).to(relaxed.dtype) + (relaxed - relaxed.detach())
        return weight, strengths, gates

    def _update(self, gradient: Tensor) -> None:
        """Take a step of Adam with an L2 penalty, as torch.optim.Adam makes it."""
        # A batch that is not finite must not stay in the moments for good.
        gradient = torch.nan_to_num(gradient, 0.0, 0.0, 0.0) + self.weight_decay * self.policy
        self.updates += 1
        first, second = self.moments[0], self.moments[1]
        slow, slower = self.betas
        first.lerp_(gradient, 1 - slow)
        second.lerp_(gradient.square(), 1 - slower)
        step = (first / (1 - slow**self.updates)) / ((second / (1 - slower**self.updates)).sqrt() + 1e-8)
        self.policy -= self.lr * step
        self.policy[:, 1:].clamp_(0, 1)


def operate(feature: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """Apply the operators of :data:`OPERATORS`, each with a strength of its own: 0 for none, which all but one should have.

    All are computed, so that nobody has to know on the host which one was chosen; the five affine ones share one resampling.

    Args:
        feature (Tensor): Maps (B, C, H, W), float32.
        strengths (Tensor): One for each operator, (9, ).
        generator (torch.Generator): Where the randomness comes from.

    Returns:
        Tensor: Of the same shape.
    """
    feature = resample(feature, strengths[:5])
    feature = cutout(feature, strengths[5], generator)
    feature = feature + strengths[6] * torch.randn(feature.shape, generator=generator, device=feature.device)
    feature = shuffle_channels(feature, strengths[7], generator)
    return drop_channels(feature, strengths[8], generator)


def resample(feature: Tensor, strengths: Tensor) -> Tensor:
    """Shear, translate or rotate about the centre, with bilinear interpolation and zeros from outside.

    Args:
        feature (Tensor): Maps (B, C, H, W).
        strengths (Tensor): Shear along x and y (slopes), translation along x and y (shares of the side, positive to the right
            and downwards), rotation (degrees, clockwise on a picture whose rows run downwards), (5, ). At most one should
            differ from 0.

    Returns:
        Tensor: Of the same shape, differentiable by both.
    """
    height, width = feature.shape[2:]
    shear_x, shear_y, right, down, degrees = strengths
    angle = degrees * (math.pi / 180)
    # From a location of the result to one of the source, about the centre; a map's own coordinates run from -1 to 1 on both
    # axes.
    rows = [
        torch.stack([angle.cos(), (angle.sin() + shear_x) * (height / width), -2 * right]),
        torch.stack([(shear_y - angle.sin()) * (width / height), angle.cos(), -2 * down]),
    ]
    grid = F.affine_grid(torch.stack(rows)[None], [1, 1, height, width], align_corners=False)
    return F.grid_sample(feature, grid.expand(len(feature), -1, -1, -1), align_corners=False)


def cutout(feature: Tensor, side: Tensor, generator: torch.Generator) -> Tensor:
    """Set a rectangle to zero in each image, at a random place that may lie across the border.

    Args:
        feature (Tensor): Maps (B, C, H, W).
        side (Tensor): Its height and width, as a share of the map's; a scalar with a straight-through derivative of 1.
        generator (torch.Generator): Where the randomness comes from.

    Returns:
        Tensor: Of the same shape.
    """
    height, width = feature.shape[2:]
    centre = torch.rand(2, len(feature), 1, generator=generator, device=feature.device)
    y = (torch.arange(height, device=feature.device) + 0.5) / height
    x = (torch.arange(width, device=feature.device) + 0.5) / width
    inside_y, inside_x = (y - centre[0]).abs() < side / 2, (x - centre[1]).abs() < side / 2
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return straight_through(feature.masked_fill(inside, 0.0), side)


def shuffle_channels(feature: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
    """Let a random share of the channels change places, each with another one; the same in all images.

    Args:
        feature (Tensor): Maps (B, C, H, W).
        share (Tensor): How many of the channels, rounded; a scalar with a straight-through derivative of 1.
        generator (torch.Generator): Where the randomness comes from.

    Returns:
        Tensor: Of the same shape.
    """
    channels = feature.shape[1]
    order = torch.rand(channels, generator=generator, device=feature.device).argsort()
    place = torch.arange(channels, device=feature.device)
    count = (share.detach() * channels).round().long()
    # The first of a random order each take what the next one has: a cycle moves every one of them.
    source = torch.where(place < count, (place + 1) % count.clamp(min=1), place)
    index = torch.empty_like(order).scatter_(0, order, order[source])
    return straight_through(feature.index_select(1, index), share)


def drop_channels(feature: Tensor, chance: Tensor, generator: torch.Generator) -> Tensor:
    """Set random channels of each image to zero, without rescaling the others.

    Args:
        feature (Tensor): Maps (B, C, H, W).
        chance (Tensor): With what probability; a scalar with a straight-through derivative of 1.
        generator (torch.Generator): Where the randomness comes from.

    Returns:
        Tensor: Of the same shape.
    """
    dropped = torch.rand(feature.shape[:2], generator=generator, device=feature.device) < chance
    return straight_through(feature.masked_fill(dropped[:, :, None, None], 0.0), chance)


def straight_through(feature: Tensor, strength: Tensor) -> Tensor:
    """Return a feature as it is, with a derivative of 1 by the strength of what made it (Hataya et al. 2020, Faster AA)."""
    return feature + (strength - strength.detach())
