"""Distillation of relations between predictions."""

import torch
from torch import Tensor

from dskd_mm.functional import probabilities
from dskd_mm.losses.base import LogitLoss, check_temperature
from dskd_mm.registry import MODELS
from dskd_mm.structures import Target


@MODELS.register_module()
class DISTLoss(LogitLoss):
    r"""DIST: the student's predictions shall correlate with the teacher's (Huang et al., NeurIPS 2022, arXiv 2205.10536).

    With :math:`d(a, b) = 1 - \rho(a, b)`, Pearson's distance, between the softened predictions Y (rows of K probabilities):
    :math:`\tau^2 (\beta\,\overline{d}` of the rows, relations between classes, :math:`+ \gamma\,\overline{d}` of the columns,
    relations within a class :math:`)`.

    The M predictions of an image become rows like those of further images, as the authors do with pixels; rows of weight 0
    count in neither part. Independent classes are compared by their sigmoid probabilities. A batch of a single row has no
    correlation within a class: that part is then the constant :math:`\gamma\tau^2`. With two classes only the relations within
    a class teach: two numbers correlate by 1 or -1 whatever they are, so the rows have no gradient.

    Deviations: both parts are weighted by the annotations' weights and divided by their sum, in dense detection not by the
    number of foreground predictions, for a correlation does not grow with the number of predictions. What does not vary at all
    (a row or column of equal probabilities) has correlation 0 and no gradient, where the authors' code divides rounding errors
    by 1e-8.

    Args:
        beta (float): Weight of the relations between classes. Defaults to 1.
        gamma (float): Weight of the relations within a class. Defaults to 1. The paper uses beta = gamma = 2 for
            classification.
        temperature (float): :math:`\tau`, by which both sides are softened. Defaults to 1.
        loss_weight (float): What the loss is multiplied with. Defaults to 1.

    Raises:
        ValueError: If a weight is negative or the temperature not positive.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        if min(beta, gamma) < 0:
            raise ValueError(f'beta and gamma of DISTLoss must not be negative, but got {beta} and {gamma}.')
        self.beta = beta
        self.gamma = gamma
        self.temperature = check_temperature(self, temperature)

    def check(self, num_classes: int, sigmoid: bool) -> None:
        """Refuse a single class, which has no relations to others; see :meth:`LogitLoss.check`."""
        if num_classes < 2:
            raise ValueError(
                f'DISTLoss compares relations between classes and expects at least two, but got {num_classes}: use '
                "dict(type='dskd_mm.KDLoss') instead."
            )

    def forward(self, student: Tensor, teacher: Tensor, label: Target, sigmoid: bool = False) -> Tensor:
        """See :meth:`LogitLoss.forward`; averaged over the predictions that count.

        Raises:
            ValueError: If there is only one class.
        """
        self.check(student.shape[1], sigmoid)
        ours, theirs = (self._predict(logits, sigmoid) for logits in (student, teacher))
        weight = ours.new_ones(len(ours)) if label.weight is None else label.weight.flatten().float()
        total = weight.sum()
        between = (weight * (1 - pearson(ours, theirs))).sum() / total.clamp(min=1e-12)
        within = (1 - pearson(ours.t(), theirs.t(), weight)).mean() * (total > 0)
        return self.loss_weight * self.temperature**2 * (self.beta * between + self.gamma * within)

    def _predict(self, logits: Tensor, sigmoid: bool) -> Tensor:
        """Return the probabilities (R, K), one row for each prediction."""
        logits = logits.float() / self.temperature
        probability = probabilities(logits, sigmoid)
        return probability if probability.ndim == 2 else probability.transpose(1, 2).flatten(0, 1)


def pearson(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Correlate the rows of two matrices (R, N) as Pearson does, to (R, ); 0, without a gradient, where one is constant.

    Args:
        x (Tensor): (R, N).
        y (Tensor): (R, N).
        weight (Tensor, optional): Weights of the N observations, not negative. Defaults to None: 1.
    """
    if weight is None:
        weight = x.new_ones(x.shape[1])
    return (standardize(x, weight) * standardize(y, weight)).sum(dim=1)


def standardize(rows: Tensor, weight: Tensor) -> Tensor:
    """Centre the rows of a matrix (R, N) and divide them by their norms: correlations are their scalar products."""
    # No matrix product: autocast would round it.
    center = (rows * weight).sum(dim=1, keepdim=True) / weight.sum().clamp(min=1e-12)
    root = weight.sqrt()
    centered = (rows - center) * root
    norm = centered.norm(dim=1, keepdim=True)
    # Of a constant row rounding errors are left, and a gradient of one over their size.
    floor = (1e-6 * (rows.detach() * root).norm(dim=1, keepdim=True)).clamp(min=1e-30)
    return centered / torch.maximum(norm, floor) * (norm > floor)
