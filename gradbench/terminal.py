"""A run as tables for the terminal; the doors print them."""

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import tables, units
from .checks import Check
from .matrix import Block, Cell, by_block
from .records import Measurement, Outcome, Skipped
from .store import Run

BETTER: Final = "green"
WORSE: Final = "red"
WIDE: Final = 104
"""Columns of a terminal from which on every column of the table fits."""

Outcomes = Mapping[tuple[Cell, str], Outcome]


def run_tables(run: Run, *, reference: str, width: int = WIDE) -> RenderableType:
    """Return a table a block: step time and memory with their ratios to the reference mode.

    A ratio is coloured when its interval excludes 1 by more than the block's noise floor. Below
    `WIDE` columns, throughput and bytes saved for backward are left out.
    """
    have = {(outcome.cell, outcome.meter): outcome for outcome in run.outcomes}
    blocks = by_block(run.started.cells)
    shown: list[RenderableType] = []
    for block, cells in blocks.items():
        shown += [
            _title(run, block, cells),
            _block_table(run, cells, have, reference=reference, wide=width >= WIDE),
        ]
    legend = Text(
        f"× is the ratio to {reference}, with its 95 % interval: below 1 is faster or smaller.\n"
        "memory is what the step adds to what was there before it.",
        style="dim",
    )
    return Group(Text(f"run {run.name}", style="bold"), *shown, legend)


def check_table(checks: Sequence[Check]) -> Table:
    """Return what a self-check found, a row a figure; a miss is red."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("figure", "value", "target", "", ""):
        table.add_column(heading, overflow="fold")
    for check in checks:
        style = {True: BETTER, False: WORSE, None: ""}[check.passed]
        table.add_row(
            check.name,
            Text(check.words, justify="right"),
            check.target,
            Text(check.verdict, style=style),
            Text(check.detail, style="dim"),
        )
    return table


def _title(run: Run, block: Block, cells: list[Cell]) -> Text:
    control = tables.control(run, cells[0])
    title = Text(f"\n{block}", style="bold")
    if control is not None:
        title.append(f"  A/A control {units.interval(control.low, control.high)}", style="dim")
    return title


def _block_table(
    run: Run, cells: list[Cell], have: Outcomes, *, reference: str, wide: bool
) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("", min_width=15)
    for heading, least in (("step time", 12), ("×", 22), ("memory", 12), ("×", 6)):
        table.add_column(heading, justify="right", no_wrap=True, min_width=least)
    if wide:
        for heading, least in (("saved", 12), ("throughput", 11)):
            table.add_column(heading, justify="right", no_wrap=True, min_width=least)
    floor = tables.noise(run, cells[0])
    for cell in cells:
        time = have.get((cell, "step_time"))
        row = [
            Text(f"  {cell.grad_mode}"),
            _value(time),
            _ratio(cell, have, "step_time", reference, floor),
            _value(have.get((cell, "peak_transient"))),
            _ratio(cell, have, "peak_transient", reference, 0.0),
        ]
        if wide:
            row += [_value(have.get((cell, "saved_for_backward"))), _throughput(time)]
        table.add_row(*row)
    return table


def _value(outcome: Outcome | None) -> Text:
    if outcome is None:
        return Text("not measured", style="dim")
    if isinstance(outcome, Skipped):
        return Text(outcome.cause.replace("_", " "), style="dim")
    return Text(units.quantity(tables.estimate(outcome).point, outcome.unit))


def _throughput(time: Outcome | None) -> Text:
    if not isinstance(time, Measurement):
        return Text("")
    return Text(units.rate(tables.throughput(time).point))


def _ratio(cell: Cell, have: Outcomes, meter: str, reference: str, floor: float) -> Text:
    ours, theirs = have.get((cell, meter)), have.get((tables.at(cell, reference), meter))
    if not (isinstance(ours, Measurement) and isinstance(theirs, Measurement)):
        return Text("")
    if cell.grad_mode == reference:
        return Text("1", style="dim")
    change = tables.ratio(ours, theirs)
    if change is None:
        return Text("")
    words = units.factor(change.point)
    if not change.exact:
        words += f" {units.interval(change.low, change.high)}"
    better, worse = change.high < 1 - floor, change.low > 1 + floor
    return Text(words, style=BETTER if better else WORSE if worse else "")
