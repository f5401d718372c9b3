"""Knowledge distillation on logits."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dskd_mm.functional import probabilities, target_cross_entropy
from dskd_mm.losses.base import LogitLoss, check_temperature
from dskd_mm.registry import MODELS
from dskd_mm.structures import ModelOutputs, TapSpec, Target


@MODELS.register_module()
class KDLoss(LogitLoss):
    r"""Knowledge distillation: :math:`T^2\,KL(p_t^T \| p_s^T)` (Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2).

    Independent classes are compared one by one (binary cross-entropy less the teacher's entropy) and summed; in dense detection
    each with the factor of :attr:`Target.focus`.

    With ``standardize`` the logits of each prediction are brought to zero mean and unit deviation over the classes first, the
    teacher's and the student's, so that only their relations are compared, not their range (Sun et al., CVPR 2024, arXiv
    2403.01427).

    Args:
        temperature (float): T, by which both sides are softened. Defaults to 4.
        standardize (bool): Whether logits are standardised. Defaults to False.
        upsample (int): Factor by which a segmenter's maps of logits are enlarged first, bilinearly, as its own loss enlarges
            them to the size of the annotations. Defaults to 1.
        loss_weight (float): What the loss is multiplied with. Defaults to 1.

    Raises:
        ValueError: If the temperature is not positive, the factor is below 1, what is enlarged is no map of a segmenter, or
            logits are standardised of independent or fewer than three classes.
    """

    def __init__(
        self, temperature: float = 4.0, loss_weight: float = 1.0, standardize: bool = False, upsample: int = 1
    ) -> None:
        super().__init__(loss_weight)
        if upsample < 1:
            raise ValueError(f'upsample of KDLoss must be at least 1, but got {upsample}.')
        self.upsample = upsample
        self.temperature = check_temperature(self, temperature)
        self.standardize = standardize

    def check(self, num_classes: int, sigmoid: bool) -> None:
        """Refuse to standardise what has no relations between classes; see :meth:`LogitLoss.check`."""
        if self.standardize and (sigmoid or num_classes < 3):
            kind = 'independent' if sigmoid else 'exclusive'
            raise ValueError(
                f'KDLoss with standardize=True compares relations between at least three exclusive classes, but got '
                f'{num_classes} {kind} ones: set standardize=False.'
            )

    def bind(self, student: TapSpec, teacher: TapSpec, name: str) -> None:
        """See :meth:`LogitLoss.bind`."""
        super().bind(student, teacher, name)
        if self.upsample > 1 and (not student.is_dense or student.is_pyramid or student.num_priors > 1):
            raise ValueError(f'{name} enlarges the maps of a segmenter, but this site has other logits: leave upsample out.')

    def compare_outputs(
        self, student: ModelOutputs, teacher: ModelOutputs, target: Target | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """See :meth:`LogitLoss.compare_outputs`."""
        if self.upsample == 1 or target is None:
            return super().compare_outputs(student, teacher, target, generator)
        (ours,), (theirs,) = student.logit_levels, teacher.logit_levels
        enlarged = [F.interpolate(x.float(), scale_factor=self.upsample, mode='bilinear').flatten(2) for x in (ours, theirs)]
        weight = target.apply_weight(torch.ones_like(ours[:, :1]).flatten(2)).unflatten(2, ours.shape[2:])
        weight = F.interpolate(weight, scale_factor=self.upsample).flatten(2)
        count = None if target.avg_factor is None else target.avg_factor * self.upsample**2
        return self(*enlarged, replace(target, probability=enlarged[1], weight=weight, avg_factor=count), self.sigmoid)

    def forward(self, student: Tensor, teacher: Tensor, label: Target, sigmoid: bool = False) -> Tensor:
        """See :meth:`LogitLoss.forward`; averaged over the predictions that count."""
        if self.standardize:
            student, teacher = (z_scores(logits.float()) for logits in (student, teacher))
        softened = teacher.float() / self.temperature
        probability = probabilities(softened, sigmoid)
        target = replace(label, probability=probability)
        return self.loss_weight * target_cross_entropy(student, target, sigmoid, self.temperature)


def z_scores(logits: Tensor) -> Tensor:
    """Return logits (B, K, ...) of zero mean and unit (sample) deviation over the classes."""
    centered = logits - logits.mean(dim=1, keepdim=True)
    return centered / (centered.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1) + 1e-7).sqrt()
