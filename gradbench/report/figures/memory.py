"""Memory: what a peak is made of by mode, how a step gets there, and which modules save most."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ...analysis import format_units
from ...analysis.run_view import MEMORY, View
from ...experiment.matrix import GRAD_MODES, Block, Cell
from ...records.allocations import FURTHER
from ...records.measurements import PARTS, Breakdown
from ...records.run import Run
from .panels import panels
from .style import (
    COARSE,
    LIGHT,
    MANY,
    PART_WORDS,
    ROW,
    Theme,
    drawn_in,
    figure_of,
    inset,
    room,
    say_cut,
    short,
    tags,
    top_legend,
)

FEW: Final = 4  # blocks whose step is drawn through time, and whose modules are
_STEPS: Final = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 256, 512)
GAP: Final = 0.8  # rows between two blocks


def peak_parts(run: Run | View, *, theme: Theme = LIGHT, most: int = MANY) -> Figure | None:
    """Return what each mode's peak is made of, bars scaled to their block's largest.

    An outline is what the caching allocator had reserved, a tick what was predicted. Cells
    without a breakdown show what was there before the step, and what the step added. None when no
    peak was read.
    """
    view = View.of(run)
    every = [
        (block, cells)
        for block, members in view.blocks.items()
        if (cells := [c for c in members if parts_of(view, c)])
    ]
    if not every:
        return None
    shown = every[:most]
    names = [short(str(block), 40) for block, _ in shown]
    cells = [cell for _, members in shown for cell in members]
    with drawn_in(theme):
        height = sum(len(members) + GAP for _, members in shown)
        figure = figure_of(1.2 + ROW * height)
        reserved = any(view.estimate(cell, "peak_reserved") for cell in cells)
        kept = any(workspaces(view, cell) for cell in cells)
        inset(
            figure,
            left=room(names) + 1.15,
            right=(1.8 if reserved else 1.1) + (1.4 if kept else 0),
            top=0.7,
            bottom=0.45,
        )
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(height - 0.6, -0.9))
        axes.grid(visible=False, axis="y")
        rows = _name_rows(axes, names, [members for _, members in shown])
        _bars(axes, view, theme, rows)
        axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.set_xlabel("of the block's largest peak; the total is at the right")
        say_cut(figure, len(shown), len(every))
        drawn = {part for cell in cells for part, size in parts_of(view, cell).items() if size}
        _part_legend(figure, theme, drawn, view, cells)
    return figure


def _name_rows(
    axes: Axes, names: Sequence[str], blocks: Sequence[Sequence[Cell]]
) -> list[tuple[float, Cell]]:
    """Write blocks and modes at the left; return the row of each cell."""
    top, rows = 0.0, []
    for name, cells in zip(names, blocks, strict=True):
        axes.annotate(
            name,
            (0, top + (len(cells) - 1) / 2),
            (-85, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
        )
        rows += [(top + number, cell) for number, cell in enumerate(cells)]
        top += len(cells) + GAP
    axes.set_yticks([row for row, _ in rows], [cell.grad_mode for _, cell in rows])
    return rows


def parts_of(view: View, cell: Cell) -> Mapping[str, int]:
    """Return the bytes of a cell's peak by part, in order of drawing; empty where not read."""
    breakdown = view.run.breakdowns.get(cell)
    if breakdown is not None:
        parts = {part: breakdown.parts.get(part, 0) for part in PARTS}
        return parts | {"unknown": max(0, parts["unknown"] - workspaces(view, cell))}
    total, added = (view.estimate(cell, meter) for meter in ("peak_allocated", MEMORY))
    if total is None or added is None:
        return {}
    before, rest = COARSE
    return {before: round(total.point - added.point), rest: round(added.point)}


def workspaces(view: View, cell: Cell) -> int:
    """Return the bytes that libraries kept all the time: the same in every mode, so not drawn."""
    peak = view.measurement(cell, "peak_allocated")
    kept = peak.notes.get("workspace_bytes", 0) if peak is not None else 0
    return kept if isinstance(kept, int) else 0


def _bars(axes: Axes, view: View, theme: Theme, rows: Sequence[tuple[float, Cell]]) -> None:
    """Draw each cell's peak over the largest of its block, its parts from left to right."""
    largest: dict[Block, float] = {}
    for _, cell in rows:
        ends = [float(sum(parts_of(view, cell).values()))]
        reserved, predicted = _reserved(view, cell), view.estimate(cell, "predicted_peak")
        ends += [reserved] if reserved else []
        ends += [predicted.point] if predicted else []
        largest[cell.block] = max(largest.get(cell.block, 1.0), *ends)
    left = dict.fromkeys((cell for _, cell in rows), 0.0)
    for part in (*PARTS, *COARSE):
        corners, cells, words = [], [], []
        for row, cell in rows:
            size = parts_of(view, cell).get(part, 0)
            if not size:
                continue
            start, end = left[cell], left[cell] + size / largest[cell.block]
            left[cell] = end
            corners.append(_box(start, end, row, 0.36))
            cells.append(cell)
            words.append(f"{cell}: {format_units.size(size)} {PART_WORDS[part]}")
        axes.add_collection(
            PolyCollection(
                corners,
                facecolors=theme.parts[part],
                edgecolors=theme.paper,
                linewidths=0.6,
                urls=tags(view, theme, cells, words),
            ),
            autolim=False,
        )
    _totals(axes, view, theme, rows, largest)


