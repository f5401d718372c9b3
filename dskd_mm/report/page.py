"""The report as one HTML page that needs nothing else: no script, no font, no picture of its own file."""

import base64
import shlex
from collections.abc import Iterable, Sequence
from datetime import date
from html import escape
from pathlib import Path
from statistics import mean, stdev

from dskd_mm.report.charts import POINTS, Series, bar_chart, line_chart, share_chart, sparkline, thinned
from dskd_mm.report.health import Finding, judge, loss_shares
from dskd_mm.report.results import Comparison, Group, compare, group_runs, main_metric, metric_name
from dskd_mm.report.runs import RunLog, is_number
from dskd_mm.report.theme import STYLE
from dskd_mm.version import __version__

CLASSWISE = (
    'mmdet logs it with <code>val_evaluator = dict(classwise=True)</code>, mmpretrain with <code>val_evaluator = '
    "[dict(type='Accuracy'), dict(type='SingleLabelMetric', average=None)]</code>; mmseg always prints it into the text log."
)


def build_report(runs: Sequence[RunLog], metric: str | None = None) -> str:
    """Return the page.

    Args:
        runs (Sequence[RunLog]): The runs, see :func:`~dskd_mm.report.runs.read_runs`.
        metric (str, optional): What to compare them by. Defaults to None, see :func:`~dskd_mm.report.results.main_metric`.

    Raises:
        ValueError: If no run has logged that metric.
    """
    groups = group_runs(runs)
    known = sorted({name for run in runs for name in run.metrics()})
    if metric is not None and metric not in known:
        raise ValueError(f'--metric expects one that the runs have logged, {known}, but got {metric!r}.')
    result = compare(groups, metric or main_metric(runs) or '')
    findings = {group.name: judge_group(group) for group in groups if group.role == 'distilled'}
    about = result.distilled or groups[0]
    parts = [
        header(about, result, findings.get(about.name, [])),
        results_section(groups, result),
        *(health_section(findings) if findings else ()),
        *(losses_section(groups) if findings else ()),
        classes_section(result),
        pictures_section(runs),
        again_section(runs),
    ]
    title = f'Distillation report: {about.runs[0].name}'
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/><meta name="color-scheme" content="light dark"/>'
        f'<link rel="icon" href="data:,"/><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f'<body><main>{"".join(parts)}</main></body></html>\n'
    )


def judge_group(group: Group) -> list[Finding]:
    """Return the findings of a group's first run."""
    run = group.runs[0]
    return judge(run.training, run.added_losses)


def header(about: Group, result: Comparison, findings: Sequence[Finding]) -> str:
    """Return the title, the verdict and the key figures."""
    cards = [
        (None if value is None else f'{value:.1f}', group.name if group else '')
        for group in (result.distilled, result.plain, result.teacher)
        for value in (result.value(group),)
    ]
    cards.append((None if result.gain is None else f'{result.gain:+.1f}', 'points gained'))
    cards.append((None if result.closed is None else f'{result.closed:.0%}', 'of the gap to the teacher closed'))
    judged = [finding for finding in findings if finding.healthy is not None]
    healthy = sum(bool(finding.healthy) for finding in judged)
    cards.append((f'{healthy} of {len(judged)}' if judged else None, 'figures of the log are healthy'))
    listed = ''.join(f'<li><b>{value}</b><span>{escape(name)}</span></li>' for value, name in cards if value is not None)
    count = len(about.runs)
    metric = f'{escape(metric_name(result.metric))}, after the last evaluation; ' if result.metric else ''
    return (
        f'<header><p class="eyebrow">Distillation report</p><h1>{escape(about.runs[0].name)}</h1>'
        f'<p class="verdict">{escape(result.verdict())}</p>'
        f'<p class="soft">{metric}{count} run{"s" * (count > 1)} of '
        f'this config. Written on {date.today():%d %B %Y} by dskd_mm {__version__}.</p><ul class="cards">{listed}</ul></header>'
    )


