"""Verdicts as tables for the terminal, worse first; the CLI prints them."""

from collections.abc import Mapping, Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..gate.figure_verdicts import FigureVerdict
from ..gate.result_text import quantity
from ..printable import printable
from ..stats.verdicts import GRAVEST_FIRST, Verdict, percent

STYLES: Final[Mapping[Verdict, str]] = {
    Verdict.WORSE: "red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.WITHIN: "cyan",
    Verdict.BETTER: "green",
    Verdict.SAME: "dim",
}
WIDE: Final = 160
"""Columns of an output that is no terminal."""
REASON: Final = 40
"""Columns that a reason needs beside its figures; where there are fewer it stands beneath."""
HEADINGS: Final = ("cell", "figure", "baseline", "candidate", "change")
GAP: Final = 3


def verdict_tables(
    figure_verdicts: Sequence[FigureVerdict], *, everything: bool = False, width: int = WIDE
) -> list[RenderableType]:
    """Return a table a verdict, worse first; `same` is counted only, unless ``everything``.

    Where ``width`` has no room for whole names and figures, each row is a few lines instead.
    """
    shown: list[RenderableType] = []
    for verdict in GRAVEST_FIRST:
        rows = [
            figure_verdict
            for figure_verdict in figure_verdicts
            if figure_verdict.verdict is verdict
        ]
        if not rows:
            continue
        title = Text(f"{verdict}: {len(rows)}", style=f"bold {STYLES[verdict]}")
        if verdict is Verdict.SAME and not everything:
            shown.append(Group(title, Text(printable(_counted(rows)), style="dim")))
        else:
            shown.append(Group(title, _rows(rows, width=width)))
    return shown


def _counted(rows: Sequence[FigureVerdict]) -> str:
    meters: dict[str, int] = {}
    for row in rows:
        meters[row.meter] = meters.get(row.meter, 0) + 1
    return "  " + ", ".join(f"{meter} of {count}" for meter, count in meters.items())


def _rows(rows: Sequence[FigureVerdict], *, width: int) -> RenderableType:
    columns = zip(HEADINGS, *map(_values, rows), strict=True)
    widths = [max(map(cell_len, column)) for column in columns]
    room = width - sum(widths) - GAP * len(widths)
    return _table(rows) if room >= REASON else _stacked(rows, widths[1:])


def _table(rows: Sequence[FigureVerdict]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 2))
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if number > 1 else "left", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        *values, change = map(Text, _values(row))
        change.style = STYLES[row.verdict]
        table.add_row(*values, change, Text(printable(row.reason), style="dim"))
    return table


def _stacked(rows: Sequence[FigureVerdict], widths: Sequence[int]) -> RenderableType:
    """Return the cell, its figures and the reason on a line each; equal cells stand once."""
    headings = [
        heading.rjust(width) for heading, width in zip(HEADINGS[2:], widths[1:], strict=True)
    ]
    lines: list[RenderableType] = [
        Text("  ".join(["   ", HEADINGS[1].ljust(widths[0]), *headings]), style="dim")
    ]
    above = None
    for row in rows:
        if row.cell != above:
            lines.append(Text(f"  {row.cell}", overflow="fold"))
            above = row.cell
        _, meter, *values = _values(row)
        sides = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        line = Text("  ".join(["   ", meter.ljust(widths[0]), *sides[:-1], ""]))
        line.append(sides[-1], style=STYLES[row.verdict])
        lines.append(line)
        if row.reason:
            lines.append(Padding(Text(printable(row.reason), style="dim"), (0, 0, 0, 7)))
    return Group(*lines)


def _values(row: FigureVerdict) -> tuple[str, ...]:
    """Return a row's texts, in the order of `HEADINGS`."""
    sides = (quantity(side, row.unit) for side in (row.baseline, row.candidate))
    return (str(row.cell), printable(row.meter), *map(printable, sides), _change(row))


def _change(row: FigureVerdict) -> str:
    if row.change is None:
        return ""
    words = percent(row.change.point)
    if not row.change.exact:
        words += f" [{percent(row.change.low)}, {percent(row.change.high)}]"
    return words