def _totals(
    axes: Axes,
    view: View,
    theme: Theme,
    rows: Sequence[tuple[float, Cell]],
    largest: Mapping[Block, float],
) -> None:
    """Write each peak's size beside its bar; outline what was reserved, mark the prediction."""
    outlines, ticks = [], []
    for row, cell in rows:
        scale = largest[cell.block]
        total = sum(parts_of(view, cell).values())
        reserved, predicted = _reserved(view, cell), view.estimate(cell, "predicted_peak")
        label = format_units.size(total)
        if reserved:
            outlines.append(_box(0, reserved / scale, row, 0.42))
            label += f" of {format_units.size(reserved)}"
        if kept := workspaces(view, cell):
            label += f" + {format_units.size(kept)} workspaces"
        if predicted:
            ticks.append(
                [(predicted.point / scale, row - 0.47), (predicted.point / scale, row + 0.47)]
            )
        axes.text(1.01, row, label, va="center", fontsize=8.5)
    axes.add_collection(
        PolyCollection(outlines, facecolors="none", edgecolors=theme.dim, linewidths=1),
        autolim=False,
    )
    axes.add_collection(LineCollection(ticks, colors=theme.ink, linewidths=2.2), autolim=False)


def _reserved(view: View, cell: Cell) -> float | None:
    """Return what was reserved beside workspaces, None where nothing was read."""
    reserved = view.estimate(cell, "peak_reserved")
    return max(0.0, reserved.point - workspaces(view, cell)) if reserved else None


def _box(left: float, right: float, row: float, half: float) -> list[tuple[float, float]]:
    return [(left, row - half), (right, row - half), (right, row + half), (left, row + half)]


def _part_legend(
    figure: Figure, theme: Theme, drawn: set[str], view: View, cells: Sequence[Cell]
) -> None:
    handles: list[object] = [
        Patch(facecolor=theme.parts[part], label=PART_WORDS[part])
        for part in (*PARTS, *COARSE)
        if part in drawn
    ]
    if any(view.estimate(cell, "peak_reserved") for cell in cells):
        handles.append(Patch(facecolor="none", edgecolor=theme.dim, label="reserved"))
    if any(view.estimate(cell, "predicted_peak") for cell in cells):
        handles.append(
            Line2D(
                [],
                [],
                color=theme.ink,
                marker="|",
                markersize=11,
                linestyle="none",
                label="predicted",
                markeredgewidth=2.2,
            )
        )
    top_legend(figure, handles, columns=min(5, len(handles)))


def timeline(run: Run | View, *, theme: Theme = LIGHT, most: int = FEW) -> Figure | None:
    """Return live bytes by part through one step, a row a block and a column a mode.

    The blocks are those whose modes differ most, one a model and workload. None without a
    breakdown.
    """
    view = View.of(run)
    blocks = chosen(view, most)
    if not blocks:
        return None
    with drawn_in(theme):
        figure = figure_of(1.0 + 1.85 * len(blocks))
        inset(figure, left=0.75, right=0.1, top=0.95, bottom=0.4)
        modes = [
            m
            for m in GRAD_MODES
            if any(m == c.grad_mode for cells in blocks.values() for c in cells)
        ]
        grid = figure.subplots(len(blocks), len(modes), squeeze=False, sharey="row")
        figure.subplots_adjust(hspace=0.75, wspace=0.06)
        drawn: set[str] = set()
        for line, (block, cells) in zip(grid, blocks.items(), strict=True):
            by_mode = {cell.grad_mode: cell for cell in cells}
            line[0].annotate(
                short(str(block), 70),
                (0, 1),
                (0, 17),
                "axes fraction",
                "offset points",
                va="bottom",
            )
            for axes, mode in zip(line, modes, strict=True):
                if mode not in by_mode:
                    axes.set_axis_off()
                    continue
                breakdown = view.run.breakdowns[by_mode[mode]]
                breakdown = _without(breakdown, workspaces(view, by_mode[mode]))
                drawn |= {part for part, moments in breakdown.timeline.items() if any(moments)}
                _step(axes, theme, breakdown, mode)
        handles = [
            Patch(facecolor=theme.parts[p], label=PART_WORDS[p]) for p in PARTS if p in drawn
        ]
        top_legend(figure, handles, columns=min(4, len(handles)))
    return figure


