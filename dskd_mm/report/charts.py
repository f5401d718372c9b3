"""Charts as SVG, whose colours are those of the page: they follow its light and its dark theme."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
COLORS = 6
"""Colours of the page's theme, ``--c0`` to ``--c5``."""
POINTS = 120
"""Points that a line is thinned to: a screen shows no more."""


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name (str): What the legend calls it.
        points (Mapping[float, float]): Values by their place on the horizontal axis.
        color (int): Number of a colour of the theme. Defaults to 0.
        dashed (bool): Defaults to False.
        spread (Mapping[float, float]): Half the height of a band around it. Defaults to none.
    """

    name: str
    points: Mapping[float, float]
    color: int = 0
    dashed: bool = False
    spread: Mapping[float, float] = field(default_factory=dict)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers between two, about so many."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * unit for unit in (1, 2, 2.5, 5, 10) if size * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """Return a number as axes show it."""
    return f'{value / 1000:g}k' if abs(value) >= 10000 else f'{value:g}'


class Axes:
    """The frame of a chart: two axes and their ticks.

    Args:
        x (tuple[float, float]): Ends of the horizontal axis.
        y (tuple[float, float]): Ends of the vertical axis.
        titles (tuple[str, str]): What they are of.
    """

    def __init__(self, x: tuple[float, float], y: tuple[float, float], titles: tuple[str, str]) -> None:
        self.x, self.y, self.titles = x, y, titles

    def place(self, x: float, y: float) -> str:
        """Return where a point is, as SVG writes it."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return f'{LEFT + across * (WIDTH - LEFT - RIGHT):.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}'

    def svg(self, about: str, content: str) -> str:
        """Return the chart.

        Args:
            about (str): What it shows, for those who cannot see it.
            content (str): What is drawn within the axes.
        """
        parts = []
        for value in ticks(*self.y):
            across, up = self.place(self.x[0], value).split(',')
            parts.append(f'<line class="grid" x1="{across}" x2="{WIDTH - RIGHT}" y1="{up}" y2="{up}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{up}" dy=".35em" text-anchor="end">{label(value)}</text>')
        for value in ticks(*self.x):
            across = self.place(value, self.y[0]).split(',')[0]
            parts.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{label(value)}</text>')
        below, beside = map(escape, self.titles)
        middle = (HEIGHT - BOTTOM + TOP) / 2
        parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{below}</text>')
        parts.append(f'<text transform="translate(12,{middle}) rotate(-90)" text-anchor="middle">{beside}</text>')
        head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(about)}">'
        return f'{head}{"".join(parts)}{content}</svg>'


def line_chart(series: Sequence[Series], titles: tuple[str, str], low: float | None = None) -> str:
    """Return a chart of lines with its legend, as HTML.

    Args:
        series (Sequence[Series]): The lines.
        titles (tuple[str, str]): What the axes are of, the horizontal one first.
        low (float, optional): Where the vertical axis begins. Defaults to None: below the lowest value that is drawn.
    """
    across = [x for line in series for x in line.points]
    values = [y + sign * line.spread.get(x, 0) for line in series for x, y in line.points.items() for sign in (-1, 1)]
    bottom, top = min(values) if low is None else low, max(values)
    margin = 0.06 * (top - bottom) or abs(top) * 0.05 or 1
    ends = (min(across), max(across)) if max(across) > min(across) else (min(across) - 1, max(across) + 1)
    axes = Axes(ends, (bottom - (margin if low is None else 0), top + margin), titles)
    drawn = ''.join(draw_line(axes, line) for line in series)
    about = f'{titles[1]} over {titles[0]}: {", ".join(line.name for line in series)}'
    return f'<figure>{axes.svg(about, f"<g>{drawn}</g>")}{legend(series)}</figure>'


