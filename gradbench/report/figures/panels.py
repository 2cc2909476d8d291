"""Panels of a figure in lines: axes one over the other in each, one gap between all of them."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import figure_of, inset


def panels(
    stacks: Sequence[int],
    *,
    columns: int,
    axes_height: float,
    gap: float,
    wspace: float,
    left: float,
    right: float,
    top: float,
    bottom: float,
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and the axes of its panels: of each as many as ``stacks`` says, top first.

    Lengths are in inches, but for ``wspace``, which is matplotlib's. A line of panels is as high as
    the one with most axes needs; where a panel beside it has fewer, they are taller.
    """
    lines = [stacks[first : first + columns] for first in range(0, len(stacks), columns)]
    heights = [max(line) * (axes_height + gap) - gap for line in lines]
    figure = figure_of(top + bottom + sum(heights) + gap * (len(lines) - 1))
    inset(figure, left=left, right=right, top=top, bottom=bottom)
    grid = figure.add_gridspec(
        len(lines),
        columns,
        height_ratios=heights,
        hspace=gap / (sum(heights) / len(lines)),
        wspace=wspace,
    )
    drawn: list[list[Axes]] = []
    for number, count in enumerate(stacks):
        line, column = divmod(number, columns)
        own_height = (heights[line] + gap) / count - gap
        stack = grid[line, column].subgridspec(count, 1, hspace=gap / own_height)
        drawn.append([figure.add_subplot(stack[place, 0]) for place in range(count)])
    return figure, drawn
