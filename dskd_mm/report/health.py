"""Whether a run's figures are healthy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from dskd_mm.report.log_keys import LogKey, find_log_key

SHARE = 10
"""Figures are averaged over the last tenth of what was logged."""
LEAST = 3
"""Steps that are averaged at least, and that a trend needs."""
NOISE = 0.05
"""By how much of its value a figure may go the other way, as figures of single batches do."""


@dataclass(frozen=True)
class Finding:
    """What is found of a figure.

    Attributes:
        name (str): Its name in the log.
        row (LogKey): What the table says of it.
        values (list[float]): All logged values.
        early (float): The mean of the first tenth after the warm-up.
        late (float): The mean of the last tenth.
        healthy (bool, optional): Whether it is within its band; None if it has none, or the run is too short.
        reason (str): Why, in words.
    """

    name: str
    row: LogKey
    values: list[float]
    early: float
    late: float
    healthy: bool | None
    reason: str

    @property
    def verdict(self) -> str:
        """The finding in a word or two."""
        return {True: 'healthy', False: 'not healthy', None: 'not judged'}[self.healthy]


def judge(training: Sequence[Mapping[str, Any]], added: Sequence[str] = ()) -> list[Finding]:
    """Hold everything that a training logged to the bands of :data:`~dskd_mm.report.log_keys.LOG_KEYS`.

    Args:
        training (Sequence[Mapping]): The logged steps, oldest first.
        added (Sequence[str]): Names of ``distill_losses``. Defaults to none.

    Returns:
        list[Finding]: One for each known key, in the order of the log.
    """
    names = dict.fromkeys(name for row in training for name in row)
    rows = [(name, find_log_key(name, added)) for name in names]
    return [judge_one(name, row, training) for name, row in rows if row is not None]


def judge_one(name: str, row: LogKey, training: Sequence[Mapping[str, Any]]) -> Finding:
    """Judge one figure.

    Args:
        name (str): Its name in the log.
        row (LogKey): Its row of the table.
        training (Sequence[Mapping]): The logged steps.
    """
    # Losses are multiplied with the warm-up: what they did before says nothing.
    warm = [step for step in training if 'loss' not in name or step.get('distill_warmup', 1) >= 1]
    values, after = column(training, name), column(warm, name)
    early, late = average(after[: tenth(after)] or values), average(values[-tenth(values) :])
    finding = Finding(name, row, values, early, late, None, '')
    others = {key: column(training, key) for key in (row.below, row.above) if key}
    missing = [key for key, found in others.items() if not found]
    if not row.is_judged or missing:
        return replace(finding, reason=f'{missing[0]} is not logged' if missing else 'no band')
    if row.trend and len(after) < LEAST:
        return replace(finding, reason=f'{len(after)} logged steps after the warm-up are too few')
    compared = {key: average(found[-tenth(found) :]) for key, found in others.items()}
    checks = [
        (row.low is None or late >= row.low - 1e-6, f'{late:.3g}, at least {row.low} is healthy'),
        (row.high is None or late <= row.high + 1e-6, f'{late:.3g}, at most {row.high} is healthy'),
        (row.trend != 'falls' or late <= early * (1 + NOISE), f'from {early:.3g} to {late:.3g}'),
        (row.trend != 'rises' or late >= early * (1 - NOISE), f'from {early:.3g} to {late:.3g}'),
        (not row.below or late <= row.margin * compared[row.below], f'{late:.3g} beside {row.below}'),
        (not row.above or late >= row.margin * compared[row.above], f'{late:.3g} beside {row.above}'),
    ]
    wrong = [reason for fits, reason in checks if not fits]
    return replace(finding, healthy=not wrong, reason=wrong[0] if wrong else '')


def column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return all numbers of a name; what is not logged in every step has fewer."""
    return [float(row[name]) for row in rows if isinstance(row.get(name), (int, float))]


def tenth(values: Sequence[float]) -> int:
    """Return how many values a tenth are, at least three: single batches are noisy."""
    return max(LEAST, len(values) // SHARE)


def average(values: Sequence[float]) -> float:
    """Return the mean."""
    return mean(values) if values else float('nan')


def loss_shares(training: Sequence[Mapping[str, Any]], added: Sequence[str] = ()) -> tuple[list[float], dict[str, list[float]]]:
    """Return what each loss is of the total over the training.

    Args:
        training (Sequence[Mapping]): The logged steps.
        added (Sequence[str]): Names of ``distill_losses``. Defaults to none.

    Returns:
        tuple[list[float], dict[str, list[float]]]: The iterations, and for each loss its share of the total there, 0 to 1. The
        student's own losses are one, ``loss_student``.
    """
    ours = [name for name in dict.fromkeys(key for row in training for key in row) if name != 'loss' and 'loss' in name]
    ours = [name for name in ours if find_log_key(name, added) is not None]
    rows = [row for row in training if 0 < float(row['loss']) < math.inf]
    steps = [float(row.get('iter', row['step'])) for row in rows]
    return steps, {name: [float(row.get(name, 0)) / float(row['loss']) for row in rows] for name in ours}