def _without(breakdown: Breakdown, kept: int) -> Breakdown:
    """Return the breakdown with so much less of what is unknown at each moment."""
    moments = breakdown.timeline.get("unknown", ())
    left = tuple(max(0, nbytes - kept) for nbytes in moments)
    return replace(breakdown, timeline={**breakdown.timeline, "unknown": left})


def _step(axes: Axes, theme: Theme, breakdown: Breakdown, mode: str) -> None:
    moments = range(len(breakdown.phases))
    parts = [p for p in PARTS if any(breakdown.timeline.get(p, ()))]
    if parts and moments:
        axes.stackplot(
            moments,
            [breakdown.timeline[part] for part in parts],
            colors=[theme.parts[part] for part in parts],
            step="post" if len(moments) < 8 else None,
        )
    phases = ["tokens" if name.startswith(FURTHER) else name for name in breakdown.phases]
    starts = [i for i in moments if i == 0 or phases[i] != phases[i - 1]]
    for start in starts[1:]:
        axes.axvline(start, color=theme.dim, linewidth=0.7, linestyle=":")
    axes.set_xlim(0, max(1, len(moments) - 1))
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(FixedLocator([float(start) for start in starts]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _word(phases, starts, value)))
    axes.xaxis.set_minor_locator(NullLocator())
    for label in axes.get_xticklabels():
        label.set(ha="left", fontsize=7.5)
    axes.yaxis.set_major_locator(FixedLocator(round_sizes(axes.get_ylim()[1])))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_units.size(value)))
    axes.set_title(mode, loc="right", color=theme.modes[mode], fontsize=8.5, pad=3)


def round_sizes(most: float) -> list[float]:
    """Return up to five sizes from 0 up to ``most`` that are round in the unit they are read in."""
    unit = 1024.0 ** math.floor(math.log(max(most, 1), 1024))
    step = next(s for s in _STEPS if most / unit / s <= 4) * unit
    return [step * number for number in range(int(most / step) + 1)]


def _word(phases: Sequence[str], starts: Sequence[int], value: float) -> str:
    """Return the phase that begins at a tick, or nothing where the next one is too near."""
    place = round(value)
    later = [start for start in starts if start > place]
    end = len(phases) - 1
    room = (later[0] if later else end) - place
    # in a narrow panel a word takes about a quarter of it
    return phases[place] if 0 <= place <= end and room * 4 >= end else ""


def modules(run: Run | View, *, theme: Theme = LIGHT, most: int = FEW) -> Figure | None:
    """Return the modules that saved most bytes for backward, a panel a block.

    None when no breakdown saw anything saved.
    """
    view = View.of(run)
    shown = []
    for block, cells in chosen(view, most).items():
        first = next((c for c in cells if any(view.run.breakdowns[c].modules.values())), None)
        if first is not None:
            shown.append((block, first, view.run.breakdowns[first].titled()))
    if not shown:
        return None
    rows = max(len(saved) for _, _, saved in shown)
    with drawn_in(theme):
        figure, stacks = panels(
            [1] * len(shown),
            columns=2,
            axes_height=0.4 + 0.2 * rows,
            gap=0.4,
            wspace=0.75,
            left=1.9,
            right=0.8,
            top=0.35,
            bottom=0.1,
        )
        for (axes,), (block, cell, saved) in zip(stacks, shown, strict=True):
            names, sizes = list(saved), list(saved.values())
            axes.barh(range(len(names)), sizes, height=0.7, color=theme.parts["saved"])
            axes.set_yticks(
                range(len(names)), [short(name, 28) or "(the model itself)" for name in names]
            )
            axes.tick_params(axis="y", labelcolor=theme.ink)
            axes.set(ylim=(rows - 0.4, -0.6), xticks=[])
            axes.spines.bottom.set_visible(False)
            axes.grid(visible=False)
            axes.set_title(f"{short(str(block), 44)}, {cell.grad_mode}", fontsize=9.5, x=-0.45)
            for row, size in enumerate(sizes):
                axes.annotate(
                    format_units.size(size),
                    (size, row),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                )
    return figure


def chosen(view: View, most: int) -> dict[Block, list[Cell]]:
    """Return the blocks to look into: per model and workload the one that saves most, by size."""
    best: dict[tuple[str, str, str], tuple[int, Block, list[Cell]]] = {}
    for block, members in view.blocks.items():
        cells = [c for c in members if c in view.run.breakdowns]
        if not cells:
            continue
        saved = max(view.run.breakdowns[c].parts.get("saved", 0) for c in cells)
        key = (block.cell.device, block.cell.model, block.cell.workload)
        if key not in best or saved > best[key][0]:
            best[key] = (saved, block, cells)
    ranked = sorted(best.values(), key=lambda entry: -entry[0])
    return {block: cells for _, block, cells in ranked[:most]}
