"""Bytes of a step that repeat, as processes of both sides read them: do they differ or vary?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from ..analysis.operation_changes import Operations
from .checkouts import SIDES

METERS: Final[Mapping[str, str]] = {
    "saved_bytes": "saved_for_backward",
    "peak_bytes": "peak_transient",
}
"""The counts of a step that are judged, and what a run calls them."""
READINGS: Final = 4
"""Processes of each side that read what differs between the sides: so it shows what varies."""

Reading = tuple[Operations, Operations]
"""What a process of each side has counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoSides:
    """The bytes of one figure that processes of base and candidate have read."""

    base: tuple[int, ...]
    candidate: tuple[int, ...]

    @classmethod
    def of(cls, readings: Sequence[Reading], count: str) -> Self:
        """Return what was read of a count."""
        base, candidate = (
            tuple(two[index][count] for two in readings if two[index].get(count) is not None)
            for index in range(len(SIDES))
        )
        return cls(base=base, candidate=candidate)

    @property
    def differ(self) -> bool:
        """Whether both sides were read, and are not equal."""
        return bool(self.base and self.candidate) and {*self.base} != {*self.candidate}

    @property
    def vary(self) -> bool:
        """Whether processes of one side have read different bytes."""
        return len({*self.base}) > 1 or len({*self.candidate}) > 1

    def __str__(self) -> str:
        spans = ((min(read), max(read)) for read in (self.base, self.candidate))
        return ", ".join(
            f"{name} {low:,} B" if low == high else f"{name} {low:,} to {high:,} B"
            for name, (low, high) in zip(SIDES, spans, strict=True)
        )


def is_to_be_read_again(readings: Sequence[Reading]) -> bool:
    """Return whether a figure differs between the sides, and was not seen to vary."""
    figures = [TwoSides.of(readings, count) for count in METERS]
    return any(figure.differ and not figure.vary for figure in figures)


def without_varying(counts: Reading, readings: Sequence[Reading]) -> Reading:
    """Return what was counted without the bytes that were seen to vary: they are no change."""
    vary = {count for count in METERS if TwoSides.of(readings, count).vary}
    base, candidate = (
        {count: value for count, value in side.items() if count not in vary} for side in counts
    )
    return base, candidate