def results_section(groups: Sequence[Group], result: Comparison) -> str:
    """Return the curves over training and the table of all groups."""
    series, rows = [], []
    teachers = [group for group in groups if group.role == 'teacher']
    students = [group for group in groups if group.role != 'teacher' and group.last(result.metric)]
    for color, group in enumerate(students):
        curves = [curve for run in group.runs if (curve := run.curve(result.metric))]
        steps = sorted(set.intersection(*map(set, curves)))
        values = {step: [result.factor * curve[step] for curve in curves] for step in steps}
        spread = {float(step): stdev(found) for step, found in values.items() if len(found) > 1}
        means = {float(step): mean(found) for step, found in values.items()}
        series.append(Series(group.name, means, color, spread=spread))
    ends = [step for line in series for step in line.points]
    for color, group in enumerate(teachers, start=len(students)):
        level = result.value(group)
        if level is not None and ends:  # trained by another schedule: its end is what counts
            series.append(Series(f'{group.name}, at its end', {min(ends): level, max(ends): level}, color, dashed=True))
    for group in groups:
        found = [result.factor * value for value in group.last(result.metric)]
        deviation = f' ± {stdev(found):.2f}' if len(found) > 1 else ''
        bests = [result.factor * value for value in group.best(result.metric, result.choose)]
        last = f'{mean(found):.2f}{deviation}' if found else 'not evaluated'
        cells = [len(group.runs), last, f'{result.choose(bests):.2f}' if bests else '', step_time(group)]
        rows.append((f'{escape(group.name)}<br/><small>{escape(group.runs[0].name)}</small>', *cells))
    charts = [line_chart(series, (unit_of(groups), metric_name(result.metric)))] if ends else []
    losses = [
        Series(group.name, thin_curve(group.runs[0], 'loss_student' if group.role == 'distilled' else 'loss'), color)
        for color, group in enumerate(students)
    ]
    losses = [line for line in losses if len(line.points) > 1]
    if losses:
        charts.append(line_chart(losses, ('Iteration', "The student's own loss"), low=0))
    heads = ('Model', 'Runs', 'At the end', 'Best', 'Step (ms)')
    notes = ['Lines are means over runs, bands their standard deviation.'] if any(s.spread for s in series) else []
    for group in groups:
        broken = [row['step'] for run in group.runs for row in run.training if not is_number(row['loss'])]
        notes += [f'The loss of the {group.name} is not finite from iteration {min(broken)} on.'] if broken else []
    note = f'<p class="soft">{escape(" ".join(notes))}</p>' if notes else ''
    return f'<section><h2>Results</h2>{note}<div class="grid2">{"".join(charts)}</div>{table(heads, rows)}</section>'


def unit_of(groups: Sequence[Group]) -> str:
    """Return what the runs' evaluations are counted in."""
    return groups[0].runs[0].unit.capitalize()


def step_time(group: Group) -> str:
    """Return the median time of a training step, in milliseconds."""
    times = sorted(row['time'] for row in group.runs[0].training if 'time' in row)
    return f'{1000 * times[len(times) // 2]:.0f}' if times else ''


def thin_curve(run: RunLog, name: str) -> dict[float, float]:
    """Return a figure of the training by the iteration, means of a few steps."""
    rows = [(float(row.get('iter') or row['step']), float(row[name])) for row in run.training if is_number(row.get(name))]
    return dict(zip(thinned([x for x, _ in rows], POINTS), thinned([y for _, y in rows], POINTS), strict=True))


def health_section(findings: dict[str, list[Finding]]) -> Iterable[str]:
    """Yield the tables of all figures, those that are not healthy first."""
    yield '<section><h2>Health</h2><p>Every figure of the log, its mean over the last tenth of the training, and whether that '
    yield 'is in its healthy band. A figure outside of it is a place to look at, not proof of a fault.</p>'
    for name, found in findings.items():
        judged = [finding for finding in found if finding.healthy is not None]
        wrong = sum(not finding.healthy for finding in judged)
        state = 'all judged figures are healthy' if not wrong else f'{wrong} of {len(judged)} figures are not healthy'
        rows = []
        for finding in sorted(found, key=lambda finding: {False: 0, True: 1, None: 2}[finding.healthy]):
            mark = f'<span class="verdict-{finding.verdict.replace(" ", "-")}">{finding.verdict}</span>'
            advice = f'<br/>{code_words(finding.reason)}. {code_words(finding.row.mend)}' if finding.healthy is False else ''
            about = f'<code>{escape(finding.name)}</code><br/><small>{code_words(finding.row.about)}</small>'
            rows.append(
                f'<tr><th scope="row">{about}</th>'
                f'<td class="number" data-label="now">{finding.late:.3g}</td><td>{sparkline(finding.values)}</td>'
                f'<td data-label="healthy">{code_words(finding.row.healthy)}</td><td>{mark}<small>{advice}</small></td></tr>'
            )
        heads = ''.join(f'<th>{head}</th>' for head in ('Figure', 'Now', 'Over training', 'Healthy', 'Verdict'))
        yield f'<h3>{escape(name)}: {state}</h3><div class="wide"><table class="health"><thead><tr>{heads}</tr></thead>'
        yield f'<tbody>{"".join(rows)}</tbody></table></div>'
    yield '</section>'


def code_words(text: str) -> str:
    """Return Markdown's code words as HTML."""
    pieces = escape(text).split('`')
    return ''.join(f'<code>{piece}</code>' if index % 2 else piece for index, piece in enumerate(pieces))


