"""Two versions side by side: replicates until every cell of the table is settled, then verdicts.

Both sides are measured by the same scripts, the candidate's. What differs is where they import the
user's code from (and, if asked for, the interpreter with its torch).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..analysis import operation_changes
from ..errors import Impossible
from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource
from ..gate.figure_verdicts import FigureVerdict
from ..gate.result import GateResult, NotCompared
from ..plurals import counted
from ..runner import host_system
from ..stats import estimates, table_rule
from ..stats.estimates import MIN_DETECTABLE_EFFECT
from ..stats.table_rule import TableRule
from ..stats.verdicts import Verdict
from .budget import Budget
from .checkouts import Version
from .instruction_counts import InstructionCounter
from .replication import Replication, Replicator

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to compare: what counts as a change, replicates, and the time for all of it."""

    threshold: float = table_rule.THRESHOLD
    processes: int = table_rule.FIRST  # of each cell, and as many fresh ones or more to confirm
    budget_s: float = math.inf
    instructions: bool = False  # count them under valgrind, too
    seed: int = 0
    replication: Replication = field(default_factory=Replication)

    def __post_init__(self) -> None:
        if self.processes < table_rule.FEWEST:
            raise Impossible(
                f"{counted(self.processes, 'process')} cannot outvote a disturbed one: "
                f"{table_rule.FEWEST} at least"
            )
        if not MIN_DETECTABLE_EFFECT <= self.threshold < 1:
            raise Impossible(
                f"the threshold is a share of {MIN_DETECTABLE_EFFECT} or more, as 0.03, not "
                f"{self.threshold!r}"
            )
        if not self.budget_s > 0:
            raise Impossible(f"the budget is a number of seconds above 0, not {self.budget_s!r}")

    @property
    def rule(self) -> TableRule:
        """The rule by which the table is judged."""
        return TableRule(threshold=self.threshold, first=self.processes)


