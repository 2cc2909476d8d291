"""A step's allocations in order in; what its peak is made of, and the way there, out. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from .measurements import PARTS

MOMENTS: Final = 64
"""About how many moments of a step are kept."""

PREFILL: Final = "prefill"
FURTHER: Final = "token "
"""How the phases of a sequence of tokens begin, from the second on: ``token 2``."""

# What a block is for shows as the step goes on: an activation is first allocated and then saved.
# Of several purposes the later in this order holds, for the whole life of the block.
_RANK: Final = {
    part: rank
    for rank, part in enumerate(
        ("other", "saved", "casts", "gradients", "optimizer_state", "cache")
    )
}


def makes_token(phase: str) -> bool:
    """Return whether a phase is that of one token of a sequence."""
    return phase == PREFILL or phase.startswith(FURTHER)


@dataclass(frozen=True, slots=True)
class Change:
    """A block allocated, or freed when ``nbytes`` is below 0."""

    address: int
    nbytes: int
    op: str = ""  # innermost operator that was running
    cast: bool = field(default=False, kw_only=True)  # in a copy of an operator's arguments


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
    """The step enters a phase: forward, loss, backward, optimizer, prefill, a token."""

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
    casts: int = 0  # copies that autocast made

    @property
    def peak_bytes(self) -> int:
        """Most bytes that were live at once."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class _Moment:
    """What was live after some of a step's entries."""

    phase: str
    sizes: tuple[int, ...]  # bytes by `PARTS`
    entries: int  # so far

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes)


class _Live:
    """The live blocks, and their bytes by part."""

    def __init__(self, resident: Mapping[int, Resident], before_bytes: int) -> None:
        self.totals = dict.fromkeys(PARTS, 0)
        for block in resident.values():
            self.totals[block.part] += block.nbytes
        self.totals["unknown"] += before_bytes - sum(self.totals.values())
        self.allocated: dict[int, tuple[Change, str]] = {}
        self._resident = dict(resident)

    def allocate(self, change: Change, part: str) -> None:
        """Take in a block that the step allocates."""
        self.allocated[change.address] = change, part
        self.totals[part] += change.nbytes

    def free(self, change: Change) -> None:
        """Take a block out, whoever allocated it."""
        if change.address in self.allocated:
            _, part = self.allocated.pop(change.address)
            self.totals[part] += change.nbytes
        elif block := self._resident.pop(change.address, None):
            self.totals[block.part] -= block.nbytes
            self.totals["unknown"] += change.nbytes + block.nbytes  # what was rounded up
        else:
            self.totals["unknown"] += change.nbytes


def attribute_peak(
    entries: Sequence[Entry],
    *,
    resident: Mapping[int, Resident],
    before_bytes: int,
    autocast: bool = False,
) -> PeakBreakdown:
    """Return what a step's peak is made of, and the way there.

    ``resident`` is what was there before, by address; what ``before_bytes`` holds beyond it is
    ``unknown``. A free of a block that nobody allocated here is taken from its resident part, or
    from ``unknown``. Under ``autocast``, copies of operators' arguments are its casts.
    """
    purposes = _purposes(entries, autocast=autocast)
    live = _Live(resident, before_bytes)
    moments = list(_moments(entries, purposes, live))
    peak = max(moments, key=lambda moment: moment.total_bytes)  # the first of equals
    kept = list(_thinned(moments))
    return PeakBreakdown(
        parts=dict(zip(PARTS, peak.sizes, strict=True)),
        phase=peak.phase,
        ops=_ops_at(entries[: peak.entries], purposes),
        timeline={part: tuple(m.sizes[i] for m in kept) for i, part in enumerate(PARTS)},
        phases=tuple(moment.phase for moment in kept),
        left=tuple(
            Left(change.nbytes, part, change.op) for change, part in live.allocated.values()
        ),
        casts=sum(autocast and isinstance(entry, Change) and entry.cast for entry in entries),
    )


def _moments(
    entries: Sequence[Entry], purposes: Mapping[int, str], live: _Live
) -> Iterator[_Moment]:
    """Yield what is live before a step, and after each of its changes."""
    phase = "prepare"
    yield _Moment(phase, tuple(live.totals.values()), 0)
    for index, entry in enumerate(entries):
        within_bytes = 0
        match entry:
            case Phase(name):
                phase = name
                continue
            case Tag():
                continue
            case Within(nbytes, _):
                within_bytes = nbytes
            case Change(_, nbytes, _) if nbytes > 0:
                live.allocate(entry, purposes[index])
            case Change():
                live.free(entry)
        totals = {**live.totals, "other": live.totals["other"] + within_bytes}
        yield _Moment(phase, tuple(totals.values()), index + 1)


def _purposes(entries: Sequence[Entry], *, autocast: bool) -> dict[int, str]:
    """Return what each allocation, by its place in the entries, turns out to be for."""
    purposes: dict[int, str] = {}
    live: dict[int, int] = {}
    for index, entry in enumerate(entries):
        match entry:
            case Change(address, nbytes, _) if nbytes > 0:
                live[address] = index
                purposes[index] = "casts" if autocast and entry.cast else "other"
            case Change(address, _, _):
                live.pop(address, None)
            case Tag(address, part) if address in live:
                owner = live[address]
                if _RANK[part] > _RANK[purposes[owner]]:
                    purposes[owner] = part
    return purposes


def _thinned(moments: Sequence[_Moment]) -> Iterator[_Moment]:
    """Yield the highest moment of each stretch, no stretch across two phases, and both ends.

    Of a token that is made, its last moment too: what is alive between two of them.
    """
    stretch = math.ceil(len(moments) / MOMENTS)
    yield moments[0]
    for phase, group in groupby(moments[1:-1], key=lambda moment: moment.phase):
        members = list(group)
        highest = members[0]
        for start in range(0, len(members), stretch):
            highest = max(members[start : start + stretch], key=lambda one: one.total_bytes)
            yield highest
        if makes_token(phase) and highest is not members[-1]:
            yield members[-1]
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
