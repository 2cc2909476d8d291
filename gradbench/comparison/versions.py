"""Two versions side by side: replicates until every cell of the table is settled, then verdicts.

Both sides are measured by the same scripts, the candidate's. What differs is where they import the
user's code from (and, if asked for, the interpreter with its torch).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from ..analysis import operation_changes
from ..errors import Impossible
from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource
from ..gate.figure_verdicts import FigureVerdict
from ..gate.result import GateResult, NotCompared, PlacedReplicate
from ..plurals import counted
from ..runner import host_system
from ..stats import uneven_steps
from ..stats.machine_rule import MachineRule
from ..stats.replicate import Replicate
from ..stats.table_rule import CellVerdict, TableRule
from ..stats.verdicts import Verdict
from . import byte_readings, byte_verdicts
from .budget import Budget
from .checkouts import SIDES, Version
from .effort import Effort
from .instruction_counts import InstructionCounter
from .replicate_results import Results
from .replication import Replicator

Say = Callable[[str], None]
BUDGET_ENDED: Final = "the budget ended"
OUT_OF_TIME: Final = f"{BUDGET_ENDED} before it was measured: loading torch is part of it"


class Rule(Protocol):
    """How replicates come to verdicts: what it takes for a sample is its own matter."""

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of replicates at which a cell is tested."""

    def sample(self, replicates: Sequence[Replicate]) -> Any:
        """Return what is judged of a cell's replicates."""

    def independent(
        self, replicates: Sequence[Replicate], figure: Callable[[Replicate], float]
    ) -> Sequence[float]:
        """Return a figure of the replicates that are judged, one for each independent sample."""

    def suspects(self, table: Iterable[Any]) -> int:
        """Return how many cells of a table are tested."""

    def more(self, logs: Any, /, *, suspects: int) -> bool:
        """Return whether a cell needs more replicates."""

    def verdict(self, logs: Any, /, *, suspects: int) -> CellVerdict:
        """Return the verdict on a cell."""


def rule_of(effort: Effort, *, machines: int = 0) -> Rule:
    """Return the rule by which the table is judged, of ``machines`` as blocks if there are."""
    first, threshold = effort.processes, effort.threshold
    if machines:
        return MachineRule(machines=machines, threshold=threshold, first=first)
    return TableRule(threshold=threshold, first=first)


class Replicates(Protocol):
    """Who makes replicates: this machine, or several."""

    @property
    def results(self) -> Results:
        """What all replicates came to."""

    @property
    def machines(self) -> int:
        """How many machines are blocks of the statistics; 0 where it is over replicates."""

    @property
    def made_on(self) -> Mapping[str, Mapping[str, str]]:
        """The machines of a cluster that have made replicates, and what they are."""

    def examine(self, cells: Sequence[Cell], budget: Budget) -> None:
        """Learn what comes before any replicate."""

    def rounds(self, wanted: Callable[[], Sequence[Cell]], budget: Budget) -> Iterator[str]:
        """Make replicates of what is wanted; yield after each what to say beside its number."""

    def unlike(self) -> str:
        """Return in words where the sides' torch or Python differ, or ``""``."""


