"""What can change between two commits, and how: figures, their values, and the commits to blame."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ..experiment.matrix import Cell
from ..records.bisection import CountedCommit
from ..stats import verdicts
from ..stats.estimates import Estimate
from ..stats.verdicts import Verdict

COUNTS: Final[Mapping[str, str]] = {
    "operators": "operators",
    "nodes": "graph nodes",
    "saved_bytes": "saved for backward",
    "peak_bytes": "peak that a step adds",
}
"""The figures that are counted, and what they are called."""
STEPS: Final = "steps"
INSTRUCTIONS: Final = "instructions"
TIME: Final = "step_time"
NAMES: Final[Mapping[str, str]] = {
    **COUNTS,
    STEPS: "can be stepped",
    INSTRUCTIONS: "instructions",
    TIME: "step time",
}
UNITS: Final[Mapping[str, str]] = {"saved_bytes": "bytes", "peak_bytes": "bytes", TIME: "ratio"}

Value = int | bool | tuple[tuple[str, int], ...]
"""A count; of operators how many there are of each; whether a cell can be stepped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A figure of a cell."""

    cell: Cell
    figure: str

    def __str__(self) -> str:
        return f"{NAMES[self.figure]} of {self.cell}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of a figure: the commits that one of made it, oldest first, and from what to what.

    ``before`` is the commit that it is held against. ``verdict`` is better, worse, or changed where
    neither can be said. A time is a ratio to that of ``before``, and ``estimate`` its interval.
    """

    key: Key
    suspects: tuple[str, ...]
    before: str
    verdict: str
    old: float
    new: float
    words: str
    estimate: Estimate | None = None
    inherited: bool = False  # a merge brings it in, from a line that was so already


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """One commit, or some of which it is one, with all that changed there."""

    suspects: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def verdict(self) -> str:
        """``worse`` where any figure is, else ``better`` where any is, else ``changed``."""
        found = {change.verdict for change in self.changes}
        return next((one for one in ("worse", "better") if one in found), "changed")


def total(value: Value) -> int:
    """Return a value as one number."""
    return sum(number for _, number in value) if isinstance(value, tuple) else int(value)


def verdict_of(old: Value, new: Value) -> str:
    """Return whether a value is worse than another, better, or merely another."""
    if isinstance(old, bool):
        return "better" if new else "worse"
    verdict = verdicts.of_exact(total(old), total(new))
    return "changed" if verdict is Verdict.SAME else verdict.value


def values_of(counted: CountedCommit) -> Iterator[tuple[Key, Value]]:
    """Yield the figures that are known of a commit."""
    for counts in counted.cells:
        if counts.skipped:
            continue
        if not counts.by_others:
            yield Key(cell=counts.cell, figure=STEPS), not counts.failure
        if counts.failure:
            continue
        if counts.operators is not None:
            yield Key(cell=counts.cell, figure="operators"), tuple(sorted(counts.operators.items()))
        for figure in ("nodes", "saved_bytes", "peak_bytes"):
            value: int | None = getattr(counts, figure)
            if value is not None:
                yield Key(cell=counts.cell, figure=figure), value
