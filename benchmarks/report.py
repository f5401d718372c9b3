"""Write the tables and pictures of the docs from the recorded results.

python benchmarks/report.py            # rewrite the tables between the markers in README.md and docs/en/
python benchmarks/report.py --check    # exit 1 if a table is out of date
"""

import argparse
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable

from accuracy import ROOT, SETTINGS, VARIANTS, records

PAGES = ['README.md', 'docs/en/benchmark.md', 'docs/en/ablations.md']
DENOISED = ROOT / 'benchmarks' / 'results' / 'denoised.jsonl'
LABELS = {
    'plain': 'plain student',
    'teacher': 'teacher',
    'dskd': '**DSKD (default)**',
    'label': 'label guidance, no logit loss (teacher-free)',
    'no-guidance': 'guidance off',
    'no-lsh': 'LSH off',
    'no-virtual': 'virtual teacher off',
    'no-anchor': 'anchor off',
    'no-logit': 'logit loss off',
    'prior-teacher': 'prior: teacher features',
    'strong-guidance': 'guidance five times as strong',
    'early-start': 'sampling from t=160 instead of t=400, guidance 8: equal in total',
    'early-start-strong-guidance': 'sampling from t=160, guidance 32: four times as strong in total',
    'no-noise': 'the same, but started without noise',
    'clean-guidance': 'guidance at the predicted clean feature',
    'local': 'target: the teacher at every location',
    'local-dense-prior-teacher': 'target: the teacher at every location; prior: teacher features, every location hashed',
    'dense-prior-teacher': 'prior: teacher features, every location hashed',
    'strong-lsh': 'LSH five times as strong',
    'middle-start': 'sampling from t=400, guidance 1, as for images',
    'anchor-only': 'control: soft anchor alone (no diffusion)',
    'anchor-only-label': 'control: label anchor alone (no diffusion, teacher-free)',
    'anchor-and-logit': 'control: soft anchor + logit loss (no diffusion)',
    'local-anchor-and-logit': 'control: anchor at every location + logit loss (no diffusion)',
    'logit-only': 'control: logit loss alone (no anchor, no diffusion)',
}


def spread(values: list[float]) -> str:
    """Mean and sample deviation; without a deviation for a single run."""
    mean = statistics.mean(values)
    return f'{mean:.2f} ± {statistics.stdev(values):.2f}' if len(values) > 1 else f'{mean:.2f}'


def selected(dataset: str, split: str, epochs: int | None = None) -> dict[str, list[dict]]:
    """Records of one data set and split by variant; the teacher's whatever its epochs."""
    found = defaultdict(list)
    for record in records():
        fits = record['dataset'] == dataset and record['split'] == split
        if fits and (epochs is None or record['epochs'] == epochs):
            found[record['variant']].append(record)
    return found


def teachers(dataset: str) -> list[float]:
    """Results of a data set's teacher, which may have been recorded for another student."""
    setting = SETTINGS[dataset]
    key = (setting.task, setting.metric, setting.pair.split()[1])
    found = [r for r in records() if r['variant'] == 'teacher']
    return [r['value'] for r in found if (r['task'], r['metric'], r['pair'].split()[1]) == key]


def verdict(gains: list[float], mean: float) -> str:
    """A gain, marked where it is within the noise of its paired differences."""
    if len(gains) > 1 and abs(mean) < 2 * statistics.stdev(gains) / len(gains) ** 0.5:
        return f'{mean:+.2f} (within noise)'
    return f'{mean:+.2f}'


def table(dataset: str, split: str, epochs: int) -> str:
    """Variants of one data set: the metric, gain over the plain student in paired seeds, share of the teacher gap closed."""
    groups = selected(dataset, split, epochs)
    teacher = teachers(dataset)
    plain = {r['seed']: r['value'] for r in groups.get('plain', [])}
    unit = SETTINGS[dataset].unit
    lines = [f'| variant | {unit}, % | gain over plain | teacher gap closed | seeds |', '| --- | --- | --- | --- | --- |']
    if teacher and split == 'test':
        lines.append(f'| teacher | {spread(teacher)} | | | {len(teacher)} |')
    for variant in VARIANTS:
        runs = groups.get(variant, [])
        if not runs or variant == 'teacher':
            continue
        values = [r['value'] for r in runs]
        gains = [r['value'] - plain[r['seed']] for r in runs if r['seed'] in plain]
        gain = share = ''
        if gains and variant != 'plain':
            mean = statistics.mean(gains)
            gain = verdict(gains, mean)
            if teacher and split == 'test':
                share = f'{mean / (statistics.mean(teacher) - statistics.mean(plain.values())):.0%}'
        lines.append(f'| {LABELS[variant]} | {spread(values)} | {gain} | {share} | {len(values)} |')
    return '\n'.join(lines)


