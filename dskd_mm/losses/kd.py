"""Knowledge distillation on logits."""

from dataclasses import replace

from torch import Tensor

from dskd_mm.functional import target_cross_entropy
from dskd_mm.losses.base import LogitLoss, check_temperature
from dskd_mm.registry import MODELS
from dskd_mm.structures import Target


@MODELS.register_module()
class KDLoss(LogitLoss):
    r"""Knowledge distillation: :math:`T^2\,KL(p_t^T \| p_s^T)` (Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2).

    Independent classes are compared one by one (binary cross-entropy less the teacher's entropy) and summed; in dense detection
    each with the factor of :attr:`Target.focus`.

    Args:
        temperature (float): T, by which both sides are softened. Defaults to 4.
        loss_weight (float): What the loss is multiplied with. Defaults to 1.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(self, temperature: float = 4.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.temperature = check_temperature(self, temperature)

    def forward(self, student: Tensor, teacher: Tensor, label: Target, sigmoid: bool = False) -> Tensor:
        """See :meth:`LogitLoss.forward`; averaged over the predictions that count."""
        softened = teacher.float() / self.temperature
        probability = softened.sigmoid() if sigmoid else softened.softmax(dim=1)
        target = replace(label, probability=probability)
        return self.loss_weight * target_cross_entropy(student, target, sigmoid, self.temperature)
