"""The numbers of a run, one by one, as exports to other tools take them."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..analysis import dataframes
from ..errors import StoreError
from ..experiment.matrix import Cell
from ..printable import json_without_commands, printable_data
from ..records.measurements import Measurement, Skipped
from ..records.run import Run
from ..stats.estimates import Estimate
from ..store.comparability import agreeing, identity

BROKEN: Final = ("out_of_memory", "crashed", "timed_out", "failed")
"""Causes of a missing number that nobody expects."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Files by their relative path, and in words which figures the format could not take."""

    files: Mapping[str, str]
    left_out: Sequence[str] = field(default=())


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of one cell, per step and in ``unit``; a ``latency`` has one per percentile."""

    cell: Cell
    name: str
    unit: str  # "ns", "bytes", "uJ", "instructions", "ppt"
    estimate: Estimate
    measurement: Measurement

    @property
    def label(self) -> str:
        """``inference[cpu-mlp_tiny-b1-no_grad] step_time``, unique within a run."""
        return f"{self.cell} {self.name}"


def figures(run: Run) -> Iterator[Figure]:
    """Yield every number of a run, in the order it was measured."""
    for outcome in run.outcomes:
        if isinstance(outcome, Measurement):
            for name, estimate in dataframes.figures(outcome).items():
                yield Figure(outcome.cell, name, outcome.unit, estimate, outcome)


def without_number(run: Run) -> list[str]:
    """Return in words which outcomes of a run are reasons: no format of numbers can take those."""
    return [
        f"{outcome.cell} {outcome.meter}: {outcome.cause.replace('_', ' ')}"
        for outcome in run.outcomes
        if isinstance(outcome, Skipped)
    ]


def only(runs: Sequence[Run], format_name: str) -> Run:
    """Return the only run there is; raise `StoreError` for none or several."""
    if len(runs) != 1:
        raise StoreError(
            f"{format_name} describes one run, not {len(runs)}: name one, or join the shards of "
            "one matrix with gradbench merge"
        )
    return runs[0]


def with_number(runs: Sequence[Run], format_name: str) -> Run:
    """Return the only run there is, as `only`; raise `StoreError` unless it holds a number."""
    run = only(runs, format_name)
    if not any(isinstance(outcome, Measurement) for outcome in run.outcomes):
        raise StoreError(f"run {run.name} holds no number: there is nothing to export")
    return run


def commit(run: Run, format_name: str) -> str:
    """Return the full hash of the commit that was measured; raise `StoreError` where none is."""
    sha = str(run.environment.facts.get("git_commit", "not recorded"))
    if re.fullmatch(r"[0-9a-f]{40,64}", sha) is None:
        raise StoreError(
            f"run {run.name} has no commit ({sha}), and {format_name} orders its results by "
            "commit: measure inside a git repository"
        )
    return sha


def machine_mark(run: Run) -> str:
    """Return six characters that tell a run's machine from others, to keep their times apart."""
    names = agreeing("timed", devices(run), scope="machine")
    return identity(run.environment.facts, names)[:6]


def devices(run: Run) -> list[str]:
    """Return the devices that a run has cells on, in their order."""
    return list(dict.fromkeys(cell.device for cell in run.header.cells))


def slug(text: str) -> str:
    """Return text that is safe as a file's name: letters, digits, ``.``, ``_``, ``+`` and ``-``.

    Text that had to be changed ends in a mark of its own, so that two texts never become one.
    """
    safe = re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII).strip("_.")
    if safe == text:
        return safe
    return f"{safe}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"


def json_text(content: object, *, indent: int | None = 1) -> str:
    """Return plain data as JSON for other tools: all text `printable`, every number finite."""
    text = json.dumps(printable_data(content), indent=indent, ensure_ascii=False, allow_nan=False)
    return json_without_commands(text) + "\n"
