"""Tables and pictures of what benchmarks/cost.py recorded."""

import math
import os
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.records import markdown, records
from benchmarks.runner import ROOT
from benchmarks.variants import METHODS
from dskd_mm.visualization.style import BLUE, GREEN, GREY, ORANGE, PINK, SKY, new_figure, tidy

RESULTS = ROOT / 'benchmarks' / 'results' / 'cost.jsonl'
IMAGES = ROOT / 'docs' / 'en' / 'images'
LABELS = METHODS | {'teacher_free': '**DSKD**, teacher-free'}
COLORS = {
    'student': GREY,
    'optimizer': '#AAAAAA',
    'teacher': SKY,
    'anchor': PINK,
    'denoiser training': BLUE,
    'sampling': ORANGE,
    'guidance': '#F0E442',
    'hashing': GREEN,
    'other losses': '#7F5539',
}
Block = tuple[str, dict[Path, partial[Figure]]]
"""What stands between two markers of a page, and the pictures that it shows with what draws them."""


def compared(config: str, device: str) -> list[dict]:
    """The last record of each method on one pair, the plain student first, then by added time."""
    key = dict(config=f'configs/dskd/{config}.py', device=device, options={})
    found = {r['variant']: r for r in records(RESULTS) if all(r.get(name) == value for name, value in key.items())}
    return sorted(found.values(), key=lambda r: (r['variant'] != 'plain', r['step_seconds']))


def times(value: float, spread: float) -> str:
    """A ratio with its spread."""
    return f'{value:.2f} ± {spread:.2f}'


def cost(config: str, device: str, page: Path) -> Block:
    """Methods on one pair: time, memory, parameters and operations beside the plain student's, and where the time goes."""
    rows, cells = compared(config, device), []
    plain = rows[0]
    for row in rows:
        floor = times(row['floor_ratio'], row['floor_ratio_spread']) if row['uses_teacher_forward'] else ''
        ratio = times(row['step_ratio'], row['step_ratio_spread']) if row['variant'] != 'plain' else ''
        added = f'{row["added_seconds"]:.2f}' if ratio else ''
        share = f'{row["added_flops"] / plain["step_flops"]:+.0%}' if ratio else f'{row["step_flops"] / 1e9:,.0f} G'
        memory = f'{row["memory_ratio"]:.2f}' if ratio else f'{row["peak_bytes"] / 2**20:,.0f} MiB'
        parameters = f'{row["added_parameters"] / 1e6:.2f} M' if ratio else ''
        cells.append((LABELS[row['variant']], f'{row["step_seconds"]:.2f}', ratio, floor, added, memory, parameters, share))
    columns = 'method', 'step, s', '× plain', '× floor', 'adds, s', 'memory', 'parameters added', 'operations added'
    sampling = '; '.join(
        f'{LABELS[row["variant"]].replace("**", "")} {times(row["sampler_ratio"], row["sampler_ratio_spread"])} '
        f'({row["unguided_sampler_ratio"]:.2f} without guidance)'
        for row in rows
        if 'sampler_ratio' in row
    )
    beside = f' Sampler beside bare passes of its denoiser: {sampling}.' if sampling else ''
    height, width = plain['size']
    path = IMAGES / f'cost_{config}_{device}.png'
    text = markdown(columns, cells) + (
        f'\n\n![{config}: where the time goes]({os.path.relpath(path, page.parent)})\n\n'
        f'{plain["images"]} images of {height} x {width} in {"bfloat16" if plain["amp"] else "float32"} on {device} '
        f'({plain["device_name"]}), medians of {plain["rounds"]} rounds ± deviation; the '
        f'teacher takes {plain["teacher_seconds"]:.2f} s under DSKD.{beside}\n\n'
        f'```shell\n{plain["command"]}\n```'
    )
    return text, {path: partial(bars, config, device)}


def bars(config: str, device: str) -> Figure:
    """Where the time of a step goes, by method."""
    rows = compared(config, device)[::-1]
    figure, axes = new_figure(7.2, 1.3 + 0.34 * len(rows))
    left = [0.0] * len(rows)
    for part, color in COLORS.items():
        widths = [row['parts'].get(part, 0) * row['step_seconds'] for row in rows]
        if any(widths):
            axes.barh(range(len(rows)), widths, left=left, color=color, label=part, height=0.65)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [LABELS[row['variant']].replace('**', '') for row in rows], fontsize=8)
    axes.set(xlabel='seconds a step')
    tidy(axes)
    figure.legend(loc='outside lower center', ncols=5, fontsize=7, frameon=False)
    figure.suptitle(f'{config} on {device}', fontsize=10)
    return figure


def growth(device: str, page: Path) -> Block:
    """How DSKD's own step grows, axis by axis."""
    found: dict[str, dict[int, dict]] = {}
    for row in records(RESULTS):
        if 'growth' in row and row['device'] == device:
            found.setdefault(row['growth'], {})[row['value']] = row
    cells = []
    for axis, rows in found.items():
        points = sorted(rows.items())
        seconds = ', '.join(f'{row["step_seconds"]:.3f}' for _, row in points)
        cells.append((axis, ', '.join(str(v) for v, _ in points), seconds, f'{exponent(points):.2f}'))
    last = next(iter(found['steps'].values()))
    path = IMAGES / f'cost_growth_{device}.png'
    text = markdown(('axis', 'values', 'seconds', 'exponent'), cells) + (
        f'\n\n![How the cost grows]({os.path.relpath(path, page.parent)})\n\nSeconds of a step of DSKD alone, teacher-free, on '
        f'features without a student around them, medians of {last["rounds"]} rounds. What is not varied: 4 maps of 32 x 32 '
        'with 256 channels, one level, 5 steps, 2,048 bits, no window. The exponent is the slope between the last two points '
        f'on logarithmic axes: 1 is linear.\n\n```shell\n{last["command"]}\n```'
    )
    return text, {path: partial(curves, found)}


def exponent(points: list[tuple[int, dict]]) -> float:
    """Slope of the seconds between the last two points, on logarithmic axes."""
    (a, first), (b, second) = points[-2:]
    return math.log(second['step_seconds'] / first['step_seconds']) / math.log(b / a)


def curves(found: dict[str, dict[int, dict]]) -> Figure:
    """Seconds of a step against each axis."""
    figure, grid = new_figure(8.4, 4.6, 2, 3)
    for axes, (axis, rows) in zip(grid.flat, found.items(), strict=True):
        points = sorted(rows.items())
        values = [row['step_seconds'] for _, row in points]
        axes.errorbar([v for v, _ in points], values, yerr=[row['step_spread'] for _, row in points], marker='o', color=BLUE)
        axes.set(xlabel=axis, ylim=(0, None))
        if axis in ('channels', 'size', 'bits'):
            axes.set_xscale('log', base=2)
        tidy(axes)
    grid[0, 0].set_ylabel('seconds a step')
    grid[1, 0].set_ylabel('seconds a step')
    return figure
