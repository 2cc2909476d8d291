"""A bisection, finished or cut short: what was asked, the commits, what was measured of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource

Times = Literal["silent", "all", "none"]
"""Of which cells times are bisected: of those whose counts are equal at both ends, all, or none."""

MOST_COMMITS: Final = 20_000
"""Commits of a range: what each of them holds is kept in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A commit of the range, or one just before it."""

    id: str  # the whole hash
    parents: tuple[str, ...]
    author: str
    authored_at: str  # ISO 8601
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellCounts:
    """What a cell's step makes torch do at one commit; None for what could not be counted.

    ``failure`` are the words of a step that raises; then there are no counts. ``doubt`` says of one
    that was killed what else may have done that, and ``by_others`` that these may have been others:
    then it is not known whether it can be stepped. ``skipped`` says why nothing is known at all.
    """

    cell: Cell
    operators: Mapping[str, int] | None = None  # dispatched, by name
    nodes: int | None = None  # of the graph
    saved_bytes: int | None = None  # most at once, for backward
    peak_bytes: int | None = None  # most that the step adds to what was there before it
    failure: str = ""
    doubt: str = ""
    by_others: bool = False
    skipped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedCommit:
    """Every cell's counts at a commit, or why it could not be measured at all."""

    commit: str
    cells: tuple[CellCounts, ...] = ()
    skipped: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedCell:
    """How long a cell's step takes at a commit, held against another commit.

    ``logs`` are the replicates' log ratios, commit / base, of the fastest batches, and ``means``
    those of the means of all batches. ``apart`` says why the two took two processes, ``failure``
    why there is no time.
    """

    base: str
    commit: str
    cell: Cell
    logs: tuple[float, ...] = ()
    means: tuple[float, ...] = ()
    apart: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedInstructions:
    """What the host executes for a cell's step at the good commit and at another, side by side.

    ``counts`` are the good commit's and the other's, under valgrind; ``why`` says why there are
    none.
    """

    commit: str
    cell: Cell
    counts: tuple[int, int] | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """All that is known: enough to go on, and to say what came of it.

    ``commits`` are those of the range, parents before children; ``border`` are those that they
    begin from, the good one first. The good commit is counted twice, and so is the bad one where
    they differ, to find what does not repeat.
    """

    started_at: str  # UTC, ISO 8601
    asked: str  # the range, as it was typed
    good: str
    bad: str
    first_parent: bool
    paths: tuple[str, ...]  # only commits that touch these; all, where there are none
    cells: tuple[Cell, ...]
    sources: Mapping[str, ModelSource]
    times: Times
    threshold: float
    processes: int
    seed: int
    commits: tuple[Commit, ...]
    border: tuple[Commit, ...]
    build: str = ""  # a command of the shell for each tree; whoever goes on gives it again
    instructions: bool = False  # whether they are counted where the other counts are silent
    facts: Mapping[str, str] = field(default_factory=dict)  # versions of torch and Python
    counted: tuple[CountedCommit, ...] = ()
    instruction_counts: tuple[CountedInstructions, ...] = ()  # of the bad one twice, if it differs
    timed: tuple[TimedCell, ...] = ()
    complete: bool = False
