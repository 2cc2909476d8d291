"""Verdicts as tables for the terminal, worse first; the CLI prints them."""

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..gate.decide import percent
from ..gate.figure_verdicts import FigureVerdict
from ..gate.result_text import quantity
from ..printable import printable
from ..stats.verdicts import Verdict

ORDER: Final = (Verdict.WORSE, Verdict.INCONCLUSIVE, Verdict.BETTER, Verdict.SAME)
STYLES: Final[Mapping[Verdict, str]] = {
    Verdict.WORSE: "red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.BETTER: "green",
    Verdict.SAME: "dim",
}
WIDE: Final = 160
"""Columns from which on reasons stand beside their figures."""


def verdict_tables(
    figure_verdicts: Sequence[FigureVerdict], *, everything: bool = False
) -> list[RenderableType]:
    """Return a table a verdict, worse first; `same` is counted only, unless ``everything``."""
    shown: list[RenderableType] = []
    for verdict in ORDER:
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
            shown.append(Group(title, _table(rows)))
    return shown


def _counted(rows: Sequence[FigureVerdict]) -> str:
    meters: dict[str, int] = {}
    for row in rows:
        meters[row.meter] = meters.get(row.meter, 0) + 1
    return "  " + ", ".join(f"{meter} of {count}" for meter, count in meters.items())


def _table(rows: Sequence[FigureVerdict]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 2))
    for heading, right in (("cell", False), ("figure", False), ("baseline", True)):
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    table.add_column("candidate", justify="right", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(
            Text(str(row.cell)),
            Text(printable(row.meter)),
            Text(printable(quantity(row.baseline, row.unit))),
            Text(printable(quantity(row.candidate, row.unit))),
            Text(_change(row), style=STYLES[row.verdict]),
            Text(printable(row.reason), style="dim"),
        )
    return table


def _change(row: FigureVerdict) -> str:
    if row.change is None:
        return ""
    words = percent(row.change.point)
    if not row.change.exact:
        words += f" [{percent(row.change.low)}, {percent(row.change.high)}]"
    return words
