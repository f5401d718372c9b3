"""Write the tables and pictures of the docs from the recorded results.

python benchmarks/report.py            # rewrite the tables between the markers in README.md and docs/en/, and their pictures
python benchmarks/report.py --check    # exit 1 if a table is out of date
"""

import argparse
import math
import os
import re
import statistics
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

if not __package__:  # called as a script, which sees its own folder only
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.comparison import paired, ranked, selected, spread, verdict
from benchmarks.cost_tables import Block, cost, growth
from benchmarks.health_tables import CONTROL, digits, health
from benchmarks.lead_tables import lead
from benchmarks.mmcv_tables import speed, zoo
from benchmarks.records import markdown, records
from benchmarks.runner import ROOT
from benchmarks.settings import SETTINGS
from benchmarks.shipped_tables import shipped
from benchmarks.variants import FACTORS, METHODS, SCALED, VARIANTS, beside, is_of_before, label_of, scaled
from benchmarks.zoo_tables import models
from dskd_mm.visualization.style import BLUE, GREY, ORANGE, new_figure, tidy

PICTURE_ROWS = 5
LABEL_WIDTH = 46
PAGES = [
    'README.md',
    'docs/en/benchmark.md',
    'docs/en/benchmark_before.md',
    'docs/en/ablations.md',
    'docs/en/ablations_first.md',
    'docs/en/cost.md',
    'docs/en/mmcv_ops.md',
    'docs/en/supported_models.md',
    'docs/en/deploy.md',
]
DENOISED = ROOT / 'benchmarks' / 'results' / 'denoised.jsonl'


def teachers(dataset: str, split: str, groups: dict[str, list[dict]], results: Path | None = None) -> dict[str, float]:
    """Results of the teachers of a table's students on that part of the data, by checkpoint in the order of their trainings.

    The students are those of :func:`selected`. Their teachers may have been recorded for others. Early records do not name the
    checkpoint: theirs is ''. Where a student's does not, each teacher of the data set may have been its own.
    """
    where = SETTINGS[dataset].teacher_checkpoint
    had = {r.get('teacher', '') for name, runs in groups.items() if name != 'plain' for r in runs}
    found = [r for r in records(results) if (r['variant'], r['split']) == ('teacher', split)]
    trained = {r.get('teacher', ''): r['value'] for r in found if SETTINGS[r['dataset']].teacher_checkpoint == where}
    return {name: value for name, value in trained.items() if not had or '' in had or name in had}


def written(teacher: dict[str, float]) -> str:
    """The results of teachers for a table. One that was trained again may well be the same."""
    return ', '.join(dict.fromkeys(f'{value:.2f}' for value in teacher.values()))


def gap_closed(pairs: list[tuple[dict, dict]], teacher: dict[str, float]) -> str:
    """Share of the gap between plain students and the teachers of others, by their records; '' if there is none.

    A record that does not name its teacher counts as taught by the first. The gap to one that was not recorded is not known.
    """
    first = next(iter(teacher.values()), math.nan)
    known = {'': first, **teacher}
    gain = sum(mine['value'] - plain['value'] for mine, plain in pairs)
    gap = sum(known.get(mine.get('teacher', ''), math.nan) - plain['value'] for mine, plain in pairs)
    return f'{gain / gap:.0%}' if gap > 0 else ''


def table(dataset: str, split: str, epochs: int, results: Path | None = None, before: bool | None = None) -> str:
    """Methods on one data set: the metric, gain over the plain student in paired seeds, share of the teacher gap closed.

    Args:
        dataset (str): Name of its setting.
        split (str): 'test' or 'holdout', the part of the data on which they are judged.
        epochs (int): The budget.
        results (Path, optional): File of the records. Defaults to None: the published ones.
        before (bool, optional): Methods as they were before or as they are, see :func:`compared`. Defaults to None: both.
    """
    groups = compared(dataset, split, epochs, results, before)
    teacher = teachers(dataset, split, groups, results)
    rows = [('teacher', written(teacher), '', '', '', '')] if teacher else []
    for name in ranked(groups):
        runs = groups[name]
        gain = share = ahead = ''
        if name != (plain := beside(name, 'plain', groups)):
            pairs = paired(runs, groups.get(plain, []))
            gain, share = verdict(pairs), gap_closed(pairs, teacher)
        if name != (ours := beside(name, 'dskd', groups)):
            ahead = verdict(paired(groups.get(ours, []), runs))
        rows.append((label_of(name), spread([r['value'] for r in runs]), gain, share, ahead, len(runs)))
    metric = f'{SETTINGS[dataset].unit}, %'
    return markdown(('method', metric, 'gain over plain', 'teacher gap closed', 'DSKD is ahead by', 'seeds'), rows)


