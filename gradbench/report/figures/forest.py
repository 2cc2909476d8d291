"""The forest plot: each mode's time and memory over a reference mode's, with intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from ...analysis import format_units
from ...analysis.run_view import MEMORY, TIME, View
from ...experiment.matrix import GRAD_MODES, Block, Cell
from ...records.run import Run
from ...stats.estimates import Estimate
from ...stats.verdicts import Verdict
from .style import (
    LIGHT,
    MANY,
    MARKERS,
    ROW,
    Theme,
    drawn_in,
    figure_of,
    fraction_axis,
    inset,
    mode_legend,
    ratio_axis,
    room,
    say_cut,
    say_empty,
    short,
    tags,
)

GAP = 0.7  # rows between two blocks
HEADING = 1.3  # rows that a workload's name takes


@dataclass(frozen=True, slots=True)
class Mark:
    """One ratio and the row that it stands in."""

    cell: Cell
    row: float
    change: Estimate
    verdict: Verdict | None


def forest(
    run: Run | View, *, reference: str = GRAD_MODES[0], theme: Theme = LIGHT, most: int = MANY
) -> Figure | None:
    """Return step time and memory of each mode over ``reference``, a group of rows a block.

    Bars are 95% intervals; a mark is filled where its interval lies beyond the noise floor. The
    band is what the block's own A/A control does not rule out. Memory repeats to the byte and
    has no interval. None when no block has two measured modes.
    """
    view = View.of(run)
    every = [
        (block, cells)
        for block, members in view.blocks.items()
        if (cells := _rows(view, members, reference))
    ]
    if not every:
        return None
    shown = sorted(every[:most], key=lambda pair: _order(view, pair[0]))
    with drawn_in(theme):
        tops, headings, height = _places(shown)
        placed = list(zip(tops, shown, strict=True))
        names = _names(shown)
        figure = figure_of(1.15 + ROW * height)
        left = room([*names, *(name for _, name in headings)])
        inset(figure, left=left, right=0.15, top=0.55, bottom=0.6)
        times, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        figure.subplots_adjust(wspace=0.08)
        times.set_ylim(height - 0.3, -0.9)
        times.set_yticks([top + (len(cells) - 1) / 2 for top, (_, cells) in placed], names)
        times.tick_params(axis="y", labelcolor=theme.ink, labelsize=9)
        _write_headings(times, theme, headings)
        for axes in (times, memory):
            axes.grid(visible=False, axis="y")
            axes.axvline(1, color=theme.dim, linewidth=0.9)
        _bands(times, view, theme, placed)
        for axes, meter in ((times, TIME), (memory, MEMORY)):
            marks = list(_marks(view, placed, meter, reference))
            if marks:
                _draw(axes, view, theme, marks, reference)
            else:
                say_empty(axes, theme, view.missing(meter))
        times.set_xlabel(f"step time over {reference}, log scale; left is faster")
        memory.set_xlabel(f"memory over {reference} (exact: no interval)")
        say_cut(figure, len(shown), len(every))
        drawn = {cell.grad_mode for _, cells in shown for cell in cells} - {reference}
        mode_legend(figure, theme, drawn)
    return figure


def _write_headings(axes: Axes, theme: Theme, headings: Sequence[tuple[float, str]]) -> None:
    """Write each workload's name on its row, left of the axes."""
    for row, workload in headings:
        axes.annotate(
            workload,
            (0, row),
            (-8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="center",
            color=theme.dim,
            fontsize=9,
            style="italic",
        )


def _names(shown: Sequence[tuple[Block, Sequence[Cell]]]) -> list[str]:
    """Return a label a block, without the device where there is only one."""
    devices = {block.cell.device for block, _ in shown}
    prefix = f"{devices.pop()}-" if len(devices) == 1 else ""
    return [short(block.setting.removeprefix(prefix), 34) for block, _ in shown]


def _order(view: View, block: Block) -> tuple[str, int, int, int]:
    """Return a block's place: by device, workload, model as they came, and then by batch size."""
    workloads = list(dict.fromkeys(b.cell.workload for b in view.blocks))
    models = list(dict.fromkeys(b.cell.model for b in view.blocks))
    cell = block.cell
    return cell.device, workloads.index(cell.workload), models.index(cell.model), cell.batch_size


def _rows(view: View, members: Sequence[Cell], reference: str) -> list[Cell]:
    return [
        cell
        for cell in members
        if any(view.change(cell, meter, reference) for meter in (TIME, MEMORY))
    ]


def _places(
    blocks: Sequence[tuple[Block, Sequence[Cell]]],
) -> tuple[list[float], list[tuple[float, str]], float]:
    """Return the first row of each block, the row of each workload's name, and rows in all."""
    places, headings, top = [], [], 0.0
    for workload, group in groupby(
        blocks, key=lambda pair: (pair[0].cell.device, pair[0].cell.workload)
    ):
        headings.append((top, workload[1]))
        top += HEADING
        for _, cells in group:
            places.append(top)
            top += len(cells) + GAP
    return places, headings, top


def _marks(
    view: View,
    placed: Sequence[tuple[float, tuple[Block, Sequence[Cell]]]],
    meter: str,
    reference: str,
) -> Iterator[Mark]:
    for top, (_, cells) in placed:
        for row, cell in enumerate(cells):
            change = view.change(cell, meter, reference)
            if change is not None:
                yield Mark(cell, top + row, change, view.verdict(cell, meter, reference))


def _bands(
    axes: Axes,
    view: View,
    theme: Theme,
    placed: Sequence[tuple[float, tuple[Block, Sequence[Cell]]]],
) -> None:
    corners = []
    for top, (_, cells) in placed:
        if view.control(cells[0]) is None:
            continue
        floor = view.floor(cells[0])
        left, right = 1 / (1 + floor), 1 + floor
        low, high = top - 0.6, top + len(cells) - 0.4
        corners.append([(left, low), (right, low), (right, high), (left, high)])
    axes.add_collection(
        PolyCollection(corners, facecolors=theme.band, edgecolors="none", zorder=0.5),
        autolim=False,
    )


def _draw(axes: Axes, view: View, theme: Theme, marks: Sequence[Mark], reference: str) -> None:
    exact = all(mark.change.exact for mark in marks)
    for mode in GRAD_MODES:
        own = [m for m in marks if m.cell.grad_mode == mode and m.change.point > 0]
        if not own:
            continue
        words = [_words(mark, reference) for mark in own]
        linked = tags(view, theme, [m.cell for m in own], words)
        colour = theme.modes[mode]
        decided = [m.verdict in (Verdict.BETTER, Verdict.WORSE) for m in own]
        wide = [m for m in own if not m.change.exact]
        axes.add_collection(
            LineCollection(
                [[(m.change.low, m.row), (m.change.high, m.row)] for m in wide],
                colors=colour,
                linewidths=1.8,
            ),
            autolim=False,
        )
        axes.scatter(
            [m.change.point for m in own],
            [m.row for m in own],
            s=26,
            marker=MARKERS[mode],
            facecolors=[colour if yes else theme.paper for yes in decided],
            edgecolors=colour,
            linewidths=1.3,
            zorder=3,
            urls=linked,
        )
    ends = [end for m in marks for end in (m.change.low, m.change.high) if end > 0] or [1.0]
    (fraction_axis if exact and marks else ratio_axis)(axes, min(ends), max(ends))
    for mark in marks:
        if mark.change.point == 0:
            axes.text(
                0.01,
                mark.row,
                "adds nothing",
                va="center",
                transform=axes.get_yaxis_transform(),
                fontsize=8,
                color=theme.modes[mark.cell.grad_mode],
            )


def _words(mark: Mark, reference: str) -> str:
    change = mark.change
    interval = " exactly" if change.exact else f" {format_units.interval(change.low, change.high)}"
    verdict = f", {mark.verdict}" if mark.verdict else ""
    return f"{mark.cell}: {format_units.factor(change.point)}{interval} of {reference}{verdict}"
