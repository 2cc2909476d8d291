"""A study's advice in one screen of 80 columns."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..analysis import format_units
from ..analysis.advice import FORGOTTEN, Advice
from ..printable import printable
from ..records.advice import Finding, LargestBatch
from .run_tables import as_text

COLUMNS: Final = 80
QUOTIENT: Final = "× is the median of ratios taken round by round, not the quotient of two times."
FOUND: Final = 4
"""Findings that the screen has room for; the page has all."""


def advice_screen(advice: Advice) -> RenderableType:
    """Return the answer, the modes side by side, and what else there is to know."""
    return Group(
        Text(str(advice.study.cells[0].block), style="bold"),
        *(_prose(sentence) for sentence in advice.answer()),
        Text(),
        _modes(advice),
        *([Text(QUOTIENT, style="dim")] if advice.timed else []),
        Text(),
        _facts(advice),
    )


def at_length(advice: Advice) -> list[str]:
    """Return what stands beneath the screen: the command that measures the model thoroughly.

    It is a line of its own, however long, so that it can be copied; [] where there is none.
    """
    thorough = printable(advice.study.thorough)
    return ["", "To measure it at length:", thorough] if thorough else []


def _modes(advice: Advice) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", min_width=16)
    for heading in ("step time", f"× {FORGOTTEN}", "throughput", "peak", "saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in advice.rows():
        name = Text(f"{'*' if row.advised else ' '} {row.mode}")
        values = (row.time, row.ratio, row.throughput, row.peak, row.saved)
        table.add_row(name, *map(as_text, values))
    return table


def _facts(advice: Advice) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim", min_width=10)
    table.add_column(overflow="fold", ratio=1)
    table.add_row("outputs", Text(printable(advice.outputs())))
    if advice.timed:
        floor = format_units.noise(advice.floor())
        table.add_row("sure", f"{advice.when_sure()}; noise floor {floor}")
    for number, line in enumerate(_found(advice.findings(), ran=bool(advice.modes))):
        table.add_row("found" if number == 0 else "", line)
    for number, line in enumerate(_batches(advice)):
        table.add_row("batch" if number == 0 else "", line)
    for number, gain in enumerate(advice.gains()):
        line = Text.assemble((gain.name, "bold"), printable(f": {gain.words}"))
        table.add_row("try" if number == 0 else "", line)
    return table


def _found(findings: Sequence[Finding], *, ran: bool) -> Iterator[Text]:
    if ran and not findings:
        yield Text("nothing that would cost or break", style="dim")
    for finding in findings[:FOUND]:
        line = Text(printable(finding.what))
        line.append(printable(f" ({finding.line})") if finding.line else "", style="dim")
        line.append(f": {finding.cure}" if finding.cure else "")
        yield line
    if len(findings) > FOUND:
        yield Text(f"and {len(findings) - FOUND} more: --json, or the page", style="dim")


def _batches(advice: Advice) -> Iterator[Text]:
    shown = list(advice.batches())
    if shown:
        study = advice.study
        yield Text(f"the largest in {format_units.size(study.memory_bytes)}, {study.memory_of}:")
    for batch, ratio in shown:
        line = Text(f"  {batch.purpose:<26} ")
        if batch.fit is None:
            line.append(printable(batch.reason), style="dim")
        else:
            line.append(f"{batch.fit.size:>9}")
            line.append(f"   × {format_units.factor(ratio)}" if ratio is not None else "")
        yield line
    for how, purposes in _not_predicted(shown).items():
        of = "" if len(purposes) == len(shown) else f"{', '.join(purposes)}: "
        yield Text(f"  {of}{how}", style="yellow")


def _not_predicted(shown: Iterable[tuple[LargestBatch, float | None]]) -> dict[str, list[str]]:
    """Return which batches were found otherwise than by prediction, by how they were."""
    purposes: dict[str, list[str]] = {}
    for batch, _ in shown:
        if batch.fit is not None and batch.fit.how:
            purposes.setdefault(batch.fit.how, []).append(batch.purpose)
    return purposes


def _prose(sentence: str) -> Text:
    """Return a sentence, its names in backticks in bold instead."""
    line = Text()
    for number, part in enumerate(re.split(r"`([^`]*)`", sentence)):
        line.append(printable(part), style="bold" if number % 2 else "")
    return line
