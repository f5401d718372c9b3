"""What all pictures share."""

from typing import Any

from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PINK, SKY, GREY = '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#666666'
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, Any]:
    """Make a figure outside of pyplot, which needs no display and is freed with its last reference.

    Args:
        width (float): In inches.
        height (float): In inches.
        rows (int): Rows of axes. Defaults to 1.
        columns (int): Columns of axes. Defaults to 1.
        **kwargs: Other arguments of :meth:`matplotlib.figure.Figure.subplots`.

    Returns:
        tuple[Figure, Any]: The figure and what ``subplots`` returns.
    """
    figure = Figure(figsize=(width, height), dpi=150, layout='constrained')
    return figure, figure.subplots(rows, columns, **kwargs)


def tidy(axes: Any) -> None:
    """Take away what carries no information."""
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
