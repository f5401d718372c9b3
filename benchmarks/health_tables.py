"""Tables of what was logged of the diffusion's health, and of what it gives on digits."""

import statistics
from pathlib import Path

from benchmarks.comparison import paired, ranked, selected, spread, verdict
from benchmarks.cost_tables import Block
from benchmarks.diffusion_health import RESULTS as HEALTH
from benchmarks.records import markdown, records
from benchmarks.variants import beside, label_of

CONTROL = 'anchor-and-logit'
FIGURES = dict(kl='divergence', cosine='cosine', gap='gap')
METRICS = {'cls': 'top-1, %', 'det': 'mAP, %', 'seg': 'mIoU, %'}


def of_digits(task: str, epochs: int) -> dict[str, list[dict]]:
    """Return the records of a task of the digits by variant; of runs that were repeated the last."""
    last = {(r['variant'], r['seed']): r for r in records(HEALTH) if (r['task'], r['epochs']) == (task, epochs)}
    return {name: [r for r in last.values() if r['variant'] == name] for name, _ in last}


def digits(task: str, epochs: str, page: Path) -> Block:
    """Variants on held-out digits: the metric, and in paired seeds the gain over the plain student and over the control."""
    groups = of_digits(task, int(epochs))
    rows = []
    for name in ranked(groups):
        others = [beside(name, other, groups) for other in ('plain', CONTROL)]
        gains = [verdict(paired(groups[name], groups.get(other, []))) if name != other else '' for other in others]
        rows.append((label_of(name), spread([r['value'] for r in groups[name]]), *gains, len(groups[name])))
    return markdown(('variant', METRICS[task], 'gain over plain', 'gain over the control', 'seeds'), rows), {}


def moved(value: dict[str, float], figure: str) -> str:
    """From where to where denoising moves a figure; '' where it was not logged, as the cosine of who never sees the teacher."""
    ends = [value.get(f'dskd_{figure}_{name}') for name in ('student', 'denoised')]
    return '' if None in ends else ' → '.join(f'{end:.2f}' for end in ends)


def health(dataset: str, split: str, epochs: str, page: Path) -> Block:
    """What the log of runs said of the diffusion, means over the seeds whose log has it.

    The gap was logged before the cosine took its place.

    Args:
        dataset (str): The name of a setting, or 'digits'.
        split (str): The part of the data; of the digits the task.
        epochs (str): The budget.
        page (Path): The page that shows it.
    """
    groups = of_digits(split, int(epochs)) if dataset == 'digits' else selected(dataset, split, int(epochs))
    rows = []
    for name in ranked(groups):
        figures = [r['health'] for r in groups[name] if 'dskd_noise_error' in r.get('health', {}).get('late', {})]
        for place in ('early', 'middle', 'late') if figures else ():
            keys = {key for f in figures for key in f[place]}
            value = {key: statistics.mean(f[place][key] for f in figures if key in f[place]) for key in keys}
            moves = [moved(value, figure) for figure in FIGURES]
            errors = f'{value["dskd_noise_error"]:.2f} ({value["dskd_trivial_error"]:.2f})'
            rows.append((label_of(name), place, *moves, errors, f'{100 * value["dskd_gate"]:.0f}', len(figures)))
    titles = [f'{title}, z → ẑ' for title in FIGURES.values()]
    heads = ('variant', 'when', *titles, 'noise error (trivial filter)', 'ẑ nearer, %', 'seeds')
    return markdown(heads, rows) if rows else 'No health was recorded yet.', {}