def draw_line(axes: Axes, line: Series) -> str:
    """Return a line with its band, and its points where they are few."""
    points = {x: min(max(y, axes.y[0]), axes.y[1]) for x, y in line.points.items()}
    style = f'style="--c:var(--c{line.color % COLORS})"'
    parts = []
    if line.spread:
        edges = [axes.place(x, y + line.spread.get(x, 0)) for x, y in points.items()]
        edges += [axes.place(x, y - line.spread.get(x, 0)) for x, y in reversed(points.items())]
        parts.append(f'<polygon class="band" points="{" ".join(edges)}"/>')
    path = ' '.join(axes.place(x, y) for x, y in points.items())
    parts.append(f'<polyline class="{"line dashed" if line.dashed else "line"}" points="{path}"/>')
    if len(points) <= 24 and not line.dashed:
        for x, y in line.points.items():
            across, up = axes.place(x, points[x]).split(',')
            note = f'{escape(line.name)}: {y:.4g} at {x:g}'
            parts.append(f'<circle cx="{across}" cy="{up}" r="3"><title>{note}</title></circle>')
    return f'<g {style}>{"".join(parts)}</g>'


def legend(series: Sequence[Series]) -> str:
    """Return which line is which."""
    entries = ''.join(
        f'<li class="{"dashed" if line.dashed else f"a{line.color // COLORS}"}" style="--c:var(--c{line.color % COLORS})">'
        f'{escape(line.name)}</li>'
        for line in series
    )
    return f'<figcaption><ul class="legend">{entries}</ul></figcaption>'


def share_chart(steps: Sequence[float], shares: Mapping[str, Sequence[float]], xlabel: str) -> str:
    """Return shares of a whole over time as areas on top of each other, with their legend.

    Args:
        steps (Sequence[float]): Places on the horizontal axis.
        shares (Mapping[str, Sequence[float]]): Shares there, 0 to 1, by name.
        xlabel (str): What the horizontal axis is of.
    """
    axes = Axes(
        (steps[0], steps[-1] if steps[-1] > steps[0] else steps[0] + 1), (0, 100), (xlabel, 'Share of the total loss (%)')
    )
    below, drawn = [0.0] * len(steps), []
    for index, (name, values) in enumerate(shares.items()):
        above = [low + 100 * value for low, value in zip(below, values, strict=True)]
        edges = [axes.place(x, y) for x, y in zip(steps, above, strict=True)]
        edges += [axes.place(x, y) for x, y in zip(reversed(steps), reversed(below), strict=True)]
        drawn.append(
            f'<polygon class="area a{index // COLORS}" style="--c:var(--c{index % COLORS})" points="{" ".join(edges)}">'
            f'<title>{escape(name)}</title></polygon>'
        )
        below = above
    about = f'Share of each loss in the total over {xlabel}: {", ".join(shares)}'
    lines = [Series(name, {}, index) for index, name in enumerate(shares)]
    return f'<figure>{axes.svg(about, "".join(drawn))}{legend(lines)}</figure>'


def bar_chart(values: Mapping[str, float], unit: str) -> str:
    """Return differences as bars to the right (more) and the left (less), as HTML: names are long, and tables are read aloud.

    Args:
        values (Mapping[str, float]): Differences by name.
        unit (str): What they are in.
    """
    longest = max(map(abs, values.values())) or 1
    rows = []
    for name, value in values.items():
        width, side = 50 * abs(value) / longest, 'more' if value >= 0 else 'less'
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="number">{value:+.1f}</td>'
            f'<td class="bar"><i class="{side}" style="width:{width:.1f}%"></i></td></tr>'
        )
    return f'<table class="bars"><thead><tr><th>Class</th><th>{escape(unit)}</th><th></th></tr></thead>{"".join(rows)}</table>'


def sparkline(values: Sequence[float]) -> str:
    """Return a line without axes, as small as a word."""
    values = thinned([value for value in values if math.isfinite(value)], 40)
    if not values:
        return ''
    low, unit = min(values), (max(values) - min(values)) or 1
    points = ' '.join(
        f'{100 * index / max(len(values) - 1, 1):.1f},{22 - 20 * (value - low) / unit:.1f}'
        for index, value in enumerate(values)
    )
    return f'<svg class="spark" viewBox="0 0 100 24" aria-hidden="true"><polyline points="{points}"/></svg>'


def thinned(values: Sequence[float], count: int = POINTS) -> list[float]:
    """Return the means of about so many pieces of a list."""
    size = max(1, math.ceil(len(values) / count))
    pieces = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(piece) / len(piece) for piece in pieces]
