"""One outcome of what several ranks read: the largest figure, each rank's own beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..records import ranks
from ..records.measurements import Breakdown, Fact, Measurement, Reading, Skipped


def combined(readings: Sequence[Reading]) -> Reading:
    """Return the outcome of one meter for all ranks, who come in order.

    A figure is the largest that a rank has: the time of the slowest, and the bytes of the fullest,
    with each rank's own and their sum as notes. What a peak is made of is the fullest rank's.
    If a rank has no figure, none is had.
    """
    skipped = {n: one for n, one in enumerate(readings) if isinstance(one, Skipped)}
    if skipped:
        return _without_figure(skipped, of=len(readings))
    breakdowns = [one for one in readings if isinstance(one, Breakdown)]
    if breakdowns:
        return max(breakdowns, key=lambda one: sum(one.parts.values()))
    return _measured([one for one in readings if isinstance(one, Measurement)])


def _without_figure(skipped: Mapping[int, Skipped], *, of: int) -> Skipped:
    """Return the reason of all ranks; where they differ, each one's."""
    first = next(iter(skipped.values()))
    if len(skipped) == of and {one.reason for one in skipped.values()} == {first.reason}:
        return first
    each = (f"rank {number}: {one.reason}" for number, one in skipped.items())
    return replace(first, reason="; ".join(each))


def _measured(measurements: Sequence[Measurement]) -> Measurement:
    first = measurements[0]
    rounds = min(len(one.values) for one in measurements)
    values = zip(*(one.values[:rounds] for one in measurements), strict=True)
    iterations = (
        first.iterations if isinstance(first.iterations, int) else first.iterations[:rounds]
    )
    notes = _notes([one.notes for one in measurements])
    if first.unit == "bytes" and len(measurements) > 1:
        notes |= ranks.notes_of([one.values[0] for one in measurements])
    return replace(first, values=tuple(map(max, values)), iterations=iterations, notes=notes)


def _notes(of_ranks: Sequence[Mapping[str, Fact]]) -> dict[str, Fact]:
    """Return the notes of all: the largest numbers, and where words differ those of each rank."""
    names = dict.fromkeys(name for notes in of_ranks for name in notes)
    return {
        name: _fact({number: notes[name] for number, notes in enumerate(of_ranks) if name in notes})
        for name in names
    }


def _fact(by_rank: Mapping[int, Fact]) -> Fact:
    numbers = [one for one in by_rank.values() if not isinstance(one, str)]
    if len(numbers) == len(by_rank):
        return max(numbers)
    words = list(dict.fromkeys(map(str, by_rank.values())))
    if len(words) == 1:
        return words[0]
    return "; ".join(f"rank {number}: {one}" for number, one in by_rank.items())
