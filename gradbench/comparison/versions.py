"""Two versions side by side: fresh pairs of processes that take turns, until there is a verdict.

Both sides are measured by the same script, `worker`, the candidate's. What differs is where they
import the user's code from (and, if asked for, the interpreter with its torch).
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import devices
from ..errors import BadModel, Impossible
from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource
from ..gate.figure_verdicts import FigureVerdict
from ..gate.result import GateResult, NotCompared
from ..runner import host_system
from ..runner.interleave import calibrate
from ..stats import estimates, pair_rule
from ..stats.pair_rule import Pair
from ..stats.verdicts import Verdict
from ..workloads.steps import WORKLOADS
from .checkouts import SIDES, Version
from .process import Failed, Lost, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to compare: pairs of processes, and what a pair spends on a cell."""

    threshold: float = pair_rule.THRESHOLD
    pairs: int = pair_rule.PAIRS
    extra: int = pair_rule.EXTRA
    turns: int = 24  # of each side, at most
    least_turns: int = 8
    slice_s: float = 0.003  # of one side's turn
    cell_s: float = 0.4  # of both sides' turns: fewer of them where steps are long
    warm_up_s: float = 0.05
    limit_s: float = 120.0  # for any one answer; then the process is killed
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 3:
            raise Impossible(f"{self.pairs} pairs cannot outvote a disturbed one: 3 at least")
        if not 0 < self.threshold < 1:
            raise Impossible(f"the threshold is a share, as 0.03, not {self.threshold!r}")

    def more(self, logs: Sequence[float]) -> bool:
        """Return whether a cell with these pairs so far, the first ones first, needs another."""
        first, fresh = logs[: self.pairs], logs[self.pairs :]
        return pair_rule.more(first, fresh, threshold=self.threshold, extra=self.extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResults:
    """What all pairs came to: times and bytes by cell, or each side's words for why not."""

    pairs: dict[Cell, list[Pair]] = field(default_factory=dict)
    saved: dict[Cell, tuple[int | None, int | None]] = field(default_factory=dict)
    failures: dict[Cell, dict[str, str]] = field(default_factory=dict)


class Comparison:
    """Compares cells between two versions, pair by pair."""

    def __init__(
        self,
        base: Version,
        candidate: Version,
        *,
        effort: Effort,
        sources: Mapping[str, ModelSource],
    ) -> None:
        self._versions, self._effort, self._sources = (base, candidate), effort, sources
        self._rng = random.Random(effort.seed)
        self.results = PairResults()
        self.facts: dict[str, dict[str, str]] = {}

    def pairs(self, cells: Sequence[Cell], count: int) -> Iterator[int]:
        """Measure the cells in so many fresh pairs of processes; yield after each pair.

        With no cell left that both sides can step, there is no pair.
        """
        for number in range(count):
            left = [cell for cell in cells if cell not in self.results.failures]
            if not left:
                return
            self._rng.shuffle(left)
            while left:
                training = any(WORKLOADS[cell.workload].optimizes for cell in left)
                with self._live_pair(training=training) as sides:
                    left = self._cells(sides, left)
            yield number + 1

    @contextlib.contextmanager
    def _live_pair(self, *, training: bool) -> Iterator[Sequence[Side]]:
        with contextlib.ExitStack() as stack:
            live: dict[int, Side] = {}
            for index in self._shuffled():
                new = Side(
                    self._versions[index],
                    training=training,
                    limit_s=self._effort.limit_s,
                    randomized_layout=self._randomized_layout(),
                )
                live[index] = stack.enter_context(new)
            sides = [live[index] for index in range(len(SIDES))]
            for one in sides:
                try:
                    self.facts[one.version.name] = one.hear()
                    for source in self._sources.values():
                        self._check_origin(one, source)
                except Failed as failure:
                    raise BadModel(f"the {failure.side} side cannot start: {failure}") from None
            yield sides

    def _check_origin(self, one: Side, source: ModelSource) -> None:
        """Raise unless the user's module comes from the side's own tree."""
        path = source.build
        if source.library:
            return
        file = one.ask(**{"import": path})["file"]
        if not Path(file).resolve().is_relative_to(one.version.tree.resolve()):
            raise BadModel(
                f"{path} of the {one.version.name} side comes from {file!r}, not from "
                f"{str(one.version.tree)!r}: run in the folder that holds its package, or both "
                "sides would be the same code"
            )

    def _cells(self, sides: Sequence[Side], cells: Sequence[Cell]) -> list[Cell]:
        """Measure cells until a side is lost; return those that are left for another pair."""
        for number, cell in enumerate(cells):
            try:
                pair = self._cell(sides, cell)
            except Lost:
                return list(cells[number + 1 :])
            if pair is not None:
                self.results.pairs.setdefault(cell, []).append(pair)
        return []

    def _cell(self, sides: Sequence[Side], cell: Cell) -> Pair | None:
        """Return one pair's times of a cell, or None where a side cannot step it."""
        prepared: list[tuple[int, float]] = []
        lost: Lost | None = None
        for index in self._shuffled():
            try:
                answer = sides[index].ask(**self._asked(cell))
                prepared.append((index, float(answer["typical_ns"])))
            except Failed as failure:
                self._note(cell, failure)
                lost = failure if isinstance(failure, Lost) else lost
        if lost is not None:
            raise lost
        if len(prepared) < len(sides):
            for index, _ in prepared:
                sides[index].ask(stop=True)
            return None
        try:
            return self._turns(sides, cell, min(ns for _, ns in prepared))
        except Failed as failure:  # in its turns: whether the other can go on is not known
            self._note(cell, failure)
            raise Lost(failure.side, failure.why) from failure

    def _note(self, cell: Cell, failure: Failed) -> None:
        if devices.find(cell.device).occupied(failure.why):
            raise Impossible(
                f"{cell.device} takes one process at a time, and a comparison needs one for each "
                "side: set its compute mode to DEFAULT (nvidia-smi -c DEFAULT), or leave it out "
                "(--device cpu)"
            )
        self.results.failures.setdefault(cell, {})[failure.side] = failure.why

    def _turns(self, sides: Sequence[Side], cell: Cell, typical_ns: float) -> Pair:
        effort = self._effort
        iterations = calibrate(typical_ns, devices.find(cell.device).batch_ns)
        batch_ns = iterations * typical_ns
        batches = max(1, round(effort.slice_s * 1e9 / batch_ns))
        turn_s = (batches * batch_ns + typical_ns) / 1e9
        turns = round(effort.cell_s / 2 / turn_s)
        turns = max(effort.least_turns, min(effort.turns, turns))
        times: tuple[list[list[float]], list[list[float]]] = ([], [])
        for _ in range(turns):
            for index in self._shuffled():
                batch_ns = sides[index].ask(iterations=iterations, batches=batches)["ns"]
                times[index].append([ns / iterations for ns in batch_ns])
        if cell not in self.results.saved:
            read = [one.ask(saved=True)["saved"] for one in sides]
            self.results.saved[cell] = (read[0], read[1])
        for one in sides:
            one.ask(stop=True)
        return Pair(*times)

    def unlike(self) -> str:
        """Return in words where the sides' torch or Python differ, or ``""``."""
        base, candidate = (
            f"torch {facts['torch']}, Python {facts['python']}"
            for facts in map(self.facts.__getitem__, SIDES)
        )
        return f"base: {base}; candidate: {candidate}" if base != candidate else ""

    def logs(self) -> dict[Cell, list[float]]:
        """Return the log ratios of each cell's pairs, of cells that both sides could step."""
        return {
            cell: [pair.log_ratio for pair in pairs]
            for cell, pairs in self.results.pairs.items()
            if cell not in self.results.failures
        }

    def decision(self, cells: Sequence[Cell]) -> GateResult:
        """Return the verdicts that the pairs measured so far allow."""
        judged: list[FigureVerdict] = []
        not_compared: list[NotCompared] = []
        logs = self.logs()
        for cell in cells:
            failed = self.results.failures.get(cell)
            if failed is not None:
                outcome = _failed(cell, failed)
                (judged if isinstance(outcome, FigureVerdict) else not_compared).append(outcome)  # type: ignore[arg-type] # each list takes its own kind
            else:
                judged.append(self._time(cell, logs[cell]))
                judged += self._saved(cell)
        return GateResult(
            figure_verdicts=tuple(judged),
            not_compared=tuple(not_compared),
            measured=len(self.results.pairs),
        )

    def _time(self, cell: Cell, logs: Sequence[float]) -> FigureVerdict:
        first, fresh = logs[: self._effort.pairs], logs[self._effort.pairs :]
        pair_verdict = pair_rule.rule(first, fresh, threshold=self._effort.threshold)
        base, candidate = zip(*(pair.typical_ns for pair in self.results.pairs[cell]), strict=True)
        return FigureVerdict(
            cell=cell,
            meter="step_time",
            verdict=pair_verdict.verdict,
            change=pair_verdict.change,
            baseline=float(np.median(base)),
            candidate=float(np.median(candidate)),
            unit="ns",
            reason=pair_verdict.reason,
        )

    def _saved(self, cell: Cell) -> Iterator[FigureVerdict]:
        before, now = self.results.saved[cell]
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

    def _asked(self, cell: Cell) -> dict[str, Any]:
        default = Cell(model=cell.model, workload=cell.workload, grad_mode=cell.grad_mode).axes()
        source = self._sources.get(cell.model)
        required = ("model", "workload", "grad_mode")
        axes = {k: v for k, v in cell.axes().items() if k in required or v != default[k]}
        return {
            "cell": axes,
            "source": source.row() if source is not None else None,
            "seed": self._effort.seed,
            "warm_up_s": self._effort.warm_up_s,
            "environment": dict(devices.find(cell.device).environment),
        }

    def _randomized_layout(self) -> dict[str, str]:
        """Return variables that move where things lie in a process, another way for each.

        The size of the environment and the order of sets and dictionaries can make equal code
        differ by more than a regression does (Mytkowicz et al. 2009, Producing Wrong Data Without
        Doing Anything Obviously Wrong!). Two trees never lie alike; drawn anew for every process,
        that is noise, which shows in the interval, and not bias, which does not.
        """
        return {
            "PYTHONHASHSEED": str(self._rng.randrange(1, 2**32)),
            "GRADBENCH_PADDING": "x" * self._rng.randrange(4096),
        }

    def _shuffled(self) -> list[int]:
        return self._rng.sample(range(len(SIDES)), len(SIDES))


def compare(
    cells: Sequence[Cell],
    *,
    base: Version,
    candidate: Version,
    effort: Effort | None = None,
    sources: Mapping[str, ModelSource] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> GateResult:
    """Return the verdicts on the cells' step time and bytes saved for backward.

    ``sources`` says where models of the user's come from, by name. Cells that the first pairs
    leave undecided get as many fresh pairs again, and a few more while they are
    inconclusive.
    """
    if not host_system.here().forks:
        raise Impossible("versions are compared in forked processes, which only Linux has here")
    effort = effort or Effort()
    comparison = Comparison(base, candidate, effort=effort, sources=sources or {})
    for number in comparison.pairs(cells, effort.pairs):
        if number == 1 and (words := comparison.unlike()):
            say(words)
        say(f"pair {number} of {effort.pairs}: {len(cells)} cells")
    for number in range(1, effort.pairs + effort.extra + 1):
        again = [cell for cell, logs in comparison.logs().items() if effort.more(logs)]
        if not again:
            break
        for _ in comparison.pairs(again, 1):
            say(f"fresh pair {number}: {len(again)} cells to be settled")
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
