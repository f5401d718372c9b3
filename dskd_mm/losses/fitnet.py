"""Features as hints."""

from typing import Any

from torch import Tensor

from dskd_mm.features import Channels
from dskd_mm.functional import mean
from dskd_mm.losses.base import AlignedFeatureLoss
from dskd_mm.registry import MODELS


@MODELS.register_module()
class FitNetLoss(AlignedFeatureLoss):
    r"""FitNets: the student's feature shall be the teacher's (Romero et al., ICLR 2015, arXiv 1412.6550, section 2.2).

    The mean squared error of the aligned feature, :math:`\frac1{BCHW} \|\phi(F_s) - F_t\|^2`.

    Deviations: the hint is learnt together with the task, as in later comparisons, not in a stage before it; the regressor is
    a 1x1 convolution and a norm, shared by all levels.

    Args:
        student_channels (int | tuple[int, ...]): Channels of the student, or of each level; the distiller fills them in.
        teacher_channels (int | tuple[int, ...]): Channels of the teacher, likewise.
        loss_weight (float): What the loss is multiplied with. Defaults to 100, that of joint training in the CIFAR-100
            benchmark of CRD (Tian et al. 2020). With ``align=dict(kind='identity')`` it is the plain L2 of features or,
            ``on='logits'``, of logits.
        kwargs: Arguments of :class:`AlignedFeatureLoss`: on, align (by default a convolution and a batch norm).
    """

    default_align = dict(norm='BN')

    def __init__(
        self, student_channels: Channels, teacher_channels: Channels, loss_weight: float = 100.0, **kwargs: Any
    ) -> None:
        super().__init__(student_channels, teacher_channels, loss_weight=loss_weight, **kwargs)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :meth:`FeatureLoss.compare`."""
        return mean((student - teacher).square())
