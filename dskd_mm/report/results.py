"""What came out: runs of the same config together, and what that means in a sentence."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from dskd_mm.report.runs import METRICS, RunLog, role
from dskd_mm.utils.config import default_hook, type_name

PERCENT = re.compile(r'(accuracy|single-label|multi-label)/|[am](Acc|IoU|Dice|Fscore|Precision|Recall)$')
"""Metrics that hosts log in percent; others are shares where none is above 1."""
KINDS = dict(plain='plain student', teacher='teacher')


@dataclass(frozen=True)
class Group:
    """Runs of one config, which differ by their seeds.

    Attributes:
        role (str): 'plain', 'distilled' or 'teacher'.
        name (str): What the report calls it.
        runs (list[RunLog]): The runs.
    """

    role: str
    name: str
    runs: list[RunLog]

    def last(self, metric: str) -> list[float]:
        """Return each run's last result."""
        return [list(curve.values())[-1] for run in self.runs if (curve := run.curve(metric))]

    def best(self, metric: str, choose: Callable[..., float] = max) -> list[float]:
        """Return each run's best result, or what else is chosen of its curve."""
        return [choose(curve.values()) for run in self.runs if (curve := run.curve(metric))]

    def progress(self, metric: str) -> str:
        """Return how far its runs are that have not ended, '' if all have or their length is not told."""
        ends = [(max(curve), run) for run in self.runs if (curve := run.curve(metric)) and run.length]
        step, run = min(ends, key=lambda end: end[0] / (end[1].length or 1), default=(0, None))
        return '' if run is None or step >= (run.length or 0) else f'{run.unit} {step} of {run.length}'


def group_runs(runs: Sequence[RunLog]) -> list[Group]:
    """Put runs that differ by their seeds together: plain ones first, then distilled ones, then teachers."""
    found: list[tuple[str, list[RunLog]]] = []
    for run in runs:
        kind = role(run, runs)
        same = (group for own, group in found if (own, group[0].name, group[0].settings) == (kind, run.name, run.settings))
        group = next(same, None)
        if group is None:
            found.append((kind, [run]))
        else:
            group.append(run)
    groups = []
    for kind in ('plain', 'distilled', 'teacher'):
        members = [group for own, group in found if own == kind]
        for group, name in zip(members, tell_apart([group[0] for group in members], kind), strict=True):
            groups.append(Group(kind, name[0].upper() + name[1:], group))
    return groups


def tell_apart(runs: Sequence[RunLog], kind: str) -> list[str]:
    """Return names of runs of a kind: with the config where the kind is not enough, with the folder where both are not."""
    short = [f'{run.method} student' if kind == 'distilled' else KINDS[kind] for run in runs]
    full = [f'{name} ({run.name})' for name, run in zip(short, runs, strict=True)]
    folders = [f'{name} ({run.folder.resolve().name})' for name, run in zip(short, runs, strict=True)]
    ways = [way for way in (short, full) if len(set(way)) == len(runs)]
    return [*ways, folders][0]


def main_metric(runs: Sequence[RunLog]) -> str | None:
    """Return what runs are compared by: what ``save_best`` names, else the first of :data:`METRICS`, else any; None if none."""
    there = [name for name in runs[0].metrics() if all(name in run.metrics() for run in runs)] or runs[0].metrics()
    for run in runs:
        hook = default_hook(run.cfg, 'checkpoint')
        if isinstance(hook.get('save_best'), str) and hook['save_best'] in there and type_name(hook):
            return hook['save_best']
    return next((name for name in METRICS if name in there), there[0] if there else None)


