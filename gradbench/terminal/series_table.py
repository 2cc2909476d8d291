"""Series as a table for the terminal; the CLI prints it."""

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..history.series import Series
from ..history.series_text import amount, bars, sentence
from ..plurals import counted
from ..printable import printable
from ..stats.verdicts import Verdict
from .run_tables import BETTER, WORSE

WIDE: Final = 140
"""Columns from which on a series is a row of a table."""


def table(series: Sequence[Series], *, width: int = WIDE) -> RenderableType:
    """Return a row a series, oldest point left; in it a line a change, the latest first.

    Below `WIDE` columns names would be folded into pieces: there a series is a few lines, the
    first of them its cell.
    """
    if width < WIDE:
        return Group(*map(_stacked, series))
    shown = Table(box=None, header_style="dim", pad_edge=False)
    shown.add_column("cell", overflow="fold")
    shown.add_column("figure", overflow="fold")
    shown.add_column("points", justify="right")
    shown.add_column("over commits", no_wrap=True)
    shown.add_column("last", justify="right", no_wrap=True)
    shown.add_column("changes, the latest first", overflow="fold")
    for one in series:
        figure = Text(printable(one.figure))
        if one.where:
            figure.append(f"\non {printable(one.where)}", style="dim")
        lines = _changes(one)
        shown.add_row(
            Text(str(one.cell)),
            figure,
            str(len(one.values)),
            bars(one),
            Text(printable(amount(one, float(one.values[-1])))),
            Text("\n").join(lines) if lines else Text("none", style="dim"),
        )
    return shown


def _stacked(one: Series) -> RenderableType:
    where = f" on {printable(one.where)}" if one.where else ""
    last = printable(amount(one, float(one.values[-1])))
    points = counted(len(one.values), "point")
    figure = Text.assemble(printable(one.figure), (where, "dim"))
    trend = Text(f"{bars(one)}  {points}, last {last}")
    return Group(
        Text(str(one.cell), style="bold", overflow="fold"),
        *(Padding(line, (0, 0, 0, 2)) for line in (figure, trend, *_changes(one))),
    )


def _changes(one: Series) -> list[Text]:
    return [
        Text(
            printable(sentence(one, change)),
            style=WORSE if change.verdict is Verdict.WORSE else BETTER,
        )
        for change in reversed(one.changes)
    ]
