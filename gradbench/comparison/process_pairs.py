"""Replicates of pairs of processes, one of each version, that take turns of milliseconds."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .. import devices
from ..errors import BadModel
from ..experiment.matrix import Cell
from ..runner.timing_rules import calibrate
from ..stats.replicate import Replicate
from .checkouts import SIDES
from .code_origins import check_origin
from .failure_notes import FailureNotes, KilledOnce
from .process import Failed, LiveProcess, Lost, why_not_imported
from .replicate_results import Results
from .side_processes import SideProcesses

Measure = Callable[[Sequence[LiveProcess], Cell], None]
"""What is done about a cell with the processes of both sides."""

TurnTimes = tuple[list[list[float]], list[list[float]]]
"""Each side's turns, of each the ns that a step took in its batches."""


class ProcessPairs:
    """Measures cells in a live pair of processes, and in another where that is lost.

    ``facts`` has the torch and the Python of each side, by its name, once a pair has started.
    """

    def __init__(self, processes: SideProcesses, results: Results, failures: FailureNotes) -> None:
        self._processes, self._results, self._failures = processes, results, failures
        self.facts: dict[str, dict[str, str]] = {}

    def replicate(self, cells: Sequence[Cell]) -> None:
        """Measure a replicate of each of the cells, or note which side cannot step it."""
        self.visit(cells, self._timed)

    def visit(
        self, cells: Sequence[Cell], measure: Measure, *, layout: Mapping[str, str] | None = None
    ) -> None:
        """Do something about cells with a live pair, and with a new one when that is lost.

        Both sides have the ``layout`` that is given, or each another one. Raise `BadModel` where a
        side cannot start, or does not run its own tree's code.
        """
        left = list(cells)
        while left:
            with contextlib.suppress(KilledOnce), self._live_pair(left, layout) as sides:
                able = self._imported(sides, left)
                if able is None:
                    left = [cell for cell in left if cell not in self._results.failures]
                    continue
                left = self._until_lost(sides, able, measure)

    def ask_both(
        self, sides: Sequence[LiveProcess], cell: Cell, **more: Any
    ) -> list[dict[str, Any]] | None:
        """Ask both sides about a cell at once, for nothing that is timed; return their answers.

        None where one has none. Raise `Lost` where a side is.
        """
        order, lost = self._processes.shuffled(), None
        answers: dict[int, dict[str, Any]] = {}
        for index in order:
            sides[index].put(**self._processes.asked(cell), **more)
        for index in order:
            try:
                answers[index] = sides[index].hear()
            except Failed as failure:
                self._failures.note(cell, failure)
                lost = failure if isinstance(failure, Lost) else lost
        if lost is not None:
            raise lost
        return [answers[0], answers[1]] if len(answers) == len(sides) else None

    @contextlib.contextmanager
    def _live_pair(
        self, cells: Sequence[Cell], layout: Mapping[str, str] | None
    ) -> Iterator[Sequence[LiveProcess]]:
        processes = self._processes
        with contextlib.ExitStack() as stack:
            live = {
                index: stack.enter_context(
                    processes.process([processes.versions[index]], cells, layout=layout)
                )
                for index in processes.shuffled()
            }
            sides = [live[index] for index in range(len(SIDES))]
            for one in sides:
                try:
                    self.facts[one.name] = one.hear()
                except Failed as failure:
                    if self._failures.is_first_kill(failure, None):
                        raise KilledOnce from failure
                    raise BadModel(f"the {failure.side} side cannot start: {failure}") from None
            yield sides

    def _imported(self, sides: Sequence[LiveProcess], cells: Sequence[Cell]) -> list[Cell] | None:
        """Import the models on each side; return the cells of those that both can.

        Of the others it is noted why not: a model may be new. Return None where a side ends at it.
        """
        for name, source in self._processes.own_sources(cells).items():
            for one in sides:
                try:
                    (file,) = one.imported(source.build)
                except Failed as failure:
                    if self._failures.is_first_kill(failure, None):
                        raise KilledOnce from failure
                    why = why_not_imported(source.build, failure)
                    for cell in cells:
                        if cell.model == name:
                            self._failures.fail(cell, failure, why)
                            self._results.absent.add((cell, one.name))
                    if isinstance(failure, Lost):
                        return None
                else:
                    check_origin(one.versions[0], source.build, file)
        return [cell for cell in cells if cell not in self._results.failures]

    def _until_lost(
        self, sides: Sequence[LiveProcess], cells: Sequence[Cell], measure: Measure
    ) -> list[Cell]:
        """Measure cells until a side is lost; return those that are left for another pair."""
        for number, cell in enumerate(cells):
            try:
                measure(sides, cell)
            except KilledOnce:
                return list(cells[number:])
            except Lost as lost:
                left = cells[number + 1 :]
                gone = self._results.not_tried(cell, left) if lost.late else []
                why = f"not tried, for the {lost.side} side {lost.why} in {cell}"
                self._results.failures.update((one, dict.fromkeys(SIDES, why)) for one in gone)
                return [one for one in left if one not in gone]
        return []

    def _timed(self, sides: Sequence[LiveProcess], cell: Cell) -> None:
        """Measure one replicate of a cell in a pair, unless a side cannot step it."""
        typical_ns = self._prepared(sides, cell)
        if typical_ns is None:
            return
        try:
            times = self._turns(sides, cell, typical_ns)
            for one in sides:
                one.ask(stop=True)
        except Failed as failure:  # in its turns: whether the other can go on is not known
            raise self._failures.lost(cell, failure) from failure
        self._results.replicates.setdefault(cell, []).append(Replicate(*times))

    def _prepared(self, sides: Sequence[LiveProcess], cell: Cell) -> float | None:
        """Let both sides build a cell; return the quicker one's typical ns, or None for a failure.

        Raise `Lost` where a side is.
        """
        prepared: list[tuple[int, float]] = []
        lost: Lost | None = None
        for index in self._processes.shuffled():
            try:
                answer = sides[index].ask(**self._processes.asked(cell))
                prepared.append((index, float(answer["typical_ns"])))
            except Failed as failure:
                self._failures.note(cell, failure)
                lost = failure if isinstance(failure, Lost) else lost
        if lost is not None:
            raise lost
        if len(prepared) == len(sides):
            return min(ns for _, ns in prepared)
        for index, _ in prepared:
            try:
                sides[index].ask(stop=True)
            except Failed as failure:
                raise Lost(failure.side, failure.why) from failure
        return None

    def _turns(self, sides: Sequence[LiveProcess], cell: Cell, typical_ns: float) -> TurnTimes:
        how = self._processes.replication
        iterations = calibrate(typical_ns, devices.find(cell.device).batch_ns)
        batch_ns = iterations * typical_ns
        batches = max(1, round(how.slice_s * 1e9 / batch_ns))
        turn_s = (batches * batch_ns + typical_ns) / 1e9
        turns = max(how.least_turns, min(how.turns, round(how.pair_s / 2 / turn_s)))
        times: TurnTimes = ([], [])
        for _ in range(turns):
            for index in self._processes.shuffled():
                measured = sides[index].ask(iterations=iterations, batches=batches)["ns"]
                times[index].append([ns / iterations for ns in measured])
        return times
