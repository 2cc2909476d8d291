"""Scaling: throughput and peak memory over a size that varies, a column a family of blocks."""

from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from ...analysis import dataframes, format_units
from ...analysis.run_view import TIME, View
from ...experiment.matrix import GRAD_MODES, Block, Cell
from ...records.measurements import Skipped
from ...records.run import Run
from ...stats import linear_scaling
from .panels import panels
from .style import (
    LIGHT,
    MARKERS,
    SIZES,
    Theme,
    drawn_in,
    mode_legend,
    say_cut,
    short,
)

FAMILIES: Final = 9
COLUMNS: Final = 3
PEAK: Final = "peak_allocated"
WORDS: Final = {TIME: "samples/s", PEAK: "peak memory"}
"""What is drawn of a family, top first."""


def scaling(run: Run | View, *, theme: Theme = LIGHT, most: int = FAMILIES) -> Figure | None:
    """Return samples per second and peak bytes by mode, over batch size or a model's own sizes.

    What was not read of a family takes no room. A cross at the foot says that memory ran out there.
    None when nothing was measured at two sizes.
    """
    view = View.of(run)
    every = families(view)
    if not every:
        return None
    shown = every[:most]
    columns = min(COLUMNS, len(shown))
    read = [
        [meter for meter in WORDS if any(_height(view, cell, meter) for cell in members)]
        for _, _, members in shown
    ]
    with drawn_in(theme):
        figure, stacks = panels(
            list(map(len, read)),
            columns=columns,
            axes_height=1.4,
            gap=0.78,
            wspace=0.36,
            left=0.8,
            right=0.1,
            top=0.7,
            bottom=0.5,
        )
        for number, (name, variable, members) in enumerate(shown):
            for axes, meter in zip(stacks[number], read[number], strict=True):
                _curves(axes, view, theme, members, meter=meter, variable=variable)
                if number % columns == 0 or meter not in read[number - 1]:
                    axes.set_ylabel(WORDS[meter])
            stacks[number][0].set_title(short(name, 42), fontsize=9.5)
            stacks[number][-1].set_xlabel(variable.replace("_", " "))
        say_cut(figure, len(shown), len(every), "families")
        mode_legend(figure, theme, {c.grad_mode for _, _, members in shown for c in members})
    return figure


def families(view: View) -> list[tuple[str, str, list[Cell]]]:
    """Return names, variables, and the cells that differ only in mode and variable, in two values.

    Cells of several machines are no family: their times may not be compared.

    Where no cell of a family has a figure, there is nothing to draw of it.
    Variables are the batch size, what a model's name may give, and numbers of tokens.
    """
    known = [
        c
        for c in view.cells
        if view.measurement(c, TIME) or view.measurement(c, PEAK) or out_of_memory(view, c)
    ]
    families = []
    for variable in linear_scaling.VARIABLES:
        groups: dict[tuple[Block, str], list[Cell]] = {}
        for cell in known:
            if linear_scaling.value(cell, variable) is not None:
                family = linear_scaling.apart_from(cell, variable).block, view.machine(cell)
                groups.setdefault(family, []).append(cell)
        for (block, machine), cells in groups.items():
            several = len({linear_scaling.value(cell, variable) for cell in cells}) > 1
            if several and any(_height(view, cell, m) for cell in cells for m in (TIME, PEAK)):
                name = block.family if variable == "batch_size" else str(block)
                name = f"{name} on {machine}" if machine else name
                families.append((name, variable, cells))
    return sorted(
        families, key=lambda family: (list(linear_scaling.VARIABLES).index(family[1]), family[0])
    )


def out_of_memory(view: View, cell: Cell) -> bool:
    """Return whether memory ran out in any of a cell's passes."""
    return any(
        isinstance(outcome, Skipped) and outcome.cause == "out_of_memory"
        for outcome in view.outcomes(cell).values()
    )


def _curves(
    axes: Axes, view: View, theme: Theme, members: Sequence[Cell], *, meter: str, variable: str
) -> None:
    """Draw a line a mode over the size that varies, and a cross where memory ran out."""

    def at(cell: Cell) -> int:
        return linear_scaling.value(cell, variable) or 0

    for mode in GRAD_MODES:
        cells = sorted((c for c in members if c.grad_mode == mode), key=at)
        points = [(at(c), height) for c in cells if (height := _height(view, c, meter)) > 0]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=theme.modes[mode],
            marker=MARKERS[mode],
            markersize=5.5 * SIZES[mode],
            markerfacecolor="none",
            linewidth=1.6 * SIZES[mode],
        )
        lost = [at(c) for c in cells if out_of_memory(view, c)]
        axes.plot(
            lost,
            [0.05 + 0.07 * GRAD_MODES.index(mode)] * len(lost),
            color=theme.modes[mode],
            marker="x",
            markersize=7,
            markeredgewidth=2,
            linestyle="none",
            transform=axes.get_xaxis_transform(),
        )
    axes.set(xscale="log", yscale="log")
    _size_ticks(axes, sorted({at(c) for c in members}))
    _height_ticks(axes, meter)


def _size_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    """Put up to six ticks along the bottom, at sizes that were measured."""
    axes.xaxis.set_major_locator(
        FixedLocator([float(size) for size in sizes[:: -(-len(sizes) // 6)]])
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _height_ticks(axes: Axes, meter: str) -> None:
    """Put round figures up the side: powers of two for bytes, 1, 2 and 5 for a rate."""
    low, high = axes.get_ylim()
    if high / low < 3:  # room for a tick or two
        axes.set_ylim(low / 1.5, high * 1.5)
    words = format_units.rate if meter == TIME else format_units.size
    if meter == TIME:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    else:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_locator(LogLocator(base=2, numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def _height(view: View, cell: Cell, meter: str) -> float:
    if meter == TIME:
        measured = view.measurement(cell, TIME)
        return dataframes.throughput(measured).point if measured else 0.0
    figure = view.estimate(cell, meter)
    return figure.point if figure else 0.0
