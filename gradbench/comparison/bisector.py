"""Bisects: measures the commits that decide, and writes each measurement down as it is made.

What to measure next is asked of `analysis.bisection`; here commits are checked out, counted and
timed. So an interrupted bisection goes on from its record alone.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

from ..analysis.bisection import Findings
from ..analysis.bisection_jobs import Count, Instructions, Job, SideBySide, Time
from ..analysis.commit_graph import Graph, Search
from ..errors import BadModel, Impossible
from ..experiment.matrix import Cell
from ..git import GitError
from ..host_locks import Held
from ..plurals import counted
from ..printable import printable
from ..records.bisection import Bisection, CountedCommit, CountedInstructions, TimedCell
from ..runner import host_system
from ..store.bisections import BisectionFile
from . import commit_counts
from .alone import alone
from .budget import Budget
from .building import CannotBuild
from .checkouts import Project, Version
from .instruction_counts import InstructionCounter
from .replicate_effort import Replication
from .replication import Replicator

Say = Callable[[str], None]

KEPT: Final = 3
"""Worktrees that are kept at once, the good commit's among them."""


class Trees:
    """The commits that are checked out, the good one for as long as all; a context manager."""

    def __init__(self, project: Project, good: str) -> None:
        self._project, self._good = project, good
        self._open: dict[str, tuple[contextlib.ExitStack, Version]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            for opened, _version in self._open.values():
                stack.push(opened)
            self._open.clear()

    def at(self, commit: str, name: str) -> Version:
        """Return a commit's tree as a side of that name; raise `GitError` or `CannotBuild`."""
        known = self._open.pop(commit, None)
        if known is None:
            self._make_room()
            with contextlib.ExitStack() as stack:
                tree = stack.enter_context(self._project.checked_out(commit, commit[:12]))
                known = stack.pop_all(), self._project.version(name, tree)
        self._open[commit] = known  # the latest is the last
        return replace(known[1], name=name)

    def _make_room(self) -> None:
        others = [commit for commit in self._open if commit != self._good]
        if len(others) + 1 >= KEPT:
            self._open.pop(others[0])[0].close()


@dataclass(slots=True)
class _Pair:
    """Two commits that are timed against each other, and what was known of them before."""

    base: str
    commit: str
    replicator: Replicator
    before: Mapping[Cell, TimedCell]
    examined: set[Cell] = field(default_factory=set)


class Bisector:
    """Makes one measurement after the other, until all is known or the time is over."""

    def __init__(
        self,
        project: Project,
        file: BisectionFile,
        record: Bisection,
        *,
        replication: Replication | None = None,
        say: Say = lambda _: None,
    ) -> None:
        self.record = record
        self.graph = Graph(record.commits, record.border)
        self._project, self._file, self._say = project, file, say
        self._how = replication or Replication()
        self._pair: _Pair | None = None

    def run(self, *, budget_s: float = math.inf) -> Findings:
        """Measure until nothing is left, or the next job would not end in time; return it all.

        Raise `BadModel` where an end of the range cannot be measured.
        """
        if not host_system.here().forks:
            raise Impossible("versions are compared in forked processes, which only Linux has here")
        budget = Budget(budget_s)
        with Trees(self._project, self.record.good) as trees:
            self._save(self.record)
            while (job := self._findings().next_job) is not None:
                kind = type(job).__name__
                if not budget.allows(kind):
                    break
                if isinstance(job, Time):  # a build may itself measure: while no core is held
                    with budget.taking(kind):
                        self._pair_of(job, trees)
                try:
                    with self._alone(job, budget), budget.taking(kind):
                        self._do(job, trees)
                except Held:  # for all of the time that is left
                    break
                self._check_ends()
        found = self._findings()
        self._save(replace(self.record, complete=found.is_finished))
        return Findings(self.record, self.graph)

    def _alone(self, job: Job, budget: Budget) -> contextlib.AbstractContextManager[None]:
        """Return what keeps other measurements away while a job takes times."""
        if not isinstance(job, Time):
            return contextlib.nullcontext()
        return alone(job.cells, wait_s=budget.left_s, waiting=self._say)

    def _findings(self) -> Findings:
        return Findings(self.record, self.graph)

    def _save(self, record: Bisection) -> None:
        self._file.save(record)
        self.record = record

    def _check_ends(self) -> None:
        end = self._findings().counts.unmeasurable_end
        if end is not None:
            which = "good" if end[0] == self.record.good else "bad"
            raise BadModel(
                f"the {which} commit {end[0][:10]} cannot be measured, so nothing can be found: "
                f"{end[1]}"
            )

    def _do(self, job: Job, trees: Trees) -> None:
        if isinstance(job, Count):
            known = any(one.commit == job.commit for one in self.record.counted)
            again = ", again, to see what repeats" if known else ""
            self._say(f"counting {self._about(job.commit)}{again}{_left(job.search)}")
            self._count(job.commit, trees)
        elif isinstance(job, Time):
            self._time(job, trees)
        else:
            self._count_instructions(job, trees)

    def _about(self, commit: str) -> str:
        known = self.graph.by_id[commit]
        return f"{known.id[:10]} {printable(known.subject)[:60]}"

    # Counts

    def _count(self, commit: str, trees: Trees) -> None:
        start, facts = time.monotonic(), dict(self.record.facts)
        try:
            version = trees.at(commit, "candidate")
            cells, seen = commit_counts.count(
                version,
                self.record.cells,
                self.record.sources,
                seed=self.record.seed,
                limit_s=self._how.limit_s,
            )
        except (commit_counts.CannotStart, BadModel, GitError, CannotBuild) as error:
            counts = CountedCommit(commit=commit, skipped=str(error))
        else:
            facts = self._facts(seen)
            skipped = {one.skipped for one in cells}
            why = cells[0].skipped if "" not in skipped else ""
            counts = CountedCommit(commit=commit, cells=cells, skipped=why)
        counts = replace(counts, seconds=round(time.monotonic() - start, 3))
        self._save(replace(self.record, counted=(*self.record.counted, counts), facts=facts))

    def _facts(self, seen: Mapping[str, str]) -> dict[str, str]:
        """Return the facts by which counts may be held together; raise where they differ."""
        now = {name: str(seen[name]) for name in ("torch", "python") if name in seen}
        if self.record.facts and now != self.record.facts:
            before = ", ".join(f"{name} {one}" for name, one in self.record.facts.items())
            here = ", ".join(f"{name} {one}" for name, one in now.items())
            raise Impossible(f"it was begun with {before}, and here is {here}: begin anew")
        return now

    # Instructions

    def _count_instructions(self, job: Instructions, trees: Trees) -> None:
        """Count the cells at a commit and at its base, side by side."""
        pair = self._pair_of(job, trees)
        about = f"instructions of {self._about(job.commit)}{_left(job.search)}"
        try:
            self._examine(pair, job.cells)
            counter = InstructionCounter(
                pair.replicator,
                budget=Budget(),  # it was asked before the job was begun
                say=lambda words: self._say(f"{about}: {words.removeprefix('instructions: ')}"),
            )
            counter.count(job.cells)
        except BadModel as error:
            rows = [_uncounted(job, cell, str(error)) for cell in job.cells]
        else:
            rows = [self._instructions_of(pair, job, cell) for cell in job.cells]
        record = self.record
        self._save(replace(record, instruction_counts=(*record.instruction_counts, *rows)))

    def _instructions_of(self, pair: _Pair, job: Instructions, cell: Cell) -> CountedInstructions:
        results = pair.replicator.results
        if cell in results.uncounted:
            return _uncounted(job, cell, results.uncounted[cell])
        if cell in results.failures:
            return _uncounted(job, cell, _in_words(results.failures[cell]))
        base, own = (side["instructions"] for side in results.operations[cell])
        return CountedInstructions(commit=job.commit, cell=cell, counts=(base, own))

    # Times

    def _time(self, job: Time, trees: Trees) -> None:
        """Measure another replicate of each of the job's cells."""
        pair = self._pair_of(job, trees)
        known = max(len(self._known(job, cell).logs) for cell in job.cells)
        self._say(
            f"timing {self._about(job.commit)} against {job.base[:10]}: replicate {known + 1}, "
            f"{counted(len(job.cells), 'cell')}{_left(job.search)}"
        )
        try:
            self._examine(pair, job.cells)
            pair.replicator.replicate(job.cells)
        except BadModel as error:
            failed = [replace(self._known(job, cell), failure=str(error)) for cell in job.cells]
        else:
            failed = [self._timed(pair, cell) for cell in job.cells]
        fresh = {(one.base, one.commit, one.cell): one for one in failed}
        others = [one for one in self.record.timed if (one.base, one.commit, one.cell) not in fresh]
        self._save(replace(self.record, timed=(*others, *fresh.values())))

    # Both

    def _examine(self, pair: _Pair, cells: Sequence[Cell]) -> None:
        """Learn once of each cell whether the two commits can share a process."""
        unseen = [cell for cell in cells if cell not in pair.examined]
        if unseen:
            pair.replicator.examine(unseen, readings=1)
            pair.examined |= set(unseen)

    def _pair_of(self, job: SideBySide, trees: Trees) -> _Pair:
        base, candidate = trees.at(job.base, "base"), trees.at(job.commit, "candidate")
        pair = self._pair
        if pair is None or (pair.base, pair.commit) != (job.base, job.commit):
            made = [one for one in self.record.timed if one.base == job.base]
            before = {one.cell: one for one in made if one.commit == job.commit}
            replicator = Replicator(
                base,
                candidate,
                replication=self._how,
                sources=self.record.sources,
                seed=self.record.seed,
                layout_seed=self.record.seed + sum(len(one.logs) + 1 for one in self.record.timed),
            )
            # once in two processes, always: its replicates are of one kind, and grow in number
            replicator.results.apart.update(
                {c: one.apart for c, one in before.items() if one.apart}
            )
            pair = self._pair = _Pair(job.base, job.commit, replicator, before)
        return pair

    def _known(self, job: Time, cell: Cell) -> TimedCell:
        known = (
            one
            for one in self.record.timed
            if (one.base, one.commit, one.cell) == (job.base, job.commit, cell)
        )
        return next(known, TimedCell(base=job.base, commit=job.commit, cell=cell))

    def _timed(self, pair: _Pair, cell: Cell) -> TimedCell:
        """Return all replicates of a cell: this process's, and those of before, if made alike."""
        results = pair.replicator.results
        apart, before = results.apart.get(cell, ""), pair.before.get(cell)
        nothing = TimedCell(base=pair.base, commit=pair.commit, cell=cell)
        earlier = before if before is not None and _alike(before, apart) else nothing
        made = pair.replicator.replicates_of(cell)
        failures = results.failures.get(cell, {} if made else {"both": "no replicate was made"})
        failure = _in_words(failures)
        return replace(
            nothing,
            logs=(*earlier.logs, *(one.log_ratio for one in made)),
            means=(*earlier.means, *(one.mean_log_ratio for one in made)),
            apart=apart,
            failure=failure,
        )


def _alike(before: TimedCell, apart: str) -> bool:
    """Return whether a record's replicates are of the kind that is made now, which they join."""
    return before.apart == apart and len(before.means) == len(before.logs)


def _uncounted(job: Instructions, cell: Cell, why: str) -> CountedInstructions:
    return CountedInstructions(commit=job.commit, cell=cell, why=why)


def _in_words(failures: Mapping[str, str]) -> str:
    return "; ".join(f"{side}: {words}" for side, words in failures.items())


def _left(search: Search | None) -> str:
    if search is None or not search.suspects:
        return ""
    return f" ({counted(search.untested, 'commit')} left, about {counted(search.steps, 'step')})"
