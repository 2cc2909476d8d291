"""A run as a table for the terminal; the doors print it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rich.markup import escape
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
        floor = tables.control(run, cells[0])
        noise = f"  A/A {units.interval(floor.low, floor.high)}" if floor else ""
        table.add_row(Text(f"{block}", style="bold"), Text(noise, style="dim"))
        for cell in cells:
            line = _line(cell, have, reference, _floor(run, cells[0]))
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


def reasons(run: Run) -> Iterator[str]:
    """Yield each reason for a missing number once, with the cells it holds for."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for outcome in run.outcomes:
        if isinstance(outcome, Skipped) and outcome.cause != "unreadable":
            cells = grouped.setdefault((outcome.cause, outcome.reason), [])
            if str(outcome.cell) not in cells:
                cells.append(str(outcome.cell))
    for (cause, reason), cells in grouped.items():
        many = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
        yield f"{cause.replace('_', ' ')}: {', '.join(cells[:3])}{many}: {reason}"


def spent(run: Run) -> str:
    """Return in a sentence where the wall time went."""
    if run.ended is None:
        return "the run did not come to its end"
    seconds = run.ended.seconds
    total = sum(seconds.values())
    parts = ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())
    share = seconds.get("harness", 0.0) / total if total else 0.0
    return f"{total:.1f} s: {parts} (harness {share:.0%})"


def _floor(run: Run, cell: Cell) -> float:
    from .estimates import SYSTEMATIC, noise_floor

    control = tables.control(run, cell)
    return noise_floor(control) if control else SYSTEMATIC


def _line(
    cell: Cell, have: dict[tuple[Cell, str], Outcome], reference: str, floor: float
) -> Line:
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
        return Text(escape(outcome.cause.replace("_", " ")), style="dim")
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
