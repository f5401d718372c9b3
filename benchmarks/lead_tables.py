"""How far DSKD is ahead of each other method, by runs that began with the same student."""

import statistics
from pathlib import Path

from benchmarks.comparison import paired, selected, with_error
from benchmarks.cost_tables import Block
from benchmarks.health_tables import CONTROL
from benchmarks.records import markdown
from benchmarks.variants import METHODS, VARIANTS, is_of_before, label_of, method_of

SHARED_FROM = 5
"""From this seed on a student has the same first weights under every method. In earlier records a method's modules had drawn
from the same random numbers first."""
OWN = (CONTROL, 'published', 'label')
"""Variants of DSKD that it is compared with: without the diffusion, and its other presets."""


def lead(dataset: str, epochs: str, *, page: Path) -> Block:
    """DSKD's lead over each rival, whatever its options, and over its own :data:`OWN`.

    Mean and standard error over the seeds of the same first weights. The closest on held-out images comes first; what ran no
    such seed has no row.

    Args:
        dataset (str): Name of its setting.
        epochs (str): The budget.
        page (Path): The page that shows it.
    """
    parts = [selected(dataset, split, int(epochs)) for split in ('holdout', 'test')]
    rows = []
    rivals = [name for name in (*METHODS, *VARIANTS) if method_of(name) != 'dskd' and not is_of_before(name)]
    for name in (*OWN, *rivals):
        pairs = [paired(groups.get('dskd', []), groups.get(name, [])) for groups in parts]
        leads = [{a['seed']: a['value'] - b['value'] for a, b in pair if a['seed'] >= SHARED_FROM} for pair in pairs]
        seeds = sorted(set.intersection(*map(set, leads)))
        if seeds:
            held_out, test = ([lead[seed] for seed in seeds] for lead in leads)
            cells = label_of(name), with_error(held_out), with_error(test), ', '.join(map(str, seeds))
            rows.append((statistics.mean(held_out), cells))
    return markdown(('DSKD is ahead of', 'held out', 'test', 'seeds'), [cells for _, cells in sorted(rows)]), {}
