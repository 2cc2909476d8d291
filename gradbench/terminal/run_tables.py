"""A run as tables for the terminal; the CLI and pytest print them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..analysis import evaluations, format_units
from ..analysis.compilations import COMPILE_TIME
from ..analysis.run_view import MEMORY, TIME, Value, View, spaced
from ..experiment.matrix import Block, Cell
from ..plurals import counted
from ..printable import printable
from ..records.measurements import Cause
from ..records.run import Run
from ..records.selfcheck import Check
from ..stats.verdicts import Verdict
from .generation_table import generation_tables

BETTER: Final = "green"
WORSE: Final = "red"
WIDE: Final = 104
"""Columns of a terminal from which on every column of the table fits."""

SAVED: Final = "saved_for_backward"
HEADINGS: Final[Mapping[str, str]] = {TIME: "step time", MEMORY: "memory"}
"""What the usual two columns of a table are called."""

NOT_HERE: Final[tuple[Cause, ...]] = ("unavailable", "impossible")
"""Causes that lie in the machine or in what was asked: the notes beneath the tables have them."""

STYLES: Final[Mapping[str, str]] = {
    Verdict.BETTER: BETTER,
    Verdict.WORSE: WORSE,
    "reason": "dim",
    "reference": "dim",
}


def run_tables(run: Run, *, reference: str, width: int = WIDE) -> RenderableType:
    """Return a table a block: step time and memory with their ratios to the reference mode.

    A ratio is coloured when its interval excludes 1 by more than the block's noise floor. Below
    `WIDE` columns, throughput and bytes saved for backward are left out. Where cells are compiled,
    the time that took stands in the place of throughput. A run of other meters shows the first
    two of them instead.
    """
    view = View(run)
    meters = _columns(run.header.meters)
    left = {
        evaluation.block: list(_left(evaluation)) for evaluation in evaluations.evaluations(view)
    }
    shown: list[RenderableType] = []
    tabled = {block: cells for block, cells in view.blocks.items() if not _not_here(view, cells)}
    for block, cells in tabled.items():
        shown += [
            _title(view, block, cells),
            _block_table(view, cells, meters, reference=reference, wide=width >= WIDE),
            *left.get(block, ()),
        ]
    shown += generation_tables(view)
    if absent := len(view.blocks) - len(tabled):
        words = f"{counted(absent, 'block')} of which nothing can be measured here: no table"
        shown.append(Text(f"\n{words}", style="dim"))
    if not tabled:
        return Group(_name(run), *shown)
    controlled = any(view.control(cells[0]) for cells in view.blocks.values())
    control = "\nA/A control: two equal modes differed by this much; 1 should be inside."
    legend = Text(
        f"× is the ratio to {reference}, with its 95% interval: below 1 is faster or smaller.\n"
        "× is the median of ratios taken round by round, not the quotient of the two medians; "
        "where they differ, the machine was disturbed: trust ×."
        f"{control if controlled else ''}{_of_columns(run, meters)}",
        style="dim",
    )
    return Group(_name(run), *shown, legend)


def _name(run: Run) -> Text:
    return Text(printable(f"run {run.name}"), style="bold")


def _not_here(view: View, cells: Sequence[Cell]) -> bool:
    """Return whether a block has no number for what it asks of the machine: then it has no rows."""
    stopped = [view.stopped(cell) for cell in cells]
    return all(why is not None and why.cause in NOT_HERE for why in stopped)


def check_table(checks: Sequence[Check]) -> Table:
    """Return what a self-check found, a row a figure; a miss is red."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("figure", "value", "target", "", ""):
        table.add_column(heading, overflow="fold")
    for check in checks:
        style = {True: BETTER, False: WORSE, None: ""}[check.passed]
        table.add_row(
            Text(printable(check.name)),
            Text(printable(check.words), justify="right"),
            Text(printable(check.target)),
            Text(check.verdict, style=style),
            Text(printable(check.detail), style="dim"),
        )
    return table


def check_lines(checks: Sequence[Check]) -> Iterator[Text]:
    """Yield a line for each check of what must hold: ok, BAD or unreadable, and what was seen."""
    for check in checks:
        style = {True: BETTER, False: WORSE, None: "dim"}[check.passed]
        line = Text(f"{check.status:<12}", style=style)
        figure = " ".join(filter(None, (check.words, check.target and f"(must be {check.target})")))
        line.append(printable(f"{check.name}: {figure}".rstrip(" :")), style="default")
        line.append(printable(f"  {check.detail}") if check.detail else "", style="dim")
        yield line


def _title(view: View, block: Block, cells: list[Cell]) -> Text:
    control = view.control(cells[0])
    title = Text(f"\n{block}", style="bold")
    if control is not None:
        title.append(
            f"  A/A control {format_units.interval(control.low, control.high)}", style="dim"
        )
    return title


def _columns(meters: Sequence[str]) -> tuple[str, ...]:
    """Return the meters of a table's columns: the usual two, or of a run without them its own."""
    usual = tuple(meter for meter in HEADINGS if meter in meters)
    return usual or tuple(meters)[:2]


def _of_columns(run: Run, meters: Sequence[str]) -> str:
    """Return what the legend says of the columns: what memory is, or which meters have none."""
    if MEMORY in meters:
        return "\nmemory is what the step adds to what was there before it."
    others = ", ".join(meter for meter in run.header.meters if meter not in meters)
    return f"\nOn the page alone: {others}." if others else ""


def _block_table(
    view: View, cells: list[Cell], meters: Sequence[str], *, reference: str, wide: bool
) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("", min_width=15)
    for meter in meters:
        ratio = 6 if meter == MEMORY else 22
        for heading, least in ((HEADINGS.get(meter, spaced(meter)), 12), ("×", ratio)):
            table.add_column(heading, justify="right", no_wrap=True, min_width=least)
    beside = _columns_beside(view, cells) if wide and set(meters) & set(HEADINGS) else {}
    for heading in beside:
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for cell in cells:
        values = [
            value
            for meter in meters
            for value in (view.value(cell, meter), view.ratio(cell, meter, reference))
        ]
        values += [value(cell) for value in beside.values()]
        table.add_row(Text(f"  {cell.grad_mode}"), *map(as_text, values))
    return table


def _columns_beside(view: View, cells: Sequence[Cell]) -> dict[str, Callable[[Cell], Value]]:
    """Return the columns beside time and memory that wide screens have, of meters asked for."""
    asked = view.run.header.meters
    columns: dict[str, Callable[[Cell], Value]] = {}
    if SAVED in asked:
        columns["saved in step"] = partial(view.value, meter=SAVED)
    if cells[0].compile != "off" and COMPILE_TIME in asked:
        columns["compile time"] = partial(view.value, meter=COMPILE_TIME)
    elif TIME in asked:
        columns["throughput"] = view.throughput
    return columns


def _left(evaluation: evaluations.Evaluation) -> Iterator[Padding]:
    """Yield a line for what evaluations left in the model, and in which modes."""
    for modes, words in evaluations.left_in_words(evaluation):
        line = f"left by the evaluation in {', '.join(modes)}: {words}"
        yield Padding(Text(printable(line), "dim"), (0, 0, 0, 2))


def as_text(value: Value) -> Text:
    """Return a value as a table shows it: what could not be read is dim."""
    return Text(printable(value.text), style=STYLES.get(value.kind, ""))