@dataclass(frozen=True)
class Comparison:
    """The main result in numbers, in percent or in the metric's own unit.

    Attributes:
        metric (str): The metric.
        factor (float): 100 for metrics between 0 and 1, else 1.
        distilled (Group, optional): The distilled students that are looked at: the best ones.
        plain (Group, optional): The plain students of the same model.
        teacher (Group, optional): Their teacher.
        choices (int): How many kinds of distilled students there are.
        lower (bool): Whether the metric is better the lower it is.
    """

    metric: str
    factor: float
    distilled: Group | None
    plain: Group | None
    teacher: Group | None
    choices: int
    lower: bool

    @property
    def choose(self) -> Callable[..., float]:
        """Return what picks the best value of the metric."""
        return min if self.lower else max

    @property
    def progress(self) -> str:
        """Return how far the compared students are that have not ended, '' if they have."""
        return next((text for group in (self.distilled, self.plain) if group and (text := group.progress(self.metric))), '')

    def value(self, group: Group | None) -> float | None:
        """Return the mean of a group's last results."""
        values = [] if group is None else group.last(self.metric)
        return self.factor * mean(values) if values else None

    @property
    def gain(self) -> float | None:
        """Return what distillation gave over the plain students, above 0 if they are better; None until both have ended."""
        values = self.value(self.distilled), self.value(self.plain)
        if values[0] is None or values[1] is None or self.progress:
            return None
        return values[1] - values[0] if self.lower else values[0] - values[1]

    @property
    def noise(self) -> float | None:
        """Return the standard deviation of that between two runs; None with a single run of either."""
        if self.distilled is None or self.plain is None:
            return None
        values = [group.last(self.metric) for group in (self.distilled, self.plain)]
        if min(map(len, values)) < 2:
            return None
        return self.factor * sum(stdev(found) ** 2 for found in values) ** 0.5

    @property
    def closed(self) -> float | None:
        """Return which share of the plain students' distance to the teacher is gone; None where there is none."""
        values = self.value(self.plain), self.value(self.teacher)
        if self.gain is None or values[0] is None or values[1] is None:
            return None
        distance = values[0] - values[1] if self.lower else values[1] - values[0]
        return None if distance < 0.1 else self.gain / distance

    def verdict(self) -> str:
        """Return the result in a sentence or two."""
        own, plain, teacher = (self.value(group) for group in (self.distilled, self.plain, self.teacher))
        name = metric_name(self.metric)
        if own is None or self.distilled is None:
            value = self.value(self.plain)
            return (
                'Nothing is evaluated yet.' if value is None else f'The student reaches {value:.1f} {name}; none is distilled.'
            )
        best = f'The {self.distilled.name}' if self.choices == 1 else f'Best of {self.choices}: the {self.distilled.name}'
        if self.progress:
            return f'{best} reaches {own:.1f} {name} so far. Runs have not ended ({self.progress}): what it gave shows then.'
        if self.gain is None:
            text = f'{best} reaches {own:.1f} {name}'
            text += '' if teacher is None else f', its teacher {teacher:.1f}'
            return f'{text}. Add the folder of a plain run to see what distillation gave.'
        side = 'above' if (self.gain >= 0) != self.lower else 'below'
        text = f'{best} reaches {own:.1f} {name}, '
        text += f'{abs(self.gain):.1f} points {side} the plain one ({plain:.1f})'
        if self.closed is not None and self.gain > 0:
            text += f': {self.closed:.0%} of the way to its teacher ({teacher:.1f})'
        elif teacher is not None:
            text += f'; its teacher reaches {teacher:.1f}'
        if self.noise is None:
            return f'{text}. With a single run of a student, chance is not ruled out.'
        if abs(self.gain) < self.noise:
            return f'{text}. That is within noise (standard deviation {self.noise:.1f}).'
        return f'{text}. Runs differ by a standard deviation of {self.noise:.1f}.'


def metric_name(metric: str) -> str:
    """Return a metric as people call it."""
    known = {'accuracy/top1': '% top-1 accuracy', 'coco/bbox_mAP': 'box mAP', 'coco/segm_mAP': 'mask mAP', 'mIoU': 'mIoU'}
    return known.get(metric, metric)


def compare(groups: Sequence[Group], metric: str) -> Comparison:
    """Pick the best distilled students, the plain ones of the same model and their teacher."""
    values = [value for group in groups for value in group.best(metric)]
    factor = 100.0 if values and max(values) <= 1 and not PERCENT.match(metric) else 1.0
    lower = any(run.lower_is_better(metric) for group in groups for run in group.runs)
    distilled = [group for group in groups if group.role == 'distilled' and group.last(metric)]
    best = max(distilled, key=lambda group: (-1 if lower else 1) * mean(group.last(metric)), default=None)
    plain = [group for group in groups if group.role == 'plain']
    if best is not None:
        # First those of exactly that model, then those that are trained by another loss.
        plain = [group for group in plain if group.runs[0].network == best.runs[0].network]
        ours = best.runs[0]
        plain.sort(key=lambda group: (group.runs[0].model != ours.model, group.runs[0].length != ours.length))
    teachers = [group for group in groups if group.role == 'teacher']
    taught = [group for group in teachers if best is not None and any(best.runs[0].taught_by(run) for run in group.runs)]
    first_plain, first_teacher = (next(iter(found), None) for found in (plain, [*taught, *teachers]))
    return Comparison(metric, factor, best, first_plain, first_teacher, choices=len(distilled), lower=lower)
