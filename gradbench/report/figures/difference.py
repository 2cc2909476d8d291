"""Where the difference of two modes comes from: each part of it, with its interval."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...analysis import format_units
from ...analysis.explanation import Difference, Part
from ...plurals import plural
from .style import LIGHT, ROW, Theme, drawn_in, figure_of, inset, room, short

MOST = 15
"""Parts that a panel has room for."""


def difference(panels: Sequence[Difference], *, theme: Theme = LIGHT, most: int = MOST) -> Figure:
    """Return a panel for each pair of modes: host time by part, and what stands behind it.

    Bars end at the median of paired rounds, whiskers are its 95% interval; beside a bar stand the
    graph nodes and the bytes saved that the second mode does without.
    """
    shown = [list(panel.parts[:most]) for panel in panels]
    names = [short(part.name, 34) for parts in shown for part in parts] or ["unexplained"]
    with drawn_in(theme):
        rows = [len(parts) + 1 for parts in shown]
        figure = figure_of(0.9 + sum(ROW * count + 0.75 for count in rows))
        inset(figure, left=room(names), right=1.9, top=0.4, bottom=0.45)
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)
        figure.subplots_adjust(hspace=2.6 / max(1, sum(rows) / len(rows)))
        for (axes,), panel, parts in zip(grid, panels, shown, strict=True):
            rest = sum(part.host_ns.point for part in panel.parts[most:])
            last = panel.unexplained_ns + rest
            colour = theme.modes[panel.first]
            for row, part in enumerate(parts):
                estimate = part.host_ns
                axes.barh(row, estimate.point, height=0.6, color=colour)
                axes.plot([estimate.low, estimate.high], [row, row], color=theme.ink, linewidth=1)
                axes.annotate(
                    _beside(part),
                    (1, row),
                    (6, 0),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=theme.dim,
                )
            axes.barh(len(parts), last, height=0.6, color=theme.band)
            axes.axvline(0, color=theme.dim, linewidth=0.9)
            labels = [short(part.name, 34) for part in parts]
            axes.set_yticks(range(len(parts) + 1), [*labels, "all else"])
            axes.set_ylim(len(parts) + 0.6, -0.6)
            axes.grid(visible=False, axis="y")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda ns, _: format_units.duration(ns)))
            whole = format_units.duration(panel.whole_ns.point).replace("-", "−")
            axes.set_title(f"{panel.first} less {panel.second}: {whole} of host time a call")
    return figure


def _beside(part: Part) -> str:
    nodes, saved_bytes = part.counts.nodes, part.counts.saved_bytes
    words = [f"{nodes:+,} {plural(abs(nodes), 'node')}"] if nodes else []
    words += [f"{format_units.size(saved_bytes)} saved"] if saved_bytes else []
    return ", ".join(words)