def compared(
    dataset: str, split: str, epochs: int, results: Path | None = None, before: bool | None = None
) -> dict[str, list[dict]]:
    """What a table shows of :func:`selected`: each method at its default weight, and at the one that a search chose.

    With ``before`` those that were others before, beside the plain student and today's DSKD; with False all but those.
    """
    best = chosen(dataset, 'holdout', epochs, results).values()
    return {
        name: runs
        for name, runs in selected(dataset, split, epochs, results).items()
        if (name in best or name not in SCALED) and (before in (None, is_of_before(name)) or name in ('plain', 'dskd'))
    }


def search_table(dataset: str, split: str, epochs: int, results: Path | None = None) -> str:
    """Methods with all that pulls the student multiplied by the same few factors: the metric, and which is the best."""
    groups, best = selected(dataset, split, epochs, results), chosen(dataset, split, epochs, results)
    rows = []
    for method, name in best.items():
        cells = [spread([r['value'] for r in groups.get(scaled(method, f), [])] or [math.nan]) for f in FACTORS]
        factor = next(f for f in FACTORS if scaled(method, f) == name)
        rows.append((METHODS[method], *('' if cell == 'nan' else cell for cell in cells), factor))
    return markdown(('method', *(f'× {factor}' for factor in FACTORS), 'chosen'), rows)


def chosen(dataset: str, split: str, epochs: int, results: Path | None = None) -> dict[str, str]:
    """The best variant of each method by its weight, in the seeds that all of them have: of those where more than one was tried
    in a seed."""
    groups, best = selected(dataset, split, epochs, results), {}
    for method in METHODS:
        tried = {name: {r['seed']: r['value'] for r in groups[name]} for f in FACTORS if groups.get(name := scaled(method, f))}
        common = set.intersection(*map(set, tried.values())) if len(tried) > 1 else set()
        if common:
            means = {name: statistics.mean(v for seed, v in found.items() if seed in common) for name, found in tried.items()}
            best[method] = max(means, key=means.__getitem__)
    return best


def search(dataset: str, split: str, epochs: str, page: Path) -> Block:
    """See :func:`search_table`."""
    searched = [scaled(method, f) for method in chosen(dataset, split, int(epochs)) for f in FACTORS]
    groups = {name: runs for name, runs in selected(dataset, split, int(epochs)).items() if name in searched}
    return f'{search_table(dataset, split, int(epochs))}\n\n{caption(dataset, split, epochs, groups)}', {}


def reached(curve: list[list[float]], value: float) -> float | None:
    """The seconds after which a curve of (seconds, metric) is at a value at first, linear between; None if it never is."""
    before = (0.0, -math.inf)
    for at, found in curve:
        if found >= value:
            share = 1.0 if math.isinf(before[1]) or found == before[1] else (value - before[1]) / (found - before[1])
            return before[0] + share * (at - before[0])
        before = (at, found)
    return None


def times(dataset: str, split: str, epochs: str, page: Path) -> Block:
    """Seconds of training until the plain student's final metric is reached, by the records that have a curve.

    Evaluations are some epochs apart: between them lines are drawn, and before the first one nothing is known, so that a time
    is an upper bound there. Runs of one processor are compared, that of most runs; it is expected to do nothing else.
    """
    today = compared(dataset, split, int(epochs), before=False)
    groups = {name: [r for r in runs if r.get('curve')] for name, runs in today.items()}
    if not groups.get('plain'):
        return 'No curve of the plain student was recorded yet.', {}
    known = {r.get('processor') for r in groups['plain']}
    processor = statistics.mode(found for runs in groups.values() for r in runs if (found := r.get('processor')) in known)
    groups = {name: [r for r in runs if r.get('processor') == processor] for name, runs in groups.items()}
    plain = groups['plain']
    goal = statistics.mean(r['value'] for r in plain)
    whole = statistics.mean(r['curve'][-1][0] for r in plain)
    rows = []
    for name in ranked(groups):
        lengths = [r['curve'][-1][0] for r in groups[name]]
        found = [
            (at, length)
            for r, length in zip(groups[name], lengths, strict=True)
            if (at := reached(r['curve'], goal)) is not None
        ]
        cells = ('never', '', '')
        if found:
            seconds, share = statistics.mean(at for at, _ in found), statistics.mean(at / length for at, length in found)
            cells = (f'{seconds:.0f}', f'{seconds / whole:.0%}', f'{share * int(epochs):.1f}')
        rows.append((label_of(name), *cells, f'{statistics.mean(lengths):.0f}', f'{len(found)} of {len(lengths)}'))
    heads = 'method', f'seconds to {goal:.2f}', "of plain's training", 'epochs', 'whole training, s', 'seeds that reach it'
    return markdown(heads, rows), {}


