"""Instructions of both versions' steps, counted under valgrind: evidence that repeats.

Where the sides can share a process, one process under valgrind holds both; where not, one each.
Each cell is counted in a fork, for seconds; what starts first takes half a minute or so.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Final

from .. import scratch
from ..devices import Unreadable
from ..experiment.matrix import Cell
from ..plurals import counted
from ..runner import callgrind, instructions_pass
from ..runner.instructions_pass import StepInstructions
from .budget import Budget
from .cell_requests import like
from .checkouts import Version
from .process import Failed, LiveProcess, Lost
from .replication import Replicator

LIMIT_S: Final = 600.0
"""For any one answer under valgrind, which makes a process some fifty times slower."""
OUT_OF_TIME: Final = "the budget ended"

Say = Callable[[str], None]


def obstacle() -> str:
    """Return why nothing can be counted on this machine, or ``""``."""
    try:
        callgrind.command([])
    except Unreadable as why:
        return str(why)
    return ""


class InstructionCounter:
    """Counts cells of a replicator's versions, and adds what it finds to its results."""

    def __init__(self, replicator: Replicator, *, budget: Budget, say: Say) -> None:
        self._replicator, self._budget, self._say = replicator, budget, say

    def count(self, cells: Sequence[Cell]) -> None:
        """Count what can be counted; note why not of the others."""
        apart = self._replicator.results.apart
        able = [cell for cell in cells if self._may_be_counted(cell)]
        base, candidate = self._replicator.processes.versions
        self._count([cell for cell in able if cell not in apart], [[base, candidate]])
        self._count([cell for cell in able if cell in apart], [[base], [candidate]])

    def _may_be_counted(self, cell: Cell) -> bool:
        if cell in self._replicator.results.failures:
            return False
        try:
            instructions_pass.check(cell)
        except Unreadable as why:
            self._note([cell], str(why))
            return False
        if cell.compile != "off":
            self._note([cell], "to compile under valgrind takes minutes")
            return False
        return True

    def _count(self, cells: Sequence[Cell], groups: Sequence[Sequence[Version]]) -> None:
        """Count cells in one process for each group of versions, in new ones when one is lost."""
        left = list(cells)
        while left:
            if not self._budget.allows("start to count"):
                self._note(left, OUT_OF_TIME)
                return
            with scratch.folder() as folder, contextlib.ExitStack() as stack:
                try:
                    with self._budget.taking("start to count"):
                        processes = [
                            stack.enter_context(self._started(left, group, folder))
                            for group in groups
                        ]
                except Failed as failure:
                    self._note(left, failure.why)
                    return
                left = self._cells_of(processes, left, folder)

    def _started(
        self, cells: Sequence[Cell], group: Sequence[Version], folder: Path
    ) -> AbstractContextManager[LiveProcess]:
        """Start a process under valgrind that has imported the cells' models."""
        self._say("instructions: starting under valgrind")
        return self._replicator.processes.started(
            group,
            cells,
            order=range(len(group)),
            layout={"PYTHONHASHSEED": "0"},
            limit_s=LIMIT_S,
            under=partial(callgrind.command, dumps=f"{folder / callgrind.DUMPS}-%p"),
        )

    def _cells_of(
        self, processes: Sequence[LiveProcess], cells: Sequence[Cell], folder: Path
    ) -> list[Cell]:
        """Count cells until a process is lost; return those that are left for others."""
        for number, cell in enumerate(cells):
            if not self._budget.allows("count"):
                self._note(cells[number:], OUT_OF_TIME)
                return []
            try:
                with self._budget.taking("count"):
                    counts = [n for one in processes for n in self._counted(one, cell, folder)]
            except Failed as failure:
                self._note([cell], failure.why)
                if isinstance(failure, Lost):
                    left = list(cells[number + 1 :])
                    gone = like(cell, left) if failure.late else []
                    self._note(gone, f"not tried: {failure.why} in {cell}")
                    return [one for one in left if one not in gone]
                continue
            operations = self._replicator.results.operations
            base, candidate = (
                {**side, "instructions": count}
                for side, count in zip(operations.get(cell, ({}, {})), counts, strict=True)
            )
            operations[cell] = base, candidate
            self._say(f"instructions: {number + 1} of {counted(len(cells), 'cell')}")
        return []

    def _counted(self, process: LiveProcess, cell: Cell, folder: Path) -> list[int]:
        """Return what a process's sides execute for a step, by its dumps."""
        answer = process.ask(**self._replicator.processes.asked(cell), instructions=True)
        counts = callgrind.read_dumps(folder, dumps=f"{callgrind.DUMPS}-{answer['dumps_of']}")
        steps = [StepInstructions.read(counts, index) for index in range(len(process.versions))]
        if None in steps:
            raise Failed(process.name, "valgrind wrote no counts")
        return [one.typical for one in steps if one is not None]

    def _note(self, cells: Sequence[Cell], why: str) -> None:
        self._replicator.results.uncounted.update(dict.fromkeys(cells, why))
