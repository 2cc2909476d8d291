"""A matrix split over several machines: which blocks each of them measures."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import Impossible
from ..plurals import counted
from .matrix import Cell, by_block


@dataclass(frozen=True, slots=True)
class Shard:
    """Part ``index`` of ``count``, counted from 1; its text is ``2/3``."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def take(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells of this shard: every ``count``-th block, whole.

        Which they are depends on the cells and their order alone, so the shards of one matrix
        share no block, miss none, and differ by one block at most. Raise `Impossible` where there
        are fewer blocks than shards.
        """
        blocks = list(by_block(cells).values())
        if len(blocks) < self.count:
            many = counted(len(blocks), "block")
            raise Impossible(
                f"{counted(self.count, 'shard')} for {many}: a block is measured in one piece, so "
                f"take {max(1, len(blocks))} at most"
            )
        return [cell for members in blocks[self.index - 1 :: self.count] for cell in members]


def parse(text: str) -> Shard:
    """Return ``2/3`` as a shard; raise `Impossible` for anything else."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise Impossible(f"shard {text!r} is not like 2/3: the second of three")
    return Shard(int(match[1]), int(match[2]))
