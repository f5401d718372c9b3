"""Several teachers: the first is the teacher, and the predictions of all are averaged."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dskd_mm.distillers.checks import check_specs
from dskd_mm.features.pyramid import fold_priors, unfold_priors
from dskd_mm.losses import LogitLoss
from dskd_mm.structures import ModelOutputs, TapSpec
from dskd_mm.teacher import FrozenTeacher


def build_teachers(teacher: Any) -> list[FrozenTeacher]:
    """Return the teacher, and those beside it.

    Args:
        teacher (dict | Sequence[dict]): Arguments of :class:`~dskd_mm.teacher.FrozenTeacher`, or a list of them.

    Raises:
        TypeError: If there is none.
    """
    # An empty list is no teacher either.
    given = teacher if isinstance(teacher, (list, tuple)) and len(teacher) else [teacher]
    return [FrozenTeacher.from_config(one) for one in given]


def check_others(student: TapSpec, first: TapSpec, others: Sequence[tuple[FrozenTeacher, TapSpec]]) -> None:
    """Refuse teachers whose predictions cannot be averaged with those of the first.

    Raises:
        ValueError: If they have no class logits, or others than the first.
    """
    for i, (_, other) in enumerate(others, 1):
        if not first.classifiers:
            raise ValueError(
                'The class probabilities of several teachers are averaged, but this site has no linear classifier: give one '
                "teacher, or take the task's own site (leave site out)."
            )
        check_specs(student, other)
        if other.sigmoid != first.sigmoid:
            kinds = ['independent (sigmoid)' if spec.sigmoid else 'exclusive (softmax)' for spec in (first, other)]
            raise ValueError(
                f'The class probabilities of several teachers are averaged, but the classes of teacher 0 are {kinds[0]}, those '
                f'of teacher {i} {kinds[1]}: give teachers of one kind.'
            )


def check_method(distiller: Any) -> None:
    """Refuse a method, or losses, that compare the student with the features or boxes of one teacher.

    Raises:
        ValueError: If there are several teachers nevertheless.
    """
    mend = (
        'Several teachers are defined for methods that read class probabilities: a DSKDDistiller, or a ConfigurableDistiller '
        "with distill_losses=dict(kd=dict(type='dskd_mm.KDLoss')). Give one teacher, or one of these."
    )
    if not distiller.other_teachers:
        return
    if distiller.compares_with_teacher:
        raise ValueError(f'{type(distiller).__name__} compares features with those of one teacher, but got several. {mend}')
    if not (distiller.options.reads_probabilities or len(distiller.distill_losses)):
        raise ValueError(
            f'{type(distiller).__name__} got several teachers, whose class probabilities are averaged, but none of its options '
            f'reads them. {mend}'
        )
    for name, loss in distiller.distill_losses.items():
        if not isinstance(loss, LogitLoss) and getattr(loss, 'on', None) != 'logits':
            raise ValueError(
                f'distill_losses.{name} ({type(loss).__name__}) compares the student with one teacher, but got several. {mend}'
            )


def average_predictions(outputs: Sequence[ModelOutputs], weights: Sequence[float], sigmoid: bool) -> ModelOutputs:
    """Return what several teachers make of a batch: averaged class probabilities, and the rest of the first.

    Args:
        outputs (Sequence[ModelOutputs]): Each teacher's.
        weights (Sequence[float]): How much each counts; their sum does not matter.
        sigmoid (bool): Whether classes are independent.
    """
    first = outputs[0]
    if len(outputs) == 1:
        return first
    levels = zip(*(teacher.logit_levels for teacher in outputs), strict=True)
    averaged = [
        unfold_priors(average_logits([fold_priors(x, first.num_priors) for x in level], weights, sigmoid), first.num_priors)
        for level in levels
    ]
    return replace(first, logit_levels=averaged)


def average_logits(logits: Sequence[Tensor], weights: Sequence[float], sigmoid: bool) -> Tensor:
    """Return logits of the weighted mean of class probabilities.

    Logits of exclusive classes are known but for a constant. It is the mean of the teachers' own, so that equal teachers give
    their logits.

    Args:
        logits (Sequence[Tensor]): Each teacher's, (B, K, ...).
        weights (Sequence[float]): How much each counts; their sum does not matter.
        sigmoid (bool): Whether classes are independent.
    """
    stacked = torch.stack([one.float() for one in logits])
    share = torch.tensor(weights, device=stacked.device).reshape(-1, *[1] * (stacked.ndim - 1))
    share = share / share.sum()
    # In logarithms: the probability of an unlikely class is 0 in float32.
    if sigmoid:
        yes, no = ((F.logsigmoid(sign * stacked) + share.log()).logsumexp(dim=0) for sign in (1, -1))
        return yes - no
    constant = stacked.logsumexp(dim=2, keepdim=True)
    return (stacked - constant + share.log()).logsumexp(dim=0) + (share * constant).sum(dim=0)
