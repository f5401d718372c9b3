"""What the teacher's classifier says at each stage."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from dskd_mm.visualization.journey import FeatureJourney
from dskd_mm.visualization.plane import colour_of
from dskd_mm.visualization.style import CYCLE, new_figure, tidy

SHOWN = 5
"""Classes of an image that are drawn at most."""


def plot_opinions(
    journeys: Sequence[FeatureJourney], names: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> Figure | None:
    """Plot the probabilities of the teacher's classifier on the feature at each stage.

    Of an image of one class the most probable classes are shown. Where there are objects or pixels of several classes, each
    class is shown where it is annotated, on average.

    Args:
        journeys (Sequence[FeatureJourney]): Of an image each.
        names (Sequence[str]): Names of the classes.
        palette (Sequence[tuple]): Their colours, 0 to 255.

    Returns:
        Figure, optional: A panel an image; None where nothing is classified.
    """
    opinions = [journey.class_opinions() for journey in journeys]
    if not any(opinions):
        return None
    columns = min(4, len(journeys))
    rows = -(-len(journeys) // columns)
    figure, grid = new_figure(3.1 * columns + 0.6, 2.7 * rows + 0.5, rows, columns, squeeze=False, sharey=True)
    for index, (axes, journey) in enumerate(zip(grid.flat, journeys, strict=False)):
        lines = image_lines(opinions[index], names, palette)
        stages = range(len(journey.names))
        for name, (values, colour) in lines.items():
            axes.plot(stages, values, marker='o', markersize=4, linewidth=1.8, color=colour, label=name)
        axes.set_xticks(stages, [stage.split(':')[0] for stage in journey.names], fontsize=7, rotation=30)
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(f'image {index + 1}', fontsize=9)
        axes.legend(fontsize=7, frameon=False, loc='best')
        tidy(axes)
    for axes in list(grid.flat)[len(journeys) :]:
        axes.axis('off')
    for row in grid:
        row[0].set_ylabel('probability', fontsize=8)
    figure.suptitle("What the teacher's classifier says of the feature at each stage", fontsize=10)
    return figure


def image_lines(opinions: dict, names: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> dict:
    """Return the lines of an image: their values by stage and their colour, by the class's name."""
    if len(opinions) == 1:
        (values,) = opinions.values()
        top = values.amax(dim=0).topk(min(SHOWN, values.shape[1])).indices.tolist()
        return {names[k]: (values[:, k].tolist(), CYCLE[i % len(CYCLE)]) for i, k in enumerate(top)}
    classes = sorted(opinions, key=lambda k: -float(opinions[k][-1, k]))[:SHOWN]
    return {f'{names[k]}, where it is': (opinions[k][:, k].tolist(), colour_of(k, palette)) for k in classes}
