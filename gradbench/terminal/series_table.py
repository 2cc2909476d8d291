"""Series as a table for the terminal; the CLI prints it."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ..history.series import Series
from ..history.series_text import amount, bars, sentence
from ..printable import printable
from ..stats.verdicts import Verdict
from .run_tables import BETTER, WORSE


def table(series: Sequence[Series]) -> Table:
    """Return a row a series, oldest point left; under it a line a change, the latest first."""
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
        lines = [
            Text(
                printable(sentence(one, change)),
                style=WORSE if change.verdict is Verdict.WORSE else BETTER,
            )
            for change in reversed(one.changes)
        ]
        shown.add_row(
            Text(str(one.cell)),
            figure,
            str(len(one.values)),
            bars(one),
            Text(printable(amount(one, float(one.values[-1])))),
            Text("\n").join(lines) if lines else Text("none", style="dim"),
        )
    return shown