class Comparison:
    """Compares a table of cells between two versions."""

    def __init__(
        self,
        base: Version,
        candidate: Version,
        *,
        effort: Effort,
        sources: Mapping[str, ModelSource],
    ) -> None:
        self._rule, self._budget = effort.rule, Budget(effort.budget_s)
        self._instructions, self._out_of_time = effort.instructions, False
        self.replicator = Replicator(
            base, candidate, replication=effort.replication, sources=sources, seed=effort.seed
        )

    def open(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that need another replicate."""
        failed = self.replicator.results.failures
        logs = {cell: self.replicator.logs(cell) for cell in cells if cell not in failed}
        suspects = self._suspects(cells)
        return [cell for cell, own in logs.items() if self._rule.more(own, suspects=suspects)]

    def run(self, cells: Sequence[Cell], say: Say) -> None:
        """Measure until no cell is open, or the next replicate would not end within the budget."""
        self.replicator.examine(cells, self._budget)
        if words := self.replicator.unlike():
            say(words)
        round_number = 0
        while not self._budget.ended and (left := self.open(cells)):
            if self._budget.allows("replicate"):
                with self._budget.taking("replicate"):
                    self.replicator.replicate(left)
                round_number += 1
                say(self._progress(cells, round_number))
        self._out_of_time = self._budget.ended  # of times: instructions come after
        if self._instructions:
            InstructionCounter(self.replicator, budget=self._budget, say=say).count(cells)

    def _progress(self, cells: Sequence[Cell], round_number: int) -> str:
        left = self.open(cells)
        settled = len(cells) - len(left)
        words = f"replicate {round_number}: {settled} of {counted(len(cells), 'cell')} settled"
        if left and round_number >= self._rule.first:
            named = ", ".join(map(str, left[:3]))
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            words += f"; open: {named}{more}"
        return words

    def decision(self, cells: Sequence[Cell]) -> GateResult:
        """Return the verdicts that the replicates so far allow."""
        judged: list[FigureVerdict] = []
        not_compared: list[NotCompared] = []
        results, suspects = self.replicator.results, self._suspects(cells)
        for cell in cells:
            failed = results.failures.get(cell)
            if failed is not None:
                outcome = _failed(cell, failed)
                (judged if isinstance(outcome, FigureVerdict) else not_compared).append(outcome)  # type: ignore[arg-type] # each list takes its own kind
                continue
            if cell in results.replicates:
                judged.append(self._time(cell, suspects))
            else:
                why = "the budget ended before it was measured: loading torch is part of it"
                not_compared.append(
                    NotCompared(cell=cell, meter="step_time", why="no number", reason=why)
                )
            judged += self._saved(cell)
        return GateResult(
            figure_verdicts=tuple(judged),
            not_compared=tuple(not_compared),
            measured=len(results.replicates),
        )

    def _suspects(self, cells: Sequence[Cell]) -> int:
        """Return how many cells the first replicates leave open, or may yet leave so."""
        failed = self.replicator.results.failures
        return self._rule.suspects(self.replicator.logs(c) for c in cells if c not in failed)

    def _time(self, cell: Cell, suspects: int) -> FigureVerdict:
        results = self.replicator.results
        found = self._rule.verdict(self.replicator.logs(cell), suspects=suspects)
        base, candidate = zip(*(one.typical_ns for one in results.replicates[cell]), strict=True)
        reasons = [found.reason]
        if self._out_of_time and found.verdict is Verdict.INCONCLUSIVE:
            reasons.append("the budget ended")
        if cell in results.operations:
            reasons.append(operation_changes.in_words(*results.operations[cell]))
        if cell in results.uncounted:
            reasons.append(f"instructions not counted: {results.uncounted[cell]}")
        if cell in results.apart:
            reasons.append(f"in pairs of processes: {results.apart[cell]}")
        return FigureVerdict(
            cell=cell,
            meter="step_time",
            verdict=found.verdict,
            change=found.change,
            baseline=float(np.median(base)),
            candidate=float(np.median(candidate)),
            unit="ns",
            reason="; ".join(reasons),
        )

    def _saved(self, cell: Cell) -> Iterator[FigureVerdict]:
        sides = self.replicator.results.operations.get(cell, ({}, {}))
        before, now = (one.get("saved_bytes") for one in sides)
        if before is None or now is None:
            return
        verdict = (
            Verdict.WORSE if now > before else Verdict.BETTER if now < before else Verdict.SAME
        )
        yield FigureVerdict(
            cell=cell,
            meter="saved_for_backward",
            verdict=verdict,
            change=estimates.exact(now / before) if before else None,
            baseline=float(before),
            candidate=float(now),
            unit="bytes",
            reason=f"{now - before:+,} B" if now != before else "equal",
        )


def compare(
    cells: Sequence[Cell],
    *,
    base: Version,
    candidate: Version,
    effort: Effort | None = None,
    sources: Mapping[str, ModelSource] | None = None,
    say: Say = lambda _: None,
) -> GateResult:
    """Return the verdicts on the cells' step time and bytes saved for backward.

    ``sources`` says where models of the user's come from, by name. Cells that the first replicates
    leave open get fresh ones, by which alone they are confirmed; those that are settled get none.
    """
    if not host_system.here().forks:
        raise Impossible("versions are compared in forked processes, which only Linux has here")
    comparison = Comparison(base, candidate, effort=effort or Effort(), sources=sources or {})
    comparison.run(cells, say)
    return comparison.decision(cells)


def _failed(cell: Cell, words: Mapping[str, str]) -> FigureVerdict | NotCompared:
    """Return what it means that a side could not step the cell."""
    if len(words) == 2:
        return NotCompared(cell=cell, meter="step_time", why="no number", reason=words["candidate"])
    (name,) = words
    worse = name == "candidate"
    return FigureVerdict(
        cell=cell,
        meter="step_time",
        verdict=Verdict.WORSE if worse else Verdict.BETTER,
        change=None,
        baseline=None,
        candidate=None,
        unit="ns",
        reason=f"the {name} cannot step it: {words[name]}",
    )
