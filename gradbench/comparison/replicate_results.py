"""What the replicates of a comparison came to, by cell, on one machine or on several."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..analysis.operation_changes import Operations
from ..experiment.matrix import Cell
from ..stats.replicate import Replicate
from .byte_readings import Reading
from .cell_requests import like


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What all replicates came to, by cell, or each side's words for why not."""

    replicates: dict[Cell, list[Replicate]] = field(default_factory=dict)
    operations: dict[Cell, tuple[Operations, Operations]] = field(default_factory=dict)
    readings: dict[Cell, list[Reading]] = field(default_factory=dict)
    apart: dict[Cell, str] = field(default_factory=dict)  # why the sides take two processes
    unshared: dict[Cell, str] = field(default_factory=dict)  # why each side has its own weights
    failures: dict[Cell, dict[str, str]] = field(default_factory=dict)
    doubts: dict[tuple[Cell, str], str] = field(default_factory=dict)  # of failures: cell, side
    absent: set[tuple[Cell, str]] = field(default_factory=set)  # models a side cannot import
    lacking: dict[Cell, str] = field(default_factory=dict)  # files that the base alone lacks
    uncounted: dict[Cell, str] = field(default_factory=dict)  # why no instructions were counted
    given_up: dict[Cell, str] = field(default_factory=dict)  # why there are no more replicates

    def add(self, others: "Results", *, machine: str) -> None:
        """Add what one replicate on a machine came to.

        Replicates of one process and of pairs do not mix: once a cell's sides are apart, so they
        are for all.
        """
        for cell in others.apart.keys() - self.apart.keys():
            self.replicates.pop(cell, None)
        self.apart.update(others.apart)
        self.operations.update(
            {cell: two for cell, two in others.operations.items() if cell not in self.operations}
        )
        for cell, read in others.readings.items():
            self.readings.setdefault(cell, []).extend(read)
        for cell, sides in others.failures.items():
            self.failures.setdefault(cell, {}).update(sides)
        self.unshared.update(others.unshared)
        self.doubts.update(others.doubts)
        self.absent.update(others.absent)
        self.lacking.update(others.lacking)
        for cell, made in others.replicates.items():
            if cell in others.apart or cell not in self.apart:
                own = [replace(one, machine=machine) for one in made]
                self.replicates.setdefault(cell, []).extend(own)

    def keep_apart(self, cells: Sequence[Cell], why: str) -> None:
        """Let pairs of processes measure these cells, from their first replicate on."""
        for cell in cells:
            self.apart[cell] = why
            self.replicates.pop(cell, None)

    def not_tried(self, cell: Cell, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that likely hang as one does, and of which no replicate was made."""
        return [one for one in like(cell, cells) if one not in self.replicates]
