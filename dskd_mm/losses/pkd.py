"""Pearson correlation of feature maps."""

from typing import Any

from torch import Tensor

from dskd_mm.features import Channels
from dskd_mm.functional import mean, standardize
from dskd_mm.losses.base import AlignedFeatureLoss
from dskd_mm.registry import MODELS


@MODELS.register_module()
class PKDLoss(AlignedFeatureLoss):
    r"""PKD: imitation up to the scale and offset of each channel (Cao et al., NeurIPS 2022, arXiv 2207.02039).

    Each channel of a level is brought to zero mean and unit variance over images and locations; the loss is half the mean
    squared error, which equals :math:`1 - \rho`, averaged over channels, with Pearson's correlation :math:`\rho`. Of vectors,
    maps of one location, it is the correlation over the batch.

    Deviation: the authors' code divides by ``std + 1e-6``, this by :math:`\sqrt{\mathrm{var} + 10^{-8}}`, which bounds the
    gradient of dead channels.

    Args:
        student_channels (int | tuple[int, ...]): Channels of the student, or of each level; the distiller fills them in.
        teacher_channels (int | tuple[int, ...]): Channels of the teacher, likewise.
        loss_weight (float): What the loss is multiplied with. Defaults to 6, the authors' for two-stage detectors at each
            level of the neck; theirs for one-stage detectors is 10.
        kwargs: Arguments of :class:`AlignedFeatureLoss`: on, align (by default a 1x1 convolution if the channels differ).
    """

    def __init__(self, student_channels: Channels, teacher_channels: Channels, loss_weight: float = 6.0, **kwargs: Any) -> None:
        super().__init__(student_channels, teacher_channels, loss_weight=loss_weight, **kwargs)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :meth:`FeatureLoss.compare`."""
        return mean((standardize(student) - standardize(teacher)).square()) / 2
