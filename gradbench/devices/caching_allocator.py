"""torch's caching allocator as a model: which block a request gets, and what is reserved for it.

A block may be larger than was asked for, and by how much depends on what was free before. The rules
and constants are those of c10/cuda/CUDACachingAllocator.cpp without settings of its own.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Final

LEAST: Final = 512  # kMinBlockSize: sizes are multiples of it
SMALL: Final = 2**20  # kSmallSize: up to here, blocks are cut from small segments
SMALL_SEGMENT: Final = 2 * 2**20
LARGE_SEGMENT: Final = 20 * 2**20
LARGE: Final = 10 * 2**20  # kMinLargeAlloc: from here on, a segment is for one block
LARGE_STEP: Final = 2 * 2**20


@dataclass(slots=True)
class _Block:
    segment: int
    offset: int
    nbytes: int
    taken: bool = False

    def key(self) -> tuple[int, int, int]:
        """Sort the smallest first, and of equal ones the lowest address."""
        return self.nbytes, self.segment, self.offset


@dataclass(slots=True)
class CachingAllocator:
    """Blocks by the caller's keys. Peaks count from the start, or from the last `reset`."""

    allocated_bytes: int = 0
    peak_bytes: int = 0
    reserved_bytes: int = 0
    _free: dict[bool, list[tuple[int, int, int]]] = field(
        default_factory=lambda: {True: [], False: []}  # by pool: of small blocks, of large ones
    )
    _segments: list[list[_Block]] = field(default_factory=list)
    _small: list[bool] = field(default_factory=list)  # by segment: of which pool it is
    _taken: dict[int, _Block] = field(default_factory=dict)

    def reset(self) -> None:
        """Count peaks from here on."""
        self.peak_bytes = self.allocated_bytes

    def take(self, key: int, nbytes: int) -> None:
        """Hand a block out."""
        if nbytes <= 0:
            return
        size = -(-nbytes // LEAST) * LEAST
        small = size <= SMALL
        block = self._found(size, small=small) or self._new_segment(size, small=small)
        rest = block.nbytes - size
        if rest >= LEAST if small else rest > SMALL:
            blocks = self._segments[block.segment]
            left = _Block(block.segment, block.offset + size, rest)
            blocks.insert(blocks.index(block) + 1, left)
            insort(self._free[small], left.key())
            block.nbytes = size
        block.taken = True
        self._taken[key] = block
        self.allocated_bytes += block.nbytes
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)

    def give(self, key: int) -> None:
        """Take a block back, and join it with free neighbours."""
        block = self._taken.pop(key, None)
        if block is None:
            return
        self.allocated_bytes -= block.nbytes
        block.taken = False
        blocks = self._segments[block.segment]
        free = self._free[self._small[block.segment]]
        place = blocks.index(block)
        if place + 1 < len(blocks) and not blocks[place + 1].taken:
            after = blocks.pop(place + 1)
            free.remove(after.key())
            block.nbytes += after.nbytes
        if place and not blocks[place - 1].taken:
            before = blocks[place - 1]
            free.remove(before.key())
            before.nbytes += block.nbytes
            del blocks[place]
            block = before
        insort(free, block.key())

    def _found(self, size: int, *, small: bool) -> _Block | None:
        free = self._free[small]
        place = bisect_left(free, (size, 0, 0))
        if place == len(free):
            return None
        _, segment, offset = free.pop(place)
        return next(block for block in self._segments[segment] if block.offset == offset)

    def _new_segment(self, size: int, *, small: bool) -> _Block:
        if small:
            nbytes = SMALL_SEGMENT
        elif size < LARGE:
            nbytes = LARGE_SEGMENT
        else:
            nbytes = -(-size // LARGE_STEP) * LARGE_STEP
        block = _Block(len(self._segments), 0, nbytes)
        self._segments.append([block])
        self._small.append(small)
        self.reserved_bytes += nbytes
        return block
