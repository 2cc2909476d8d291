"""A run as tables for the terminal; the doors print them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import slopes, tables, units
from .checks import Check
from .foretold import Fit, Prediction
from .matrix import Block, Cell, by_block
from .records import Measurement, Outcome
from .store import Run
from .verdicts import Verdict
from .view import MEMORY, TIME, Value, View, told

BETTER: Final = "green"
WORSE: Final = "red"
WIDE: Final = 104
"""Columns of a terminal from which on every column of the table fits."""

STYLES: Final[Mapping[str, str]] = {
    Verdict.BETTER: BETTER,
    Verdict.WORSE: WORSE,
    "reason": "dim",
    "reference": "dim",
}

FORETOLD_PARTS: Final = {
    "parameters": "params",
    "gradients": "grads",
    "optimizer_state": "optim",
    "saved": "saved",
    "other": "other",
}


def run_tables(run: Run, *, reference: str, width: int = WIDE) -> RenderableType:
    """Return a table a block: step time and memory with their ratios to the reference mode.

    A ratio is coloured when its interval excludes 1 by more than the block's noise floor. Below
    `WIDE` columns, throughput and bytes saved for backward are left out.
    """
    view = View(run)
    shown: list[RenderableType] = []
    for block, cells in view.blocks.items():
        shown += [
            _title(view, block, cells),
            _block_table(view, cells, reference=reference, wide=width >= WIDE),
        ]
    legend = Text(
        f"× is the ratio to {reference}, with its 95 % interval: below 1 is faster or smaller.\n"
        "memory is what the step adds to what was there before it.",
        style="dim",
    )
    return Group(Text(f"run {run.name}", style="bold"), *shown, legend)


def prediction_tables(
    predictions: Mapping[Cell, Prediction | str], *, reference: str
) -> RenderableType:
    """Return a table a block: predicted peaks, their ratio to the reference mode's, their parts.

    Where there is no prediction, the reason stands below.
    """
    shown: list[RenderableType] = []
    for block, cells in by_block(predictions).items():
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column("", min_width=15)
        for heading in ("peak", "×", "before", "adds", *FORETOLD_PARTS.values()):
            least = 6 if heading == "×" else 8
            table.add_column(heading, justify="right", no_wrap=True, min_width=least)
        against = predictions.get(tables.at(cells[0], reference))
        for cell in cells:
            found = predictions[cell]
            if isinstance(found, str):
                table.add_row(f"  {cell.grad_mode}", Text("none", style="dim"))
                continue
            ratio = found.peak_bytes / against.peak_bytes if isinstance(against, Prediction) else 0
            parts = found.anatomy.parts
            table.add_row(
                f"  {cell.grad_mode}",
                units.size(found.peak_bytes),
                units.factor(ratio) if ratio else "",
                units.size(found.before_bytes),
                units.size(found.transient_bytes),
                *(units.size(parts[part]) if parts[part] else "" for part in FORETOLD_PARTS),
            )
        reasons = dict.fromkeys(why for cell in cells if isinstance(why := predictions[cell], str))
        shown += [Text(f"\n{block}", style="bold"), table]
        shown += [Text(f"  {reason}", style="dim") for reason in reasons]
    return Group(*shown)


def scaling_tables(peaks: Mapping[Cell, int], *, reference: str) -> RenderableType | None:
    """Return the straight lines through peaks over batch size, depth and so on; None for none.

    The last column says how many times the reference mode's batch fits where memory is plenty.
    """
    lines = slopes.lines(peaks)
    allowed = slopes.break_even(lines, reference=reference)
    shown: list[RenderableType] = []
    for name, members in groupby(lines, key=_varied):
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column("", min_width=15)
        for heading, least in (("slope", 16), ("at none", 9), ("off by", 7), ("power", 6)):
            table.add_column(heading, justify="right", no_wrap=True, min_width=least)
        table.add_column(f"batch × {reference}", justify="right", no_wrap=True)
        for line in members:
            table.add_row(
                f"  {line.cell.grad_mode}",
                f"{units.size(line.slope)}/{slopes.KNOBS[line.knob]}",
                units.size(line.intercept),
                f"{line.off:.1%}",
                f"{line.exponent:.2f}" if line.curved else "",
                units.factor(allowed[line.cell])
                if line.knob == "batch_size" and line.cell in allowed
                else "",
            )
        shown += [Text(f"\n{name}: peak = at none + slope × size", style="bold"), table]
    return Group(*shown) if shown else None


def _varied(line: slopes.Line) -> str:
    cell = line.cell
    name = cell.block.family if line.knob == "batch_size" else str(cell.block)
    return f"{name} over {line.knob.replace('_', ' ')} {line.at[0]} to {line.at[-1]}"


def fit_table(
    fits: Sequence[tuple[Cell, Fit | str]], measured: Mapping[Cell, Outcome], *, reference: str
) -> Table:
    """Return the largest batch that fits, a row a cell, and what was measured at it and above."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in ("largest batch", f"× {reference}", "its peak", "one more"):
        table.add_column(heading, justify="right", no_wrap=True)
    if measured:
        table.add_column("measured", justify="right")
        table.add_column("one more", justify="right")
    batches = {cell: found.batch_size for cell, found in fits if isinstance(found, Fit)}
    for cell, found in fits:
        name = Text(f"{cell.block.family} {cell.grad_mode}")
        if isinstance(found, str):
            table.add_row(name, Text("none", style="dim"))
            continue
        against = batches.get(tables.at(cell, reference))
        row: list[RenderableType] = [
            name,
            f"{found.batch_size:,}",
            units.factor(found.batch_size / against) if against else "",
            _share(found.peak_bytes, found.budget_bytes) if found.batch_size else "",
            _share(found.next_bytes, found.budget_bytes),
        ]
        if measured:
            batches_tried = (found.batch_size, found.batch_size + 1)
            row += [
                _read(measured.get(replace(cell, batch_size=batch))) if batch else Text("")
                for batch in batches_tried
            ]
        table.add_row(*row)
    return table


def _share(nbytes: int | None, budget_bytes: int) -> str:
    if nbytes is None:
        return "no limit found"
    return f"{units.size(nbytes)} ({nbytes / budget_bytes:.2%})"


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


def _title(view: View, block: Block, cells: list[Cell]) -> Text:
    control = view.control(cells[0])
    title = Text(f"\n{block}", style="bold")
    if control is not None:
        title.append(f"  A/A control {units.interval(control.low, control.high)}", style="dim")
    return title


def _block_table(view: View, cells: list[Cell], *, reference: str, wide: bool) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("", min_width=15)
    for heading, least in (("step time", 12), ("×", 22), ("memory", 12), ("×", 6)):
        table.add_column(heading, justify="right", no_wrap=True, min_width=least)
    if wide:
        for heading, least in (("saved", 12), ("throughput", 11)):
            table.add_column(heading, justify="right", no_wrap=True, min_width=least)
    for cell in cells:
        values = [
            view.value(cell, TIME),
            view.ratio(cell, TIME, reference),
            view.value(cell, MEMORY),
            view.ratio(cell, MEMORY, reference),
        ]
        if wide:
            values += [view.value(cell, "saved_for_backward"), view.throughput(cell)]
        table.add_row(Text(f"  {cell.grad_mode}"), *map(_text, values))
    return table


def _read(outcome: Outcome | None) -> Text:
    figure = tables.estimate(outcome) if isinstance(outcome, Measurement) else None
    return _text(told(outcome, figure))


def _text(value: Value) -> Text:
    return Text(value.text, style=STYLES.get(value.kind, ""))
