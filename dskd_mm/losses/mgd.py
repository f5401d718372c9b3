"""Masked generative distillation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dskd_mm.features import Channels, level_modules, per_width
from dskd_mm.losses.base import AlignedFeatureLoss
from dskd_mm.registry import MODELS


@MODELS.register_module()
class MGDLoss(AlignedFeatureLoss):
    r"""Masked generative distillation (Yang et al., ECCV 2022, arXiv 2205.01529, section 3).

    Of the student's aligned map a random part is set to zero, a small network (3x3 convolution, ReLU, 3x3 convolution)
    restores the whole, and the teacher's map is what it shall become: :math:`\frac1B \sum (F_t - G(\phi(F_s) \cdot M))^2`,
    summed over channels and locations as in the authors' code, so that a good weight depends on the size of the map.

    Deviation: all levels of a width share one network, where the authors have one for each.

    Args:
        student_channels (int | tuple[int, ...]): Channels of the student, or of each level; the distiller fills them in.
        teacher_channels (int | tuple[int, ...]): Channels of the teacher, likewise.
        mask_ratio (float): Chance :math:`\lambda` of being masked. Defaults to 0.65, the authors' for one-stage detectors;
            theirs for two-stage ones is 0.45, for segmenters 0.75 and for classifiers 0.15.
        mask (str): What is masked: 'location', or whole 'channel's of an image, as the authors do with classifiers. Defaults
            to 'location'.
        loss_weight (float): What the loss is multiplied with. Defaults to 2e-5, the authors' for one-stage detectors and
            segmenters; theirs for two-stage detectors is 5e-7 and for classifiers 7e-5.
        kwargs: Arguments of :class:`AlignedFeatureLoss`: on, align (by default a 1x1 convolution if the channels differ).

    Raises:
        ValueError: If the ratio is not at least 0 and less than 1, the kind of mask is unknown, or (in a step) locations of
            vectors are to be masked.
    """

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        mask_ratio: float = 0.65,
        mask: str = 'location',
        loss_weight: float = 2e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(student_channels, teacher_channels, loss_weight=loss_weight, **kwargs)
        if not 0 <= mask_ratio < 1:
            raise ValueError(f'mask_ratio of MGDLoss must be at least 0 and less than 1, but got {mask_ratio}.')
        if mask not in ('location', 'channel'):
            raise ValueError(f"mask of MGDLoss must be 'location' or 'channel', but got {mask!r}.")
        self.mask_ratio = mask_ratio
        self.mask = mask
        self.needs_map = mask == 'location'
        self.generation = per_width(generator_of, channels=teacher_channels)

    def prepare(self, student: Sequence[Tensor], generator: torch.Generator | None = None) -> list[Tensor]:
        """Return the teacher's maps as generated from what is left of the student's; see :meth:`FeatureLoss.prepare`."""
        aligned = super().prepare(student)
        each = level_modules(self.generation, len(aligned))
        return [own(level * self._draw(level, generator)) for own, level in zip(each, aligned, strict=True)]

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :meth:`FeatureLoss.compare`."""
        return (student - teacher).square().sum() / max(len(student), 1)

    def _draw(self, level: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return 1 for what stays, (B, 1, H, W) or (B, C, 1, 1)."""
        batch, channels, height, width = level.shape
        shape = (batch, 1, height, width) if self.mask == 'location' else (batch, channels, 1, 1)
        return (torch.rand(shape, generator=generator, device=level.device) >= self.mask_ratio).to(level.dtype)


def generator_of(channels: int) -> nn.Module:
    """Return the network that restores masked maps (B, channels, H, W)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 3, padding=1)
    )
