"""What a figure of several ranks notes beside the largest: each rank's bytes, and their sum."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from .measurements import Fact

BY_RANK: Final = "by_rank"
"""The note that has each rank's own bytes."""

OF_ALL_RANKS: Final = "of_all_ranks"
"""The note that has their sum."""


def notes_of(each: Sequence[int | float]) -> dict[str, Fact]:
    """Return the notes of a figure in bytes, of which each rank has its own."""
    return {BY_RANK: "; ".join(f"{one:,} B" for one in each), OF_ALL_RANKS: sum(each)}


def of_first(notes: Mapping[str, Fact]) -> int | None:
    """Return the bytes of the first rank, which is the one that is predicted; None without any."""
    found = re.match(r"([\d,]+) B", str(notes.get(BY_RANK, "")))
    return int(found[1].replace(",", "")) if found else None


def in_words(notes: Mapping[str, Fact]) -> Iterator[str]:
    """Yield what such notes say; nothing of a figure that one process has."""
    if BY_RANK in notes:
        yield f"by rank: {notes[BY_RANK]}"
    total = notes.get(OF_ALL_RANKS)
    if isinstance(total, int | float):
        yield f"all ranks: {total:,} B"