def caption(dataset: str, split: str, epochs: int) -> str:
    """What a table shows and the command that reproduces its records."""
    groups = selected(dataset, split, epochs)
    runs = [run for variant, group in groups.items() if variant != 'teacher' for run in group]
    if not runs:
        return ''
    setting = SETTINGS[dataset]
    seeds = ','.join(map(str, sorted({run['seed'] for run in runs})))
    variants = ','.join(v for v in VARIANTS if v in groups and v != 'teacher')
    part = setting.holdout_part if split == 'holdout' else setting.test_part
    metric = 'accuracy' if setting.task == 'cls' else setting.unit
    flags = f' --epochs {epochs}' + (' --holdout' if split == 'holdout' else '')
    student, teacher = setting.pair.split()
    return (
        f'Student {student}, teacher {teacher}; {runs[0]["train_images"]:,} training images, {epochs} epochs, {metric} on '
        f'{part} after the last epoch, mean ± sample deviation over seeds.\n\n'
        f'```shell\npython benchmarks/accuracy.py --dataset {dataset} --variants {variants} --seeds {seeds}{flags}\n```'
    )


def block(dataset: str, split: str, epochs: str) -> str:
    """What stands between one pair of markers."""
    return f'{table(dataset, split, int(epochs))}\n\n{caption(dataset, split, int(epochs))}'


def denoised(config: str) -> str:
    """How good denoised features are, by the teacher's classifier: what benchmarks/denoised.py recorded for a config."""
    records_of_config = [r for r in records(DENOISED) if r['config'] == config]
    # The last word on each sampler.
    rows = {(r['start'], r['scale']): r for r in records_of_config}
    lines = ['| sampling from | guidance | to the teacher | to the annotations | accuracy, % |']
    lines.append('| --- | --- | --- | --- | --- |')
    for (start, scale), row in rows.items():
        place = f'{start:g} of the schedule | {scale:g}' if start is not None else "(the student's own feature) |"
        lines.append(f'| {place} | {row["to_teacher"]:.3f} | {row["to_label"]:.3f} | {row["accuracy"]:.2f} |')
    last = records_of_config[-1]
    return '\n'.join(lines) + (
        f'\n\nDivergences, lower is better; {config} after epoch {last["epoch"]}, {last["batches"]} batches of training '
        f'images.\n\n```shell\n{last["command"]}\n```'
    )


def rewrite(text: str, render: Callable[..., str]) -> str:
    """Replace what stands between ``<!-- table: dataset split epochs -->`` and ``<!-- end -->``."""
    pattern = re.compile(r'(<!-- table: (\S+) (\S+) (\d+) -->\n).*?(<!-- end -->)', re.DOTALL)
    return pattern.sub(lambda m: f'{m[1]}{render(m[2], m[3], m[4])}\n{m[5]}', text)


def rewrite_denoised(text: str) -> str:
    """Replace what stands between ``<!-- denoised: config -->`` and ``<!-- end -->``."""
    pattern = re.compile(r'(<!-- denoised: (\S+) -->\n).*?(<!-- end -->)', re.DOTALL)
    return pattern.sub(lambda m: f'{m[1]}{denoised(m[2])}\n{m[3]}', text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='change nothing; exit 1 if a page is out of date')
    args = parser.parse_args()
    stale = []
    for name in PAGES:
        page = ROOT / name
        text = page.read_text()
        new = rewrite_denoised(rewrite(text, block))
        if new != text:
            stale.append(name)
            if not args.check:
                page.write_text(new)
    print('\n'.join(f'{"out of date" if args.check else "updated"}: {name}' for name in stale) or 'all tables are up to date')
    sys.exit(bool(args.check and stale))


if __name__ == '__main__':
    main()
