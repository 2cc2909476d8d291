"""Makes replicates of cells: both versions in one process where that can be, in pairs elsewhere.

A replicate has processes of its own, for where things lie in memory can make equal code differ by
as much as a regression does, and it stays so for a process's life.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource
from ..host_locks import Held
from ..stats.replicate import Replicate
from .alone import alone
from .budget import Budget
from .byte_readings import READINGS, is_to_be_read_again
from .checkouts import SIDES, Version
from .code_origins import check_modules
from .failure_notes import FailureNotes
from .one_process import OneProcess
from .process import LiveProcess
from .process_pairs import ProcessPairs
from .replicate_effort import Replication
from .replicate_results import Results
from .sharing import known_obstacle, obstacle
from .side_processes import SideProcesses


class Replicator:
    """Measures cells of two versions, one replicate after the other.

    ``seed`` is that of weights and batches; ``layout_seed``, which is the same where it is None,
    that of layouts and orders. ``say`` hears whom is waited for.
    """

    def __init__(
        self,
        base: Version,
        candidate: Version,
        *,
        replication: Replication,
        sources: Mapping[str, ModelSource],
        seed: int = 0,
        layout_seed: int | None = None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._say, self._rng = say, random.Random(seed if layout_seed is None else layout_seed)
        self.processes = SideProcesses(
            base, candidate, replication=replication, sources=sources, seed=seed, rng=self._rng
        )
        self.results = Results()
        self.machines = 0  # of a cluster
        self.made_on: dict[str, Mapping[str, str]] = {}
        failures = FailureNotes(self.results, base, candidate)
        self._together = OneProcess(self.processes, self.results, failures)
        self._pairs = ProcessPairs(self.processes, self.results, failures)

    @property
    def facts(self) -> Mapping[str, Mapping[str, str]]:
        """The torch and the Python of each side, by its name, once a pair of them has started."""
        return self._pairs.facts

    def examine(
        self, cells: Sequence[Cell], budget: Budget | None = None, *, readings: int = READINGS
    ) -> None:
        """Learn which cells' sides can share a process, and what their steps make torch do.

        What the budget does not hold is not looked at. Of cells whose bytes differ, ``readings``
        processes of each side read them, unless they vary.
        """
        within, processes = budget or Budget(), self.processes
        one_process = processes.replication.one_process
        for cell in cells:
            if why := known_obstacle(*processes.versions, cell, one_process=one_process):
                self.results.apart[cell] = why
        looked_at: dict[tuple[str, str], str] = {}

        def look(sides: Sequence[LiveProcess], cell: Cell) -> None:
            if within.allows("look"):
                with within.taking("look"):
                    self._examine_cell(sides, cell, looked_at)

        left = list(cells)
        for _ in range(readings):
            if not (left and within.allows("look")):
                return
            self._pairs.visit(left, look, layout=processes.randomized_layout())
            left = [cell for cell in left if self._is_to_be_read_again(cell)]

    def rounds(self, wanted: Callable[[], Sequence[Cell]], budget: Budget) -> Iterator[str]:
        """Make one replicate after the other of what is wanted, while the budget holds another.

        Yield after each what there is to say of it beside its number.
        """
        while not budget.ended and (cells := wanted()):
            if budget.allows("replicate"):
                try:
                    held = alone(cells, wait_s=budget.left_s, waiting=self._say)
                    with held, budget.taking("replicate"):
                        self.replicate(cells)
                except Held as held_by_others:  # for all of the time that is left
                    budget.ended = True
                    self.results.given_up.update(dict.fromkeys(cells, str(held_by_others)))
                    return
                yield ""

    def replicate(self, cells: Sequence[Cell]) -> None:
        """Measure another replicate of each of the cells that both sides can step."""
        left = [cell for cell in cells if cell not in self.results.failures]
        self._rng.shuffle(left)
        self._together.replicate([cell for cell in left if cell not in self.results.apart])
        self._pairs.replicate([cell for cell in left if cell in self.results.apart])

    def unlike(self) -> str:
        """Return in words where the sides' torch or Python differ, or ``""``."""
        return unlike(self.facts)

    def replicates_of(self, cell: Cell) -> Sequence[Replicate]:
        """Return a cell's replicates."""
        return self.results.replicates.get(cell, ())

    def _examine_cell(
        self, sides: Sequence[LiveProcess], cell: Cell, looked_at: dict[tuple[str, str], str]
    ) -> None:
        """Ask both sides for a cell's counts and, once for each model's workload, for obstacles."""
        kind = cell.model, cell.workload
        look = kind not in looked_at and cell not in self.results.apart
        answers = self._pairs.ask_both(sides, cell, examine="all" if look else "counts")
        if answers is None:
            return
        base, candidate = answers
        counts = base["operations"], candidate["operations"]
        self.results.operations.setdefault(cell, counts)
        self.results.readings.setdefault(cell, []).append(counts)
        if look:
            for version, answer in zip(self.processes.versions, answers, strict=True):
                check_modules(version, answer["outside"])
            looked_at[kind] = obstacle(base, candidate)
        if looked_at.get(kind):
            self.results.apart.setdefault(cell, looked_at[kind])

    def _is_to_be_read_again(self, cell: Cell) -> bool:
        """Return whether a cell's bytes differ between the sides, and were not seen to vary."""
        read = self.results.readings.get(cell, ())
        return cell not in self.results.failures and is_to_be_read_again(read)


def unlike(sides: Mapping[str, Mapping[str, str]]) -> str:
    """Return in words where the sides' torch or Python differ, or ``""``."""
    if not sides:
        return ""
    base, candidate = (
        f"torch {facts['torch']}, Python {facts['python']}"
        for facts in map(sides.__getitem__, SIDES)
    )
    return f"base: {base}; candidate: {candidate}" if base != candidate else ""