def picture(dataset: str, split: str, epochs: int, results: Path | None = None, before: bool | None = None) -> Figure:
    """The table as points: mean and deviation of each method, beside the plain student and the teacher; see :func:`table`."""
    groups = compared(dataset, split, epochs, results, before)
    teacher = list(teachers(dataset, split, groups, results).values())
    names = ranked(groups)
    figure, axes = new_figure(6.4, 0.9 + 0.34 * len(names))
    for row, name in enumerate(reversed(names)):
        values = [r['value'] for r in groups[name]]
        deviation = statistics.stdev(values) if len(values) > 1 else 0
        color = {'dskd': ORANGE, 'plain': GREY}.get(name, BLUE)
        axes.errorbar(statistics.mean(values), row, xerr=deviation, fmt='o', color=color, capsize=3, markersize=5)
        axes.scatter(values, [row] * len(values), s=9, color=color, alpha=0.4)
    for value in teacher:
        axes.axvline(value, color=GREY, linestyle='--', linewidth=1.2)
    if teacher:
        axes.text(min(teacher), len(names) - 0.45, 'teacher', color=GREY, ha='right', fontsize=8)
    labels = [textwrap.fill(label_of(name).replace('**', ''), LABEL_WIDTH) for name in reversed(names)]
    axes.set_yticks(range(len(names)), labels, fontsize=8, linespacing=0.9)
    setting = SETTINGS[dataset]
    part = setting.holdout_part if split == 'holdout' else setting.test_part
    axes.set(xlabel=f'{setting.unit} (%)', ylim=(-0.6, len(names) - 0.1))
    figure.suptitle(f'{dataset}, {epochs} epochs, {part}:\nmean ± deviation over seeds', fontsize=10)
    tidy(axes)
    return figure


def caption(dataset: str, split: str, epochs: str, groups: dict[str, list[dict]]) -> str:
    """What a table of records shows and the commands that reproduce them, one for each group of methods with the same seeds."""
    if not groups:
        return ''
    setting = SETTINGS[dataset]
    by_seeds = defaultdict(list)
    for name in (*METHODS, *VARIANTS):
        if name in groups:
            by_seeds[','.join(map(str, sorted(run['seed'] for run in groups[name])))].append(name)
    part = setting.holdout_part if split == 'holdout' else setting.test_part
    metric = 'accuracy' if setting.task == 'cls' else setting.unit
    flags = f' --epochs {epochs}' + (' --holdout' if split == 'holdout' else '')
    commands = '\n'.join(
        f'python benchmarks/accuracy.py --dataset {dataset} --methods {",".join(names)} --seeds {seeds}{flags}'
        for seeds, names in sorted(by_seeds.items())
    )
    student, teacher = setting.pair.split()
    images = next(iter(groups.values()))[0]['train_images']
    return (
        f'Student {student}, teacher {teacher}; {images:,} training images, {epochs} epochs, {metric} on '
        f'{part} after the last epoch, mean ± sample deviation over seeds.\n\n```shell\n{commands}\n```'
    )


def block(dataset: str, split: str, epochs: str, when: str = 'today', *, page: Path) -> Block:
    """Methods on one data set, as they are today or with 'before' as they were: the table, its picture if there is one to draw,
    and the command."""
    if when not in ('today', 'before'):
        raise ValueError(f"A table's last word must be 'today' or 'before', but got {when!r}: mend its marker.")
    place, before = (dataset, split, int(epochs)), when == 'before'
    groups = compared(*place, before=before)
    parts, pictures = [table(*place, before=before), caption(dataset, split, epochs, groups)], {}
    if len(groups) >= PICTURE_ROWS:
        name = '_'.join(('accuracy', dataset, split, epochs, *(['before'] if before else [])))
        path = ROOT / 'docs' / 'en' / 'images' / f'{name}.png'
        parts.insert(1, f'![{dataset}: methods compared]({os.path.relpath(path, page.parent)})')
        pictures[path] = partial(picture, *place, before=before)
    return '\n\n'.join(parts), pictures


