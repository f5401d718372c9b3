"""Decoupled knowledge distillation on logits."""

import torch
from torch import Tensor

from dskd_mm.losses.base import LogitLoss, check_temperature
from dskd_mm.registry import MODELS
from dskd_mm.structures import Target


@MODELS.register_module()
class DKDLoss(LogitLoss):
    r"""Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679, section 3).

    With b the distribution of whether it is the true class and :math:`\hat p` the one over the other classes, each softened by
    T, the divergence of :class:`KDLoss` is :math:`KL(b_t\|b_s) + (1 - p_t) KL(\hat p_t\|\hat p_s)`, where :math:`p_t` is the
    teacher's probability of the true class. DKD gives the two parts weights that do not depend on the teacher's confidence:
    :math:`T^2 (\alpha\,KL(b_t\|b_s) + \beta\,KL(\hat p_t\|\hat p_s))`.

    The true class is the likeliest one of the annotation: of mixed labels the main one, and background where the classifier
    has an output for it. What is ignored weighs nothing. The authors' linear warm-up over the first 20 of 240
    epochs of CIFAR is the distiller's ``warmup``, in iterations.

    Args:
        alpha (float): Weight of the true class's part (TCKD). Defaults to 1.
        beta (float): Weight of the other classes' part (NCKD). Defaults to 8, the authors' for CIFAR-100; theirs for ImageNet
            is 0.5 with a temperature of 1.
        temperature (float): T, by which both sides are softened. Defaults to 4.
        loss_weight (float): What the loss is multiplied with. Defaults to 1.

    Raises:
        ValueError: If a weight is negative or the temperature not positive.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        if min(alpha, beta) < 0:
            raise ValueError(f'alpha and beta of DKDLoss must not be negative, but got {alpha} and {beta}.')
        self.alpha = alpha
        self.beta = beta
        self.temperature = check_temperature(self, temperature)

    def check(self, num_classes: int, sigmoid: bool) -> None:
        """Refuse independent classes, of which there is no true one; see :meth:`LogitLoss.check`."""
        if sigmoid or num_classes < 2:
            kind = 'independent (sigmoid)' if sigmoid else 'exclusive'
            raise ValueError(
                f'DKDLoss expects at least two exclusive classes (softmax), of which one is true, but got {num_classes} {kind} '
                "ones: use dict(type='dskd_mm.KDLoss') instead."
            )

    def forward(self, student: Tensor, teacher: Tensor, label: Target, sigmoid: bool = False) -> Tensor:
        """See :meth:`LogitLoss.forward`; averaged over the predictions that count.

        Raises:
            ValueError: If classes are independent, or there is only one.
        """
        self.check(student.shape[1], sigmoid)
        true = label.probability.argmax(dim=1, keepdim=True)
        target, others = decoupled_divergences(student.float() / self.temperature, teacher.float() / self.temperature, true)
        divergence = self.alpha * target + self.beta * others
        total = label.apply_weight(divergence).sum() / label.normalizer()
        return self.loss_weight * self.temperature**2 * total


def decoupled_divergences(student: Tensor, teacher: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two parts of the divergence between two softmax distributions.

    Args:
        student (Tensor): Logits (B, K, ...).
        teacher (Tensor): Logits (B, K, ...).
        true (Tensor): Index of the true class, (B, 1, ...), long.

    Returns:
        tuple[Tensor, Tensor]: The divergence of whether it is the true class, and that among the other classes; (B, 1, ...)
            both.
    """
    # All in logarithms: with a confident teacher 1 - p is nothing but rounding errors.
    ours, theirs = student.log_softmax(dim=1), teacher.log_softmax(dim=1)
    hit, expected_hit = ours.gather(1, true), theirs.gather(1, true)
    miss, expected_miss = log_of_rest(ours, true), log_of_rest(theirs, true)
    target = expected_hit.exp() * (expected_hit - hit) + expected_miss.exp() * (expected_miss - miss)
    ours, theirs = ours - miss, theirs - expected_miss
    share = theirs.scatter(1, true, -torch.inf).exp()  # the true class is not among the others
    others = share * (theirs - ours)
    return target, others.sum(dim=1, keepdim=True)


def log_of_rest(log_probability: Tensor, true: Tensor) -> Tensor:
    """Return the logarithm of the probability of all classes but one, (B, 1, ...)."""
    return log_probability.scatter(1, true, -torch.inf).logsumexp(dim=1, keepdim=True)
