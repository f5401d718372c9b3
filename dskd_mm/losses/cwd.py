"""Channel-wise distillation."""

from typing import Any

from torch import Tensor

from dskd_mm.features import Channels
from dskd_mm.losses.base import AlignedFeatureLoss, check_temperature
from dskd_mm.registry import MODELS


@MODELS.register_module()
class CWDLoss(AlignedFeatureLoss):
    r"""Channel-wise distillation (Shu et al., ICCV 2021, arXiv 2011.13256, section 3).

    Every channel is made a distribution over its locations by a softmax, and the student's is compared with the teacher's:
    :math:`\frac{T^2}{BC} \sum KL(p_t \| p_s)`.

    Made for the logits of segmenters, ``on='logits'``, and the levels of a detector's neck
    (``site=dict(type='dskd_mm.NeckSite')``). Ignored pixels count, as in the authors' code. With several anchors at a location
    they are locations beside each other.

    Args:
        student_channels (int | tuple[int, ...]): Channels of the student, or of each level; the distiller fills them in.
        teacher_channels (int | tuple[int, ...]): Channels of the teacher, likewise.
        temperature (float): T, by which both sides are softened. Defaults to 1.
        loss_weight (float): What the loss is multiplied with. Defaults to 10, the authors' for levels of a neck; theirs for
            logits of segmenters are 3 and a temperature of 4.
        kwargs: Arguments of :class:`AlignedFeatureLoss`: on, align (by default a 1x1 convolution if the channels differ).

    Raises:
        ValueError: If the temperature is not positive, or (in a step) there are only vectors: a distribution over one location
            is always 1.
    """

    needs_map = True

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        temperature: float = 1.0,
        loss_weight: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(student_channels, teacher_channels, loss_weight=loss_weight, **kwargs)
        self.temperature = check_temperature(self, temperature)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :meth:`FeatureLoss.compare`."""
        ours, theirs = ((level.flatten(2) / self.temperature).log_softmax(dim=2) for level in (student, teacher))
        batch, channels = student.shape[:2]
        divergence = (theirs.exp() * (theirs - ours)).sum() / max(batch * channels, 1)
        return self.temperature**2 * divergence