def overview(*columns: str, page: Path) -> Block:
    """Methods on several data sets, each given as dataset/split/epochs: mean, deviation, number of seeds; the best in bold."""
    places = [(dataset, split, int(epochs)) for dataset, split, epochs in (column.split('/') for column in columns)]
    found = [selected(*place) for place in places]
    order = dict.fromkeys(('plain', 'dskd', 'published', 'label', CONTROL, *METHODS))
    names = [name for name in order if any(groups.get(name) for groups in found)]
    cells = {name: [''] * len(places) for name in names}
    for column, groups in enumerate(found):
        values = {name: [r['value'] for r in groups[name]] for name in names if groups.get(name)}
        means = {name: round(statistics.mean(each), 2) for name, each in values.items()}  # as they are shown: some tie
        for name, each in values.items():
            text = spread(each)
            cells[name][column] = f'{f"**{text}**" if means[name] == max(means.values()) else text} ({len(each)})'
    teacher = [written(teachers(dataset, split, groups)) for (dataset, split, _), groups in zip(places, found, strict=True)]
    parts = dict(test='', holdout=' (held out)')
    heads = [f'{dataset}, {SETTINGS[dataset].unit}{parts[split]}' for dataset, split, _ in places]
    rows = [['teacher', *teacher], *([label_of(name).replace('**', ''), *cells[name]] for name in names)]
    return markdown(['method', *heads], rows), {}


def denoised(config: str, page: Path) -> Block:
    """How good denoised features are, by the teacher's classifier: what benchmarks/denoised.py recorded for a config."""
    records_of_config = [r for r in records(DENOISED) if r['config'] == config]
    if not records_of_config:
        return f'Nothing was recorded of {config} yet: run benchmarks/denoised.py.', {}
    # The last word on each sampler.
    cells = []
    for (start, scale), row in {(r['start'], r['scale']): r for r in records_of_config}.items():
        place = (f'{start:g} of the schedule', f'{scale:g}') if start is not None else ("(the student's own feature)", '')
        cells.append((*place, f'{row["to_teacher"]:.3f}', f'{row["to_label"]:.3f}', f'{row["accuracy"]:.2f}'))
    last = records_of_config[-1]
    text = markdown(('sampling from', 'guidance', 'to the teacher', 'to the annotations', 'accuracy, %'), cells) + (
        f'\n\nDivergences, lower is better; {config} after epoch {last["epoch"]}, {last["batches"]} batches of training '
        f'images.\n\n```shell\n{last["command"]}\n```'
    )
    return text, {}


BLOCKS: dict[str, Callable[..., Block]] = dict(
    table=block,
    overview=overview,
    lead=lead,
    search=search,
    times=times,
    health=health,
    digits=digits,
    denoised=denoised,
    cost=cost,
    growth=growth,
    zoo=zoo,
    speed=speed,
    models=models,
    shipped=shipped,
)
MARKED = re.compile(rf'(<!-- ({"|".join(BLOCKS)}): (.*?) -->\n).*?(<!-- end -->)', re.DOTALL)


def rewrite(text: str, page: Path) -> Block:
    """Replace what stands between ``<!-- kind: arguments -->`` and ``<!-- end -->``, whose kind is one of :data:`BLOCKS`."""
    pictures: dict[Path, partial[Figure]] = {}

    def render(match: re.Match) -> str:
        body, drawn = BLOCKS[match[2]](*match[3].split(), page=page)
        pictures.update(drawn)
        return f'{match[1]}{body}\n{match[4]}'

    return MARKED.sub(render, text), pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='change nothing; exit 1 if a page is out of date')
    args = parser.parse_args()
    stale = []
    for name in PAGES:
        page = ROOT / name
        text = page.read_text()
        new, pictures = rewrite(text, page)
        if new != text:
            stale.append(name)
            if not args.check:
                page.write_text(new)
        for path, draw in pictures.items():
            if new != text or not path.exists():
                stale.append(str(path.relative_to(ROOT)))
                if not args.check:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    draw().savefig(path)
    print('\n'.join(f'{"out of date" if args.check else "updated"}: {name}' for name in stale) or 'all tables are up to date')
    sys.exit(bool(args.check and stale))


if __name__ == '__main__':
    main()
