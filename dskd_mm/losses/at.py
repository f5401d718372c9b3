"""Attention transfer."""

from torch import Tensor
from torch.nn import functional as F

from dskd_mm.functional import mean
from dskd_mm.losses.base import FeatureLoss
from dskd_mm.registry import MODELS


@MODELS.register_module()
class ATLoss(FeatureLoss):
    r"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017, arXiv 1612.03928, section 3.1).

    The attention map of a feature is :math:`\overline{|F|^p}`, averaged over channels; student's and teacher's are flattened,
    divided by their L2 norm and compared. The channels need no alignment.

    As in the authors' code it is the mean squared difference over images and locations that is weighed, where their eq. 2 has
    the distance itself. The teacher's map has the student's resolution.

    Args:
        power (float): The exponent p. Defaults to 2.
        on (str): What is compared, see :class:`FeatureLoss`; the authors take the end of each stage: one loss each.
            Defaults to 'feature'.
        loss_weight (float): What the loss is multiplied with. Defaults to 1000, the authors' for every stage.

    Raises:
        ValueError: If p is less than 1, or (in a step) there are only vectors: their attention is always 1.
    """

    needs_map = True

    def __init__(self, power: float = 2.0, on: str = 'feature', loss_weight: float = 1000.0) -> None:
        super().__init__(on, loss_weight)
        if power < 1:
            raise ValueError(f'power of ATLoss must be at least 1, or zeros have no gradient, but got {power}.')
        self.power = power

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :meth:`FeatureLoss.compare`."""
        return mean((self._attention(student) - self._attention(teacher)).square())

    def _attention(self, level: Tensor) -> Tensor:
        """Return the attention (B, H * W), of unit length."""
        return F.normalize(level.abs().pow(self.power).mean(dim=1).flatten(1))
