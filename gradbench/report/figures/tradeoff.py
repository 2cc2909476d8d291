"""The trade-off: time against memory, one small panel a block and what it costs checkpointed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ...analysis import checkpointing, format_units
from ...analysis.run_view import MEMORY, TIME, View
from ...experiment.matrix import GRAD_MODES, Block, Cell
from ...records.run import Run
from .style import (
    LIGHT,
    MARKERS,
    SIZES,
    Theme,
    drawn_in,
    figure_of,
    inset,
    mode_legend,
    ratio_axis,
    say_cut,
    short,
    tags,
)

PANELS: Final = 18
COLUMNS: Final = 6
TOP: Final = 0.75  # inches above the panels
BOTTOM: Final = 0.5

Point = tuple[float, float]  # time and memory, over the reference's


def tradeoff(
    run: Run | View, *, reference: str = GRAD_MODES[0], theme: Theme = LIGHT, most: int = PANELS
) -> Figure | None:
    """Return each mode's time and memory over the reference's, a panel a block, axes shared.

    Down and left is better. Checkpointed cells stand filled in the panel of their plain block, over
    its reference. None when no block has both for two modes.
    """
    view = View.of(run)
    every = [
        (block, points)
        for block, members in checkpointing.panels(view).items()
        if (points := _points(view, block, members, reference))
    ]
    if not every:
        return None
    shown = every[:most]
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    with drawn_in(theme):
        height = 0.95 + 1.55 * lines
        figure = figure_of(height)
        inset(figure, left=0.9, right=0.1, top=TOP, bottom=BOTTOM)
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        figure.subplots_adjust(wspace=0.1, hspace=0.45)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        for axes, (block, points) in zip(grid.flat, shown, strict=False):
            _draw(axes, view, theme, points, reference)
            extras = block.setting.removeprefix(f"{block.cell.device}-")
            axes.set_title(f"{block.cell.workload}\n{short(extras, 24)}", fontsize=7.5)
        _scale(grid.flat[0], [point for _, points in shown for point in points.values()])
        figure.supxlabel(
            f"step time over {reference}",
            fontsize=9,
            color=theme.dim,
            y=0.08 / height,
        )
        figure.supylabel(
            f"memory a step adds,\nover {reference}",
            fontsize=9,
            color=theme.dim,
            multialignment="center",
            x=0.008,
            y=(BOTTOM + height - TOP) / 2 / height,  # beside the panels, below the legend
        )
        say_cut(figure, len(shown), len(every))
        filled = any(cell.block != block for block, points in shown for cell in points)
        drawn = {reference, *(cell.grad_mode for _, points in shown for cell in points)}
        mode_legend(figure, theme, drawn, more=[_filled(theme)] if filled else [])
    return figure


def _filled(theme: Theme) -> Line2D:
    return Line2D(
        [], [], color=theme.dim, marker="o", linestyle="none", label="filled: checkpointed"
    )


def _draw(
    axes: Axes, view: View, theme: Theme, points: Mapping[Cell, Point], reference: str
) -> None:
    """Draw a block's modes around the reference, which stands where the lines cross."""
    axes.axvline(1, color=theme.dim, linewidth=0.7)
    axes.axhline(1, color=theme.dim, linewidth=0.7)
    axes.plot([1], [1], color=theme.modes[reference], marker=MARKERS[reference], markersize=5)
    for cell, (time, memory) in points.items():
        words = f"{cell}: {format_units.factor(time)} of {reference}'s time, "
        words += f"{format_units.factor(memory)} of its memory"
        axes.scatter(
            [time],
            [memory],
            s=50 * SIZES[cell.grad_mode],
            marker=MARKERS[cell.grad_mode],
            facecolors=theme.modes[cell.grad_mode] if cell.checkpointing != "off" else "none",
            edgecolors=theme.modes[cell.grad_mode],
            linewidths=1.5,
            zorder=3,
            urls=tags(view, theme, [cell], [words]),
        )


def _scale(axes: Axes, points: Sequence[Point]) -> None:
    """Give the shared axes log scales around all points: memory in powers of four."""
    times, heights = [time for time, _ in points], [memory for _, memory in points]
    ratio_axis(axes, min(times), max(times), most=4)
    axes.set_yscale("log", base=2)
    axes.set_ylim(min(0.7, min(heights) / 1.4), max(1.4, max(heights) * 1.4))
    axes.yaxis.set_major_locator(FixedLocator([2.0**p for p in range(-8, 5, 2)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"1/{1 / v:.0f}" if v < 1 else f"{v:.0f}")
    )


def _points(view: View, block: Block, cells: Sequence[Cell], reference: str) -> dict[Cell, Point]:
    """Return time and memory over those of a block's reference, where both are there and above 0.

    Cells of the block are its pairs; others, checkpointed, have no more than their medians.
    """
    base = replace(block.cell, grad_mode=reference)
    points: dict[Cell, Point] = {}
    for cell in cells:
        if cell.block == block:
            changes = [view.change(cell, meter, reference) for meter in (TIME, MEMORY)]
            time, memory = (None if change is None else change.point for change in changes)
        else:
            time, memory = (checkpointing.over(view, cell, base, m) for m in (TIME, MEMORY))
        if time is not None and memory is not None and memory > 0:
            points[cell] = time, memory
    return points
