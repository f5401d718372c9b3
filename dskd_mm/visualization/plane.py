"""Features in a plane."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dskd_mm.visualization.journey import FeatureJourney
from dskd_mm.visualization.style import GREY, new_figure, tidy

MARKERS = ('o', 'X', '*')
"""Of the student's feature, the denoised one, the teacher's."""


def plot_plane(
    journeys: Sequence[FeatureJourney], names: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> Figure | None:
    """Plot the ways of features in the plane of their two principal directions, with the teacher's class directions as arrows.

    A point is the mean feature of a class in an image. The plane is that of all stages of all images together, within what
    the classifier looks at: the span of its class directions.

    Args:
        journeys (Sequence[FeatureJourney]): Of an image each.
        names (Sequence[str]): Names of the classes.
        palette (Sequence[tuple]): Their colours, 0 to 255.

    Returns:
        Figure, optional: The picture; None if there are not two points.
    """
    ways = [(label, way) for journey in journeys for label, way in journey.class_means().items()]
    joined = torch.cat([way for _, way in ways])
    center = joined.mean(dim=0)
    directions = plane_directions(joined - center, journeys[0].class_directions())
    if directions is None:
        return None
    figure, axes = new_figure(7.2, 5.6)
    radius = float(((joined - center) @ directions.T).norm(dim=1).max())
    for label, way in ways:
        colour = colour_of(label, palette)
        x, y = ((way - center) @ directions.T).T.numpy()
        # The steps hang together; the teacher's feature is where they should lead.
        axes.plot(x[:-1], y[:-1], color=colour, linewidth=1.3, alpha=0.8, marker='.', markersize=4)
        axes.plot(x[-2:], y[-2:], color=colour, linewidth=0.8, linestyle=':', alpha=0.6)
        for index, marker in zip((0, -2, -1), MARKERS, strict=True):
            axes.plot(x[index], y[index], marker=marker, markersize=9, color=colour, markeredgecolor='white', linestyle='')
    drawn = draw_directions(axes, journeys[0], {label for label, _ in ways}, directions, radius, names, palette)
    legend = [
        Line2D([], [], color=GREY, marker=marker, linestyle='', markersize=9, label=label)
        for marker, label in zip(MARKERS, ("student's feature", 'denoised', "teacher's feature"), strict=True)
    ]
    axes.legend(handles=legend, loc='upper left', bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    axes.set_title('Features on their way' + (", arrows: the teacher's class directions" if drawn else ''), fontsize=10)
    axes.set(xlabel='first principal direction', ylabel='second')
    axes.set_aspect('equal', 'datalim')
    axes.autoscale_view()
    tidy(axes)
    return figure


def plane_directions(points: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor | None:
    """Return the two principal directions (2, C) of points (N, C) in the span of class directions (K, C); None for a line."""
    if classes is not None and len(classes) > 2:
        _, values, basis = torch.linalg.svd(classes, full_matrices=False)
        basis = basis[values > 1e-4 * values[0]]
        points = points @ basis.T @ basis
    _, values, directions = torch.linalg.svd(points, full_matrices=False)
    return directions[:2] if len(values) > 1 and values[1] > 1e-6 * values[0] else None


def draw_directions(
    axes: Any,
    journey: FeatureJourney,
    present: set[int],
    directions: torch.Tensor,
    radius: float,
    names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> bool:
    """Draw the class directions of the classes that are there, as long as the way to the farthest point."""
    weights = journey.class_directions()
    if weights is None or present == {-1}:
        return False
    arrows = weights[sorted(present - {-1})] @ directions.T
    arrows = arrows / arrows.norm(dim=1).max().clamp(min=1e-12) * radius * 1.1
    for label, (x, y) in zip(sorted(present - {-1}), arrows.tolist(), strict=True):
        style = dict(arrowstyle='-|>', color=colour_of(label, palette), linewidth=1.6, alpha=0.9)
        axes.annotate('', (x, y), (0, 0), arrowprops=style)
        place = np.array([x, y]) * 1.07
        axes.update_datalim([place * 1.03])
        axes.text(*place, names[label], color=colour_of(label, palette), fontsize=9, ha='center', va='center')
    return True


def colour_of(label: int, palette: Sequence[tuple[int, int, int]]) -> tuple[float, float, float] | str:
    """Return a class's colour for matplotlib; black is drawn grey, as it may be the background's."""
    colour = palette[label % len(palette)] if label >= 0 else (0, 0, 0)
    return GREY if max(colour) < 40 else (colour[0] / 255, colour[1] / 255, colour[2] / 255)
