"""Memory over the tokens of a sequence: what grows with it, by mode, and ends with it."""

from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from ...analysis import format_units
from ...analysis.generation import by_token
from ...analysis.run_view import View
from ...experiment.matrix import GRAD_MODES, Block, Cell
from ...records.measurements import Breakdown
from ...records.run import Run
from .memory import round_sizes
from .panels import panels
from .style import (
    LIGHT,
    MARKERS,
    PART_WORDS,
    SIZES,
    Theme,
    drawn_in,
    say_cut,
    short,
    top_legend,
)

COLUMNS: Final = 2
MOST: Final = 4  # sequences
FEWEST: Final = 2  # tokens, the last left out


def tokens(run: Run | View, *, theme: Theme = LIGHT, most: int = MOST) -> Figure | None:
    """Return what is alive after each token of a sequence, a line a mode, the cache below.

    None without a sequence of three tokens.
    """
    view = View.of(run)
    every = [
        (block, breakdowns)
        for block, cells in view.blocks.items()
        if (breakdowns := _of(view, cells))
    ]
    if not every:
        return None
    shown = every[:most]
    with drawn_in(theme):
        figure, stacks = panels(
            [1] * len(shown),
            columns=min(COLUMNS, len(shown)),
            axes_height=2.05,
            gap=1.0,
            wspace=0.25,
            left=0.85,
            right=0.15,
            top=0.75,
            bottom=0.5,
        )
        for (axes,), (block, breakdowns) in zip(stacks, shown, strict=True):
            _panel(axes, theme, block, breakdowns)
        say_cut(figure, len(shown), len(every), "sequences")
        modes = [mode for mode in GRAD_MODES if any(mode in breakdowns for _, breakdowns in shown)]
        handles: list[object] = [
            Line2D([], [], color=theme.modes[mode], marker=MARKERS[mode], label=mode)
            for mode in modes
        ]
        handles.append(Patch(facecolor=theme.parts["cache"], label=PART_WORDS["cache"]))
        top_legend(figure, handles)
    return figure


def _of(view: View, cells: Sequence[Cell]) -> Mapping[str, Breakdown]:
    """Return the breakdowns of a block's sequences by mode, in the order of modes."""
    known = {
        cell.grad_mode: view.run.breakdowns[cell]
        for cell in cells
        if cell in view.run.breakdowns and len(by_token(view.run.breakdowns[cell])) >= FEWEST
    }
    return {mode: known[mode] for mode in GRAD_MODES if mode in known}


def _panel(axes: Axes, theme: Theme, block: Block, breakdowns: Mapping[str, Breakdown]) -> None:
    """Draw a line a mode: what is alive beyond what was there before the sequence."""
    caches: list[float] = []
    for mode, breakdown in breakdowns.items():
        at_tokens = by_token(breakdown)
        totals = [sum(sizes) for sizes in zip(*breakdown.timeline.values(), strict=True)]
        alive = [totals[0], *(sum(parts.values()) for parts in at_tokens), totals[-1]]
        heights = [nbytes - totals[0] for nbytes in alive]
        axes.plot(
            range(len(heights)),
            heights,
            color=theme.modes[mode],
            marker=MARKERS[mode],
            markersize=3.5 * SIZES[mode],
            markerfacecolor="none",
            markevery=max(1, len(heights) // 12),
            linewidth=1.3 * SIZES[mode],
        )
        caches = [0, *(parts.get("cache", 0) for parts in at_tokens), 0]
    axes.fill_between(range(len(caches)), caches, color=theme.parts["cache"], linewidth=0)
    axes.set_xlim(0, max(1, len(caches) - 1))
    axes.set_ylim(bottom=0)
    axes.set_title(short(str(block), 52), fontsize=9.5)
    axes.set_xlabel("tokens made; at the right end the sequence is over")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_locator(FixedLocator(round_sizes(axes.get_ylim()[1])))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_units.size(value)))
