"""Blocks that are there between steps, by address: which of them no allocator handed out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..records.allocations import Change, Entry, Resident


def live(entries: Sequence[Entry]) -> dict[int, int]:
    """Return the blocks that these entries leave allocated: their bytes by address."""
    blocks: dict[int, int] = {}
    for entry in entries:
        match entry:
            case Change(address, nbytes, _) if nbytes > 0:
                blocks[address] = nbytes
            case Change(address, _, _):
                blocks.pop(address, None)
    return blocks


def outside(resident: Mapping[int, Resident], allocated: Mapping[int, int]) -> int:
    """Return the bytes of resident blocks that lie in no allocated one, each once.

    Weights from numpy or a mapped file are such; so is what was made before the ledger began.
    """
    known = [(address, block.nbytes) for address, block in resident.items()]
    counted = list(allocated.items())
    return _covered([*known, *counted]) - _covered(counted)


def disjoint(resident: Mapping[int, Resident]) -> dict[int, Resident]:
    """Return the blocks with what two of them share counted once, on the first one's account."""
    end = 0
    by_address: dict[int, Resident] = {}
    for address in sorted(resident):
        block = resident[address]
        start, stop = max(address, end), address + block.nbytes
        if stop > start:
            by_address[address] = replace(block, nbytes=stop - start)
        end = max(end, stop)
    return by_address


def _covered(blocks: Sequence[tuple[int, int]]) -> int:
    total = end = 0
    for address, nbytes in sorted(blocks):
        total += max(0, address + nbytes - max(address, end))
        end = max(end, address + nbytes)
    return total
