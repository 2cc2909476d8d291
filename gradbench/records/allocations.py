"""A step's allocations in order in; what its peak is made of, and the way there, out. Pure."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from .measurements import PARTS

MOMENTS: Final = 64
"""About how many moments of a step are kept."""

# What a block is for shows as the step goes on: an activation is first allocated and then saved.
# Of several purposes the later in this order holds, for the whole life of the block.
_RANK: Final = {part: rank for rank, part in enumerate(("other", "saved", "gradients"))} | {
    "optimizer_state": 3
}


@dataclass(frozen=True, slots=True)
class Change:
    """A block allocated, or freed when ``nbytes`` is below 0."""

    address: int
    nbytes: int
    op: str = ""  # innermost operator that was running


@dataclass(frozen=True, slots=True)
class Within:
    """Bytes that an operator took beyond what was there, and had given back by its end."""

    nbytes: int
    op: str = ""


@dataclass(frozen=True, slots=True)
class Tag:
    """What the live block at an address is for, one of `PARTS`; its bytes, where they are known."""

    address: int
    part: str
    nbytes: int = field(default=0, kw_only=True)


@dataclass(frozen=True, slots=True)
class Phase:
    """The step enters a phase: forward, loss, backward, optimizer."""

    name: str


Mark = Tag | Phase
Entry = Change | Within | Tag | Phase


@dataclass(frozen=True, slots=True)
class Resident:
    """A block that was there before the step, and what for."""

    nbytes: int
    part: str


@dataclass(frozen=True, slots=True)
class Left:
    """A block that the step allocated and did not free."""

    nbytes: int
    part: str
    op: str


@dataclass(frozen=True, slots=True)
class PeakBreakdown:
    """What `attribute_peak` found; see `records.Breakdown` for the shape of the timeline."""

    parts: Mapping[str, int]  # bytes at the peak by `PARTS`
    phase: str  # of the peak
    ops: Mapping[str, int]  # of ``other`` at the peak, by the operator that allocated it
    timeline: Mapping[str, tuple[int, ...]]
    phases: tuple[str, ...]
    left: tuple[Left, ...]

    @property
    def peak_bytes(self) -> int:
        """Most bytes that were live at once."""
        return sum(self.parts.values())


def attribute_peak(
    entries: Sequence[Entry], *, resident: Mapping[int, Resident], before_bytes: int
) -> PeakBreakdown:
    """Return what a step's peak is made of, and the way there.

    ``resident`` is what was there before, by address; what ``before_bytes`` holds beyond it is
    ``unknown``. A free of a block that nobody allocated here is taken from its resident part, or
    from ``unknown``.
    """
    purposes = _purposes(entries)
    totals = dict.fromkeys(PARTS, 0)
    for block in resident.values():
        totals[block.part] += block.nbytes
    totals["unknown"] += before_bytes - sum(totals.values())
    gone: set[int] = set()
    live: dict[int, tuple[Change, str]] = {}
    phase = "prepare"
    moments: list[tuple[str, tuple[int, ...]]] = [(phase, tuple(totals.values()))]
    peak, peak_phase, peak_at = dict(totals), phase, -1
    for index, entry in enumerate(entries):
        extra = 0
        match entry:
            case Phase(name):
                phase = name
                continue
            case Tag():
                continue
            case Within(nbytes, _):
                extra = nbytes
            case Change(address, nbytes, _) if nbytes > 0:
                live[address] = entry, purposes[index]
                totals[purposes[index]] += nbytes
            case Change(address, nbytes, _):
                if address in live:
                    totals[live.pop(address)[1]] += nbytes
                elif address in resident and address not in gone:
                    gone.add(address)
                    totals[resident[address].part] -= resident[address].nbytes
                    totals["unknown"] += nbytes + resident[address].nbytes  # what was rounded up
                else:
                    totals["unknown"] += nbytes
        now = totals if not extra else {**totals, "other": totals["other"] + extra}
        moments.append((phase, tuple(now.values())))
        if sum(now.values()) > sum(peak.values()):
            peak, peak_phase, peak_at = dict(now), phase, index
    kept = list(_thinned(moments, size=sum))
    return PeakBreakdown(
        parts=peak,
        phase=peak_phase,
        ops=_ops_at(entries[: peak_at + 1], purposes),
        timeline={part: tuple(row[i] for _, row in kept) for i, part in enumerate(PARTS)},
        phases=tuple(name for name, _ in kept),
        left=tuple(Left(change.nbytes, part, change.op) for change, part in live.values()),
    )


def _purposes(entries: Sequence[Entry]) -> dict[int, str]:
    """Return what each allocation, by its place in the entries, turns out to be for."""
    purposes: dict[int, str] = {}
    live: dict[int, int] = {}
    for index, entry in enumerate(entries):
        match entry:
            case Change(address, nbytes, _) if nbytes > 0:
                live[address] = index
                purposes[index] = "other"
            case Change(address, _, _):
                live.pop(address, None)
            case Tag(address, part) if address in live:
                owner = live[address]
                if _RANK[part] > _RANK[purposes[owner]]:
                    purposes[owner] = part
    return purposes


def _thinned(
    moments: Sequence[tuple[str, tuple[int, ...]]], *, size: Callable[[tuple[int, ...]], int]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the highest moment of each stretch, no stretch across two phases, and both ends."""
    stretch = math.ceil(len(moments) / MOMENTS)
    yield moments[0]
    for _, group in groupby(moments[1:-1], key=lambda moment: moment[0]):
        members = list(group)
        for start in range(0, len(members), stretch):
            yield max(members[start : start + stretch], key=lambda moment: size(moment[1]))
    if len(moments) > 1:
        yield moments[-1]


def _ops_at(entries: Sequence[Entry], purposes: Mapping[int, str]) -> dict[str, int]:
    """Return what is ``other`` after these entries, by the operator that allocated it."""
    live: dict[int, Change | Within] = {}
    for index, entry in enumerate(entries):
        match entry:
            case Change(address, nbytes, _) if nbytes > 0:
                if purposes[index] == "other":
                    live[address] = entry
            case Change(address, _, _):
                live.pop(address, None)
    if entries and isinstance(entries[-1], Within):
        live[-1] = entries[-1]
    totals: dict[str, int] = {}
    for taken in live.values():
        totals[taken.op] = totals.get(taken.op, 0) + taken.nbytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]))
