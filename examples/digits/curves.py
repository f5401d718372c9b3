"""Accuracy over training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dskd_mm.visualization.style import CYCLE, GREY, new_figure, tidy

Curve = Mapping[int, float]


def accuracy_curves(
    curves: Mapping[str, Sequence[Curve]],
    reference: tuple[str, float] | None = None,
    title: str = 'Accuracy during training',
    ylabel: str = 'Top-1 accuracy (%)',
) -> Figure:
    """Plot accuracy over epochs: the mean over runs as a line, their standard deviation as a band.

    The vertical axis leaves out the first quarter of training, where nothing is to be compared yet.

    Args:
        curves (Mapping[str, Sequence[Mapping[int, float]]]): For each method the curves of its runs: values in percent by
            epoch. Of several runs of a method only the epochs that all have are drawn.
        reference (tuple[str, float], optional): Name and level of a dashed line, such as the teacher's final accuracy.
            Defaults to None.
        title (str): Defaults to 'Accuracy during training'.
        ylabel (str): Defaults to 'Top-1 accuracy (%)'.

    Returns:
        Figure: The picture; write it with ``savefig``.
    """
    figure, axes = new_figure(6.4, 4.2)
    shown = [] if reference is None else [reference[1]]
    longest = 0
    for (name, runs), color in zip(curves.items(), CYCLE, strict=False):
        epochs = sorted(set.intersection(*(set(run) for run in runs)))
        values = np.array([[run[epoch] for epoch in epochs] for run in runs])
        mean = values.mean(axis=0)
        deviation = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(epochs))
        count = f'{len(values)} runs' if len(values) > 1 else '1 run'
        axes.plot(epochs, mean, color=color, linewidth=1.8, marker='.', label=f'{name} (mean of {count})')
        axes.fill_between(epochs, mean - deviation, mean + deviation, color=color, alpha=0.18, linewidth=0)
        late = slice(len(epochs) // 4, None)
        shown += [*(mean - deviation)[late], *(mean + deviation)[late]]
        longest = max(longest, epochs[-1])
    if reference is not None:
        axes.axhline(reference[1], color=GREY, linestyle='--', linewidth=1.2, label=f'{reference[0]}: {reference[1]:.1f} %')
    margin = 0.05 * (max(shown) - min(shown)) + 0.5
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, longest + 0.5)
    axes.set(title=title, xlabel='Epoch', ylabel=ylabel)
    # Below: within, it would hide the end of the lower curve.
    figure.legend(loc='outside lower center', ncols=2, frameon=False, title='band: ± standard deviation')
    tidy(axes)
    return figure
