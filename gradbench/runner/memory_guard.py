"""Stops a cell whose memory grows from visit to visit, before it fills the machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..devices import Memory

SHARE: Final = 8
"""Of what was free: one part may be added before anybody asks by whom, another by each cell."""

LOOK_S: Final = 0.01
"""Between two looks, until something has grown: a look takes some ten microseconds."""


class GrowingMemory(MemoryError):
    """A cell's steps keep more and more memory; the message says how much, and of how much."""


@dataclass(slots=True)
class _Watch:
    """One memory, and what each cell has added to it since somebody asked by whom."""

    memory: Memory
    free_bytes: int
    most_bytes: int  # that were used so far
    asks_from: int  # used bytes from which it is asked by whom
    added: dict[str, tuple[int, int]] = field(default_factory=dict)  # bytes and visits, by cell

    @classmethod
    def of(cls, memory: Memory) -> "_Watch":
        free, used = memory.free_bytes(), memory.used_bytes()
        return cls(memory, free, used, used + free // SHARE)

    @property
    def asks(self) -> bool:
        """Whether so much was added that it is charged to cells."""
        return self.most_bytes >= self.asks_from

    def look(self, cell: str) -> None:
        """Charge what was added since the last look to a cell; raise where it is too much."""
        used, charged = self.memory.used_bytes(), self.asks
        grown, self.most_bytes = used - self.most_bytes, max(self.most_bytes, used)
        if grown <= 0 or not charged:
            return
        nbytes, visits = self.added.get(cell, (0, 0))
        self.added[cell] = nbytes + grown, visits + 1
        if nbytes + grown >= self.free_bytes // SHARE:
            raise GrowingMemory(
                f"its steps keep more and more: {nbytes + grown:,} B of {self.memory.name} in "
                f"{visits + 1} visits, where {self.free_bytes:,} B were free; stopped before it "
                "fills the machine"
            )


class MemoryGuard:
    """Looks after visits at the memories that a block's cells share.

    Made when each cell has stepped: what a step takes for itself is there by then. Until an eighth
    of what was free is gone a look is taken now and then; from there on after each visit.
    """

    def __init__(
        self, memories: Sequence[Memory], *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._watches = [_Watch.of(memory) for memory in memories]
        self._clock_s, self._looked_s = clock_s, clock_s()

    def visited(self, cell: str) -> None:
        """Look at what a cell's visit has left; raise `GrowingMemory` where it keeps too much."""
        now = self._clock_s()
        asking = any(watch.asks for watch in self._watches)
        if not asking and now - self._looked_s < LOOK_S:
            return
        self._looked_s = now
        for watch in self._watches:
            watch.look(cell)
