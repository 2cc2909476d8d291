"""A run cut down to what repeats: small enough to commit, and to be gated against anywhere."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from ..errors import StoreError
from ..records.measurements import (
    Breakdown,
    Ended,
    Environment,
    Measurement,
    Record,
    Skipped,
    Started,
)
from ..records.run import Run
from .comparability import kept_for_exact
from .jsonl import load
from .run_lines import BrokenSeal

COMMAND: Final = ("gradbench", "gate")
"""What a baseline's header says that it was made by."""


def check_place(path: Path) -> None:
    """Raise `StoreError` where a run lies that a baseline would take the place of."""
    if not path.exists():
        return
    try:
        there = load(path)
    except BrokenSeal:  # of no use to anybody
        return
    if there.header.command != COMMAND:
        raise StoreError(
            f"{str(path)!r} is a run, not a baseline, and would lose its times: "
            "choose another name for the baseline"
        )


def exact_records(run: Run) -> Iterator[Record]:
    """Yield the records of a run that hold figures which repeat, and what is needed to read them.

    Of the environment only facts remain that decide whether such figures may be compared: names
    of machines have no place in a repository. Raise `StoreError` when there is no such figure.
    """
    meters = {r.meter for r in run.outcomes if isinstance(r, Measurement) and r.exact}
    if not meters:
        raise StoreError(
            f"run {run.name!r} has no deterministic metric: measure with --meter saved_for_backward"
        )
    devices = {cell.device for cell in run.header.cells}
    for record in run.records:
        match record:
            case Started():
                asked = tuple(meter for meter in record.meters if meter in meters)
                yield replace(record, meters=asked, command=COMMAND)
            case Environment(facts=facts):
                yield Environment(facts=kept_for_exact(facts, devices))
            case Measurement() | Skipped() if record.meter in meters:
                yield record
            case Breakdown() | Ended():
                yield record
            case _:
                pass
