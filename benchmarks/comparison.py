"""Groups of records, and how they compare."""

import statistics
from collections import defaultdict
from pathlib import Path

from scipy.stats import ttest_rel

from benchmarks.records import records
from benchmarks.variants import METHODS, VARIANTS


def spread(values: list[float]) -> str:
    """Mean and sample deviation; without a deviation for a single run."""
    mean = statistics.mean(values)
    return f'{mean:.2f} ± {statistics.stdev(values):.2f}' if len(values) > 1 else f'{mean:.2f}'


def with_error(values: list[float]) -> str:
    """Mean and standard error; without an error for a single value."""
    mean = statistics.mean(values)
    return f'{mean:+.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}' if len(values) > 1 else f'{mean:+.2f}'


def selected(dataset: str, split: str, epochs: int, results: Path | None = None) -> dict[str, list[dict]]:
    """Records of students of one data set, split and budget by variant."""
    found = defaultdict(list)
    for record in records(results):
        fits = (record['dataset'], record['split'], record['epochs']) == (dataset, split, epochs)
        if fits and record['variant'] != 'teacher':
            found[record['variant']].append(record)
    return found


def verdict(pairs: list[tuple[dict, dict]]) -> str:
    """Mean difference of paired records and, if there are several that differ, the p-value of a paired t-test."""
    if not pairs:
        return ''
    values = [(a['value'], b['value']) for a, b in pairs]
    differences = [a - b for a, b in values]
    mean = statistics.mean(differences)
    if max(differences) - min(differences) < 1e-9:  # no spread to compare the mean with
        return f'{mean:+.2f}'
    p = float(ttest_rel(*zip(*values, strict=True)).pvalue)
    return f'{mean:+.2f} (p={p:.2f})' if p >= 0.01 else f'{mean:+.2f} (p<0.01)'


def paired(runs: list[dict], others: list[dict]) -> list[tuple[dict, dict]]:
    """Those of two groups of records that have the same seeds."""
    by_seed = {r['seed']: r for r in others}
    return [(r, by_seed[r['seed']]) for r in runs if r['seed'] in by_seed]


def ranked(groups: dict[str, list[dict]]) -> list[str]:
    """Names of groups of records: the plain student first, the best of the others next."""
    names = [name for name in (*METHODS, *VARIANTS) if groups.get(name)]
    return sorted(names, key=lambda name: (name != 'plain', -statistics.mean(r['value'] for r in groups[name])))
