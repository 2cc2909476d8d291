"""Where the difference of two modes comes from: each part of it, with its interval."""

from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ...analysis import format_units
from ...analysis.explanation import Difference, Part
from ...plurals import plural
from .style import LIGHT, ROW, Theme, drawn_in, figure_of, inset, room, short

MOST: Final = 12
"""Parts that a panel has room for."""
FAINT: Final = 0.01
"""Of the largest part: a shorter bar would not be seen."""
NAME: Final = 34  # characters
BAR: Final = 0.6  # of a row
BEYOND: Final = 1.5
"""How many times the longest bar an axis reaches: intervals that are wider leave the figure."""


def difference(panels: Sequence[Difference], *, theme: Theme = LIGHT, most: int = MOST) -> Figure:
    """Return a panel for each pair of modes: host time by part, and what stands behind it.

    Bars end at the median of paired rounds, whiskers are its 95% interval; a bar is hollow where
    that holds 0. Beside it stand the time, the graph nodes and the bytes saved that the second
    mode does without.
    """
    shown = [_shown(panel, most) for panel in panels]
    names = [short(part.name, NAME) for parts in shown for part in parts] or ["unexplained"]
    with drawn_in(theme):
        rows = [len(parts) + 1 for parts in shown]
        figure = figure_of(0.9 + sum(ROW * count + 0.75 for count in rows))
        inset(figure, left=room(names), right=2.9, top=0.4, bottom=0.45)
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)
        figure.subplots_adjust(hspace=2.6 / max(1, sum(rows) / len(rows)))
        for (axes,), panel, parts in zip(grid, panels, shown, strict=True):
            _panel(axes, theme, panel, parts)
    return figure


def _shown(panel: Difference, most: int) -> list[Part]:
    """Return the parts that are drawn: the longest, and those that stand for nodes or bytes."""
    reach = max((abs(part.host_ns.point) for part in panel.parts), default=0.0)
    worth = [
        part
        for part in panel.parts
        if abs(part.host_ns.point) >= reach * FAINT or part.counts.nodes or part.counts.saved_bytes
    ]
    return worth[:most]


def _panel(axes: Axes, theme: Theme, panel: Difference, parts: Sequence[Part]) -> None:
    colour = theme.modes[panel.first]
    for row, part in enumerate(parts):
        filled = colour if part.sure else "none"
        ns = part.host_ns
        axes.barh(row, ns.point, height=BAR, facecolor=filled, edgecolor=colour, linewidth=0.9)
        axes.plot([ns.low, ns.high], [row, row], color=theme.ink, linewidth=1)
        _say(axes, row, _beside(part), theme.ink if part.sure else theme.dim)
    left = len(panel.parts) - len(parts)
    rest_ns = panel.whole_ns.point - sum(part.host_ns.point for part in parts)
    last = len(parts)
    axes.barh(last, rest_ns, height=BAR, facecolor=theme.band, edgecolor=theme.dim, linewidth=0.9)
    _say(axes, last, _signed(rest_ns), theme.dim)
    axes.axvline(0, color=theme.dim, linewidth=0.9)
    words = f"{left:,} more, and unexplained" if left else "unexplained"
    axes.set_yticks(range(last + 1), [*(short(part.name, NAME) for part in parts), words])
    axes.set_ylim(last + BAR, -BAR)
    axes.set_xlim(*_reach(parts, rest_ns))
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ns, _: _signed(ns, plus="")))
    whole = panel.whole_ns
    axes.set_title(
        f"{panel.first} less {panel.second}: {_signed(whole.point)} of host time a call "
        f"[{_signed(whole.low)}, {_signed(whole.high)}]"
    )


def _reach(parts: Sequence[Part], rest_ns: float) -> tuple[float, float]:
    """Return the axis' ends: all bars and sure intervals are within, and what fits of others.

    One part that was disturbed would leave no other to be seen.
    """
    ends = [0.0, rest_ns, *(part.host_ns.point for part in parts)]
    ends += [end for part in parts if part.sure for end in (part.host_ns.low, part.host_ns.high)]
    most = BEYOND * max(map(abs, ends)) or 1.0
    every = [*ends, *(end for part in parts for end in (part.host_ns.low, part.host_ns.high))]
    margin = most / 20
    return max(min(every) - margin, -most), min(max(every) + margin, most)


def _say(axes: Axes, row: int, words: str, colour: str) -> None:
    """Write at the right of a row."""
    axes.annotate(
        words,
        (1, row),
        (6, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=colour,
    )


def _signed(ns: float, *, plus: str = "+") -> str:
    """Return a time with its sign; 0 has neither sign nor unit."""
    if not ns:
        return "0"
    return f"{plus if ns > 0 else '−'}{format_units.duration(abs(ns))}"


def _beside(part: Part) -> str:
    nodes, saved_bytes = part.counts.nodes, part.counts.saved_bytes
    words = [_signed(part.host_ns.point)]
    words += [f"{nodes:+,} {plural(abs(nodes), 'node')}"] if nodes else []
    words += [f"{format_units.size(saved_bytes)} saved"] if saved_bytes else []
    return ", ".join(words)