class Comparison:
    """Compares a table of cells between two versions."""

    def __init__(self, replicates: Replicates, *, effort: Effort) -> None:
        self._by = effort.rules
        self._rule = rule_of(effort, machines=replicates.machines)
        self._replicates, self._budget = replicates, Budget(effort.budget_s)
        self._threshold = effort.threshold
        self._out_of_time = False

    def open(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that need another replicate."""
        samples = self._samples(cells)
        suspects = self._rule.suspects(samples.values())
        given_up = self._replicates.results.given_up
        return [
            cell
            for cell, sample in samples.items()
            if cell not in given_up and self._rule.more(sample, suspects=suspects)
        ]

    def _samples(self, cells: Sequence[Cell]) -> dict[Cell, Any]:
        """Return what is judged of the cells that both sides can step."""
        results = self._replicates.results
        return {
            cell: self._rule.sample(results.replicates.get(cell, ()))
            for cell in cells
            if cell not in results.failures
        }

    def run(self, cells: Sequence[Cell], say: Say) -> None:
        """Measure until no cell is open, or the next replicate would not end within the budget."""
        self._replicates.examine(cells, self._budget)
        if unlike := self._replicates.unlike():
            say(unlike)
        made = self._replicates.rounds(lambda: self.open(cells), self._budget)
        for number, where in enumerate(made, start=1):
            if not unlike and (unlike := self._replicates.unlike()):  # known from machines only now
                say(unlike)
            say(self._progress(cells, number, where))
        self._out_of_time = self._budget.ended  # of times: instructions come after

    def count_instructions(self, replicator: Replicator, cells: Sequence[Cell], say: Say) -> None:
        """Count what the budget holds, by the replicator that made the replicates here."""
        InstructionCounter(replicator, budget=self._budget, say=say).count(cells)

    def _progress(self, cells: Sequence[Cell], round_number: int, where: str) -> str:
        left = self.open(cells)
        settled = len(cells) - len(left)
        of_cells = f"{settled} of {counted(len(cells), 'cell')} settled"
        words = f"replicate {round_number}{where}: {of_cells}"
        if left and round_number >= self._rule.looks[0]:
            named = ", ".join(map(str, left[:3]))
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            words += f"; open: {named}{more}"
        return words

    def decision(self, cells: Sequence[Cell]) -> GateResult:
        """Return the verdicts that the replicates so far allow."""
        judged: list[FigureVerdict] = []
        not_compared: list[NotCompared] = []
        results, samples = self._replicates.results, self._samples(cells)
        suspects = self._rule.suspects(samples.values())
        for cell in cells:
            failed = results.failures.get(cell)
            if failed is not None:
                outcome = _failed(cell, failed, results)
                (judged if isinstance(outcome, FigureVerdict) else not_compared).append(outcome)  # type: ignore[arg-type] # each list takes its own kind
                continue
            if cell in results.replicates:
                judged.append(self._time(cell, samples[cell], suspects, cells=len(samples)))
            else:
                why = self._why_no_more(cell, OUT_OF_TIME)
                not_compared.append(
                    NotCompared(cell=cell, meter="step_time", why="no number", reason=why)
                )
            for one in self._bytes(cell):
                (judged if isinstance(one, FigureVerdict) else not_compared).append(one)  # type: ignore[arg-type] # each list takes its own kind
        return GateResult(
            figure_verdicts=tuple(judged),
            not_compared=tuple(not_compared),
            measured=len(results.replicates),
            machines=dict(self._replicates.made_on),
            replicates=tuple(self._placed(cells)),
        )

    def _placed(self, cells: Sequence[Cell]) -> Iterator[PlacedReplicate]:
        """Yield which machine of a cluster each replicate was made on."""
        for cell in cells if self._replicates.made_on else ():
            for one in self._replicates.results.replicates.get(cell, ()):
                ratio = math.exp(one.log_ratio)
                yield PlacedReplicate(cell=cell, machine=one.machine, change=ratio)

    def _time(self, cell: Cell, sample: Any, suspects: int, *, cells: int) -> FigureVerdict:
        results = self._replicates.results
        verdict = self._rule.verdict(sample, suspects=suspects)
        made = results.replicates[cell]
        verdict = uneven_steps.judged(
            verdict,
            self._rule.independent(made, lambda one: one.log_ratio),
            self._rule.independent(made, lambda one: one.mean_log_ratio),
            threshold=self._threshold,
            cells=cells,
        )
        base, candidate = zip(*(one.typical_ns for one in made), strict=True)
        reasons = [verdict.reason]
        if verdict.average is not None:
            reasons.append("the change is that of the fastest")
        if verdict.verdict is Verdict.INCONCLUSIVE and self._rule.more(sample, suspects=suspects):
            reasons.append(self._why_no_more(cell, BUDGET_ENDED))
        if cell in results.operations:
            readings = results.readings.get(cell, ())
            counts = byte_readings.without_varying(results.operations[cell], readings)
            reasons.append(operation_changes.in_words(*counts))
        if cell in results.uncounted:
            reasons.append(f"instructions not counted: {results.uncounted[cell]}")
        if cell in results.apart:
            reasons.append(f"in pairs of processes: {results.apart[cell]}")
        elif cell in results.unshared:
            reasons.append(f"weights not shared: {results.unshared[cell]}")
        return FigureVerdict(
            cell=cell,
            meter="step_time",
            verdict=verdict.verdict,
            change=verdict.change,
            baseline=float(np.median(base)),
            candidate=float(np.median(candidate)),
            unit="ns",
            reason="; ".join(reasons),
        )

    def _bytes(self, cell: Cell) -> list[FigureVerdict | NotCompared]:
        results = self._replicates.results
        return byte_verdicts.outcomes(
            cell,
            results.readings.get(cell, ()),
            rules=self._by,
            unread=self._why_no_more(cell, OUT_OF_TIME),
            cut_short=self._why_no_more(cell, BUDGET_ENDED),
        )

    def _why_no_more(self, cell: Cell, of_budget: str) -> str:
        """Return why nothing more was measured of a cell: ``of_budget``, or what else it was."""
        known = self._replicates.results.given_up.get(cell)
        return known or (of_budget if self._out_of_time else "its processes were lost")


def compare(
    cells: Sequence[Cell],
    *,
    base: Version,
    candidate: Version,
    effort: Effort | None = None,
    sources: Mapping[str, ModelSource] | None = None,
    replicates: Replicates | None = None,
    say: Say = lambda _: None,
) -> GateResult:
    """Return the verdicts on the cells' step time, saved bytes and peak.

    ``sources`` says where models of the user's come from, by name; ``replicates`` are made by
    whoever is given, or else on this machine. Cells that the first replicates
    leave open get fresh ones, by which alone they are confirmed; those that are settled get none.
    """
    effort = effort or Effort()
    if replicates is not None:
        comparison = Comparison(replicates, effort=effort)
        comparison.run(cells, say)
        return comparison.decision(cells)
    if not host_system.here().forks:
        raise Impossible("versions are compared in forked processes, which only Linux has here")
    replicator = Replicator(
        base,
        candidate,
        replication=effort.replication,
        sources=sources or {},
        seed=effort.seed,
        say=say,
    )
    comparison = Comparison(replicator, effort=effort)
    comparison.run(cells, say)
    if effort.instructions:
        comparison.count_instructions(replicator, cells, say)
    return comparison.decision(cells)


def _failed(cell: Cell, words: Mapping[str, str], results: Results) -> FigureVerdict | NotCompared:
    """Return what it means that a side could not step the cell.

    A base that had too little time may be able to, and one that cannot import the model may not
    have had it: neither makes a candidate better. A side that others may have ended is in doubt. A
    candidate that had as long as asked is not to be trusted.
    """
    if len(words) == 2:
        return NotCompared(cell=cell, meter="step_time", why="no number", reason=words["candidate"])
    (name,) = words
    if name == SIDES[0] and (cell, name) in results.absent:
        reason = f"the {name}: {words[name]}"
        return NotCompared(cell=cell, meter="step_time", why="not comparable", reason=reason)
    if name == SIDES[0] and (lacking := results.lacking.get(cell)):
        reason = (
            f"the base's tree has no {lacking}, and the working tree has one: if no commit "
            "holds it, let --build put it there"
        )
        return NotCompared(cell=cell, meter="step_time", why="not comparable", reason=reason)
    verdict = Verdict.BETTER if name == SIDES[0] else Verdict.WORSE
    reason = f"the {name} cannot step it: {words[name]}"
    if doubt := results.doubts.get((cell, name)):
        verdict, reason = Verdict.INCONCLUSIVE, f"the {name} {doubt}"
    return FigureVerdict(
        cell=cell,
        meter="step_time",
        verdict=verdict,
        change=None,
        baseline=None,
        candidate=None,
        unit="ns",
        reason=reason,
    )
