"""A run as a table for the terminal; the doors print it."""

from dataclasses import dataclass
from typing import Final

from rich.table import Table
from rich.text import Text

from . import tables, units
from .matrix import Cell, by_block
from .records import Measurement, Outcome, Skipped
from .store import Run

FASTER: Final = "green"
SLOWER: Final = "red"


@dataclass(frozen=True, slots=True)
class Line:
    """One cell's row."""

    label: str
    time: Text
    time_ratio: Text
    throughput: str
    peak: str
    peak_ratio: Text
    saved: str


def run_table(run: Run, *, reference: str) -> Table:
    """Return one row per cell: step time and peak memory with their ratios to the reference.

    A ratio whose interval excludes 1 by more than the block's noise floor is coloured.
    """
    table = Table(
        title=f"run {run.name}",
        caption=f"x: ratio to {reference} with 95 % interval; below 1 is faster or smaller. "
        "Memory is what the step adds to what was there before it.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("cell", no_wrap=True)
    for heading in ("step time", "x", "throughput", "memory", "x", "saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    have = {(outcome.cell, outcome.meter): outcome for outcome in run.outcomes}
    for block, cells in by_block(run.started.cells).items():
        table.add_section()
        control = tables.control(run, cells[0])
        words = f"A/A {units.interval(control.low, control.high)}" if control else ""
        table.add_row(Text(str(block), style="bold"), Text(words, style="dim"))
        for cell in cells:
            line = _line(cell, have, reference, tables.noise(run, cells[0]))
            table.add_row(
                f"  {line.label}",
                line.time,
                line.time_ratio,
                line.throughput,
                line.peak,
                line.peak_ratio,
                line.saved,
            )
    return table


def _line(cell: Cell, have: dict[tuple[Cell, str], Outcome], reference: str, floor: float) -> Line:
    time, peak, saved = (
        have.get((cell, meter)) for meter in ("step_time", "peak_transient", "saved_for_backward")
    )
    return Line(
        label=cell.grad_mode,
        time=_value(time),
        time_ratio=_ratio(cell, have, "step_time", reference, floor),
        throughput=(
            units.rate(cell.batch_size / tables.estimate(time).point * 1e9)
            if isinstance(time, Measurement)
            else ""
        ),
        peak=_value(peak).plain,
        peak_ratio=_ratio(cell, have, "peak_transient", reference, 0.0),
        saved=_value(saved).plain,
    )


def _value(outcome: Outcome | None) -> Text:
    if outcome is None:
        return Text("not measured", style="dim")
    if isinstance(outcome, Skipped):
        return Text(outcome.cause.replace("_", " "), style="dim")
    return Text(units.quantity(tables.estimate(outcome).point, outcome.unit))


def _ratio(
    cell: Cell,
    have: dict[tuple[Cell, str], Outcome],
    meter: str,
    reference: str,
    floor: float,
) -> Text:
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
    style = ""
    if change.high < 1 - floor:
        style = FASTER
    elif change.low > 1 + floor:
        style = SLOWER
    return Text(words, style=style)