def losses_section(groups: Sequence[Group]) -> Iterable[str]:
    """Yield what each loss is of the total, over training."""
    yield '<section><h2>What each loss contributes</h2><p>Its share of the total that is trained on. That is not its share of '
    yield 'the gradient: a divergence that cannot fall to 0 takes room here without pulling.</p><div class="grid2">'
    for group in groups:
        run = group.runs[0]
        steps, shares = loss_shares(run.training, run.added_losses) if group.role == 'distilled' else ([], {})
        if len(steps) > 1 and shares:
            thin = {name: thinned(values, 60) for name, values in shares.items()}
            yield f'<div><h3>{escape(group.name)}</h3>{share_chart(thinned(steps, 60), thin, "Iteration")}</div>'
    yield '</div></section>'


def classes_section(result: Comparison) -> str:
    """Return the gain of each class, or how to log it."""
    head = '<section><h2>Classes</h2>'
    own, plain = (group.runs[0].classwise() if group else {} for group in (result.distilled, result.plain))
    gains = {name: own[name] - plain[name] for name in own if name in plain}
    if gains:
        factor = 100 if max(map(abs, [*own.values(), *plain.values()])) <= 1 else 1
        gains = dict(sorted(((name, factor * gain) for name, gain in gains.items()), key=lambda item: -item[1]))
        return f'{head}<p>What the distilled student gained over the plain one.</p>{bar_chart(gains, "points")}</section>'
    if own:
        factor = 100 if max(own.values()) <= 1 else 1
        rows = [(escape(name), f'{factor * value:.1f}') for name, value in own.items()]
        note = '<p>The distilled student. A plain run beside it shows what each class gained.</p>'
        return f'{head}{note}{table(("Class", ""), rows)}</section>'
    return f'{head}<p>The runs have not logged results of each class. {CLASSWISE}</p></section>'


def pictures_section(runs: Sequence[RunLog]) -> str:
    """Return the pictures that ``dskd see`` left, within the page."""
    figures = [picture(path) for run in runs for path in run.pictures()]
    if not figures:
        example = runs[0].folder
        return (
            '<section><h2>Pictures</h2><p>There are none yet. This writes them, and the next report shows them:</p>'
            f'<pre>dskd see CONFIG CHECKPOINT IMAGE... --out {escape(str(example / "see"))}</pre></section>'
        )
    return f'<section><h2>Pictures</h2>{"".join(figures)}</section>'


CAPTIONS = dict(
    maps="The student's feature, what the sampling steps make of it, and the teacher's.",
    plane="The features in a plane, with the directions of the teacher's classes.",
    steps="What the teacher's classifier says of the feature at each sampling step.",
    predictions='Predictions side by side.',
)
"""What the pictures of ``dskd see`` show, by their file's name."""


def picture(path: Path) -> str:
    """Return a picture within the page."""
    data, about = base64.b64encode(path.read_bytes()).decode(), CAPTIONS.get(path.stem, path.stem)
    image = f'<img alt="{escape(about)}" src="data:image/png;base64,{data}"/>'
    return f'<figure>{image}<figcaption>{escape(about)}</figcaption></figure>'


def again(run: RunLog) -> str:
    """Return the command that trains a run once more, beside it: a dumped config may resume, and names the folder."""
    command = ['dskd', 'train', str(run.config), '--work-dir', f'{run.folder}_again']
    command += ['--cfg-options', 'resume=False'] if run.cfg.get('resume') else []
    by = run.cfg.get('launcher', 'none')
    return shlex.join(command) + (f'  # ran as several processes, by {by}' if by != 'none' else '')


def again_section(runs: Sequence[RunLog]) -> str:
    """Return commands, versions, seeds and configs."""
    rows = [
        (escape(run.name), f'<code>{escape(str(run.folder))}</code>', escape(run.environment().get('seed', 'not told')))
        for run in runs
    ]
    commands = '\n'.join(dict.fromkeys(again(run) for run in reversed(runs)))
    folders = shlex.join(str(run.folder) for run in runs)
    environment = {key: value for run in runs for key, value in run.environment().items() if key != 'seed'}
    versions = [(escape(name), escape(value)) for name, value in (environment | dict(dskd_mm=__version__)).items()]
    configs = {run.name: run.cfg.pretty_text for run in runs}
    details = ''.join(
        f'<details><summary>{escape(name)}, the whole config</summary><pre>{escape(text)}</pre></details>'
        for name, text in configs.items()
    )
    return (
        '<section><h2>Do it again</h2><p>The teacher first: its checkpoint is where the distilled config says.</p>'
        f'<pre>{escape(commands)}\ndskd report {escape(folders)}</pre>{table(("Run", "Folder", "Seed"), rows)}'
        f'{table(("Version", ""), versions)}{details}</section>'
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; cells are HTML."""
    top = ''.join(f'<th>{head}</th>' for head in heads)
    body = ''.join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
