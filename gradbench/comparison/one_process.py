"""Replicates of both versions in one process, whose steps alternate."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from ..experiment.matrix import Cell
from ..stats.replicate import Replicate
from .code_origins import check_origin
from .failure_notes import FailureNotes
from .process import Failed, LiveProcess, Lost
from .replicate_results import Results
from .side_processes import SideProcesses

ROUNDS_A_TURN: Final = 8
"""Rounds of one process whose fastest batch stands for them: others were perhaps preempted."""


class OneProcess:
    """Measures cells in processes that hold both versions; what cannot be held so takes pairs."""

    def __init__(self, processes: SideProcesses, results: Results, failures: FailureNotes) -> None:
        self._processes, self._results, self._failures = processes, results, failures

    def replicate(self, cells: Sequence[Cell]) -> None:
        """Measure a replicate of each of the cells, or note why pairs are to measure it."""
        left, versions = list(cells), self._processes.versions
        while left:
            order = self._processes.shuffled()
            with self._processes.process(versions, left, order=order) as both:
                try:
                    both.hear()
                    left = self._imported(both, left)
                except Failed as failure:
                    if self._failures.is_first_kill(failure, None):
                        continue
                    self._results.keep_apart(left, failure.why)
                    return
                left = self._measured(both, left)

    def _imported(self, both: LiveProcess, cells: Sequence[Cell]) -> list[Cell]:
        """Import the models on both sides; return the cells of those that can be."""
        could = list(cells)
        for name, source in self._processes.own_sources(cells).items():
            try:
                files = both.imported(source.build)
            except Lost:
                raise
            except Failed as failure:
                gone = [cell for cell in could if cell.model == name]
                self._results.keep_apart(gone, failure.why)
                could = [cell for cell in could if cell.model != name]
                continue
            for version, file in zip(self._processes.versions, files, strict=True):
                check_origin(version, source.build, file)
        return could

    def _measured(self, both: LiveProcess, cells: Sequence[Cell]) -> list[Cell]:
        """Measure cells until the process is lost; return those that are left for another."""
        results = self._results
        for number, cell in enumerate(cells):
            left = cells[number + 1 :]
            try:
                answer = both.ask(**self._processes.asked(cell))
                times = [in_turns(side) for side in answer["ns"]]
                why = answer.get("unshared", "") if self._processes.replication.share else ""
                if why:
                    results.unshared[cell] = why
            except Failed as failure:
                if self._failures.is_first_kill(failure, cell):
                    return [cell, *left]
                hung = isinstance(failure, Lost) and failure.late
                gone = [cell, *(results.not_tried(cell, left) if hung else ())]
                results.keep_apart(gone, failure.why)
                if isinstance(failure, Lost):
                    return [one for one in left if one not in gone]
                continue
            results.replicates.setdefault(cell, []).append(Replicate(*times))
        return []


def in_turns(rounds: Sequence[float], length: int = ROUNDS_A_TURN) -> list[list[float]]:
    """Return rounds as turns of so many; what is left over is in the last one."""
    turns = max(1, len(rounds) // length)
    ends = [*range(length, turns * length, length), len(rounds)]
    return [list(rounds[start:end]) for start, end in pairwise([0, *ends])]
