"""A step's allocations in outline, and how those at two batch sizes are carried on to a third."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..records.allocations import Change, Entry, Phase, Resident, Tag, Within
from .probe import Call


@dataclass(frozen=True, slots=True)
class Outline:
    """One warm step: its entries, with calls where operators ran, and what was there before."""

    entries: Sequence[Entry | Call]
    resident: Mapping[int, Resident]
    before: Mapping[int, int]  # bytes of every block that was there, by key
    operators: frozenset[str] = frozenset()

    @property
    def before_bytes(self) -> int:
        """Bytes that were there."""
        return sum(self.before.values())

    def calls(self) -> list[Call]:
        """Return the operator calls, in order."""
        return [entry for entry in self.entries if isinstance(entry, Call)]


@dataclass(frozen=True, slots=True)
class Line:
    """Two batch sizes, and where a quantity of both leads at a third."""

    low: int
    high: int
    batch: int

    def at(self, low: int, high: int) -> int:
        """Return the quantity at the third."""
        return low + (high - low) * (self.batch - self.low) // (self.high - self.low)


def carried_on(low: Outline, high: Outline, line: Line) -> Outline | None:
    """Return a step's outline at a third batch size, every block on the line of its own.

    None where the two did not do the same in the same order, or a block would shrink to less than
    nothing: then there is no line to follow. Operator calls are left out.
    """
    first, second = _numbered(low), _numbered(high)
    if _shape(first) != _shape(second):
        return None
    entries: list[Entry] = []
    for one, other in zip(first.entries, second.entries, strict=True):
        match one, other:
            case Change(_, nbytes, _), Change(_, more, _):
                there = line.at(nbytes, more)
                if (there < 0) != (nbytes < 0):
                    return None
                entries.append(replace(one, nbytes=there))
            case Within(nbytes, op), Within(more, _):
                entries.append(Within(max(0, line.at(nbytes, more)), op))
            case Tag() | Phase(), _:
                entries.append(one)
    before = {
        key: line.at(nbytes, other)
        for (key, nbytes), other in zip(first.before.items(), second.before.values(), strict=True)
    }
    if any(nbytes < 0 for nbytes in before.values()):
        return None
    resident = {
        key: Resident(line.at(block.nbytes, other.nbytes), block.part)
        for (key, block), other in zip(
            first.resident.items(), second.resident.values(), strict=True
        )
    }
    return Outline(entries, resident, before, low.operators)


def _shape(outline: Outline) -> object:
    """Return all of a numbered outline but its sizes."""

    def kind(entry: Entry | Call) -> object:
        match entry:
            case Change(key, nbytes, op):
                return key, nbytes > 0, op
            case Within(_, op):
                return op
            case Call():
                return entry.func
            case _:
                return entry

    return (
        [kind(entry) for entry in outline.entries],
        [(key, block.part) for key, block in outline.resident.items()],
        list(outline.before),
    )


def _numbered(outline: Outline) -> Outline:
    """Return the outline with blocks numbered as they come, for addresses differ between runs."""
    names: dict[int, int] = {}

    def named(key: int) -> int:
        return names.setdefault(key, len(names))

    before = {named(key): nbytes for key, nbytes in outline.before.items()}
    resident = {named(key): block for key, block in outline.resident.items()}
    fresh = len(names) + len(outline.entries)
    entries: list[Entry | Call] = []
    for index, entry in enumerate(outline.entries):
        match entry:
            case Change(key, nbytes, _):
                if nbytes > 0:
                    names[key] = fresh + index
                entries.append(replace(entry, address=named(key)))
            case Tag(key, part):
                entries.append(Tag(named(key), part))
            case _:
                entries.append(entry)
    return Outline(entries, resident, before, outline.operators)
