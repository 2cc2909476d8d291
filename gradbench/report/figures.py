"""The plots: a run in, a matplotlib figure out.

Ink is drawn in `INK` and grids in `GRID`, which the page turns into its own theme's colours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .. import tables, units
from ..estimates import noise_floor
from ..matrix import GRAD_MODES, Cell, by_block
from ..records import Measurement
from ..store import Run

INK: Final = "#010203"
GRID: Final = "#030201"
# Okabe and Ito's colours, told apart by colour-blind eyes, and a shape each besides.
COLOURS: Final = dict(zip(GRAD_MODES, ("#D55E00", "#0072B2", "#009E73", "#CC79A7"), strict=True))
BRIGHT: Final = dict(zip(GRAD_MODES, ("#FF8A3D", "#5FB2E8", "#2CC99B", "#E8A3C6"), strict=True))
MARKERS: Final = dict(zip(GRAD_MODES, "osD^", strict=True))
STYLE: Final[Mapping[str, object]] = {
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.labelcolor": INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a name may hold dollars
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.left": False,
}
WIDTH: Final = 9.0  # inches
ROW: Final = 0.17  # inches a mode
MANY: Final = 60  # blocks in one plot; the table has them all

Measured = dict[tuple[Cell, str], Measurement]


def time_ratios(run: Run, *, reference: str = GRAD_MODES[0]) -> Figure | None:
    """Return each mode's step time over the reference's, a group of rows a block.

    Bars are 95 % intervals; the band is what the block's A/A control does not tell from 1.
    None when no block has two timed modes.
    """
    have = _measured(run)
    blocks = [
        cells
        for cells in by_block(run.started.cells).values()
        if sum((cell, "step_time") in have for cell in cells) > 1
        and (tables.at(cells[0], reference), "step_time") in have
    ]
    if not blocks:
        return None
    shown, figure, axes = _rows(blocks)
    axes.axvline(1, color=INK, linewidth=0.8)
    for top, cells in _places(shown):
        control = tables.control(run, cells[0])
        if control is not None:
            floor = noise_floor(control)
            edges = [top - 0.5, top + len(cells) - 0.5]
            left, right = math.exp(-floor), math.exp(floor)
            axes.fill_betweenx(edges, left, right, color=GRID, alpha=0.45)
        for row, cell in enumerate(cells):
            if (cell, "step_time") not in have:
                continue
            reference_side = have[tables.at(cell, reference), "step_time"]
            change = tables.ratio(have[cell, "step_time"], reference_side)
            if change is None or cell.grad_mode == reference:
                continue
            axes.errorbar(
                change.point,
                top + row,
                xerr=[[change.point - change.low], [change.high - change.point]],
                elinewidth=1.6,
                **_look(cell.grad_mode),
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.digits(value)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: units.digits(value)))
    axes.tick_params(axis="x", which="minor", labelsize=8)
    axes.grid(axis="x", which="minor")
    axes.set_xlabel(f"step time / {reference}, log scale: left is faster")
    _legend(figure, [mode for mode in GRAD_MODES if mode != reference])
    return figure


def peak_memory(run: Run) -> Figure | None:
    """Return what a step adds to memory at its worst, by mode, a group of rows a block.

    None when nothing was read.
    """
    have = _measured(run)
    blocks = [
        cells
        for cells in by_block(run.started.cells).values()
        if any((cell, "peak_transient") in have for cell in cells)
    ]
    if not blocks:
        return None
    shown, figure, axes = _rows(blocks)
    axes.set_xscale("log", base=2)
    for top, cells in _places(shown):
        for row, cell in enumerate(cells):
            if (cell, "peak_transient") in have:
                value = tables.estimate(have[cell, "peak_transient"]).point
                axes.plot(max(value, 1), top + row, **_look(cell.grad_mode))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.size(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes a step adds at its worst, log scale: left is smaller")
    _legend(figure, GRAD_MODES)
    return figure


def throughput(run: Run) -> Figure | None:
    """Return samples per second over batch size by mode, a panel a model and workload.

    None when no model was timed at two batch sizes.
    """
    have = _measured(run)
    timed = [cell for cell in run.started.cells if (cell, "step_time") in have]

    def family(cell: Cell) -> str:
        return cell.block.family

    panels = [
        (name, members)
        for name, members in (
            (name, list(group)) for name, group in groupby(sorted(timed, key=family), key=family)
        )
        if len({cell.batch_size for cell in members}) > 1
    ]
    if not panels:
        return None
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH, 2.9 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (name, members) in zip(grid.flat, panels, strict=False):
        for mode in GRAD_MODES:
            cells = sorted((c for c in members if c.grad_mode == mode), key=lambda c: c.batch_size)
            sizes = [cell.batch_size for cell in cells]
            steps = [tables.estimate(have[cell, "step_time"]).point for cell in cells]
            rates = [size / step * 1e9 for size, step in zip(sizes, steps, strict=True)]
            axes.plot(sizes, rates, **_look(mode) | {"linestyle": "-", "linewidth": 1.2})
        axes.set(xscale="log", yscale="log", title=_short(name), xlabel="batch size")
        axes.set_ylabel("samples/s")
        axes.title.set_fontsize(10)
        axes.grid(axis="y")
        axes.set_xticks(sorted({cell.batch_size for cell in members}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.rate(value)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
    _legend(figure, GRAD_MODES)
    return figure


FIGURES: Final[Mapping[str, Callable[[Run], Figure | None]]] = {
    "time_ratios": time_ratios,
    "peak_memory": peak_memory,
    "throughput": throughput,
}


def styled(draw: Callable[[Run], Figure | None], run: Run) -> Figure | None:
    """Return the figure drawn in the page's style."""
    with mpl.rc_context(dict(STYLE)):  # type: ignore[arg-type] # rcParams by name
        return draw(run)


def _measured(run: Run) -> Measured:
    return {(o.cell, o.meter): o for o in run.outcomes if isinstance(o, Measurement)}


def _look(mode: str) -> dict[str, Any]:
    return {
        "color": COLOURS[mode],
        "marker": MARKERS[mode],
        "markersize": 5.5,
        "linestyle": "none",
    }


def _places(blocks: Sequence[Sequence[Cell]]) -> list[tuple[int, Sequence[Cell]]]:
    places, top = [], 0
    for cells in blocks:
        places.append((top, cells))
        top += len(cells) + 1
    return places


def _rows(every: Sequence[Sequence[Cell]]) -> tuple[Sequence[Sequence[Cell]], Figure, Axes]:
    """Return the blocks to draw, `MANY` at most, and a figure with a group of rows for each."""
    blocks = every[:MANY]
    places = _places(blocks)
    height = sum(len(cells) + 1 for cells in blocks)
    figure = Figure(figsize=(WIDTH, 1.2 + ROW * height), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(height - 0.5, -1)
    axes.set_yticks(
        [top + (len(cells) - 1) / 2 for top, cells in places],
        [_short(str(cells[0].block)) for _, cells in places],
    )
    if len(blocks) < len(every):
        axes.set_title(
            f"the first {len(blocks)} of the {len(every)} blocks; the table has them all"
        )
    return blocks, figure, axes


def _short(name: str, most: int = 44) -> str:
    """Return a name with its middle left out where it is long; the table has it whole."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _legend(figure: Figure, modes: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[m], marker=MARKERS[m], linestyle="none", label=m)
        for m in modes
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(modes))
