"""Whose the bytes of a call's peak are: module and line that ran when each block was allocated."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from ..records.allocations import Change, Entry, Mark, Phase, Tag
from .saved_tensors import ModuleFrames, users_line
from .storage_tracker import Operator


@dataclass(frozen=True, slots=True)
class Place(Phase):
    """What runs from here on: an operator that a line of a module called, or "" where it ended."""

    module: str = ""
    line: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of a peak that one place allocated; ``saved`` are those that autograd saved."""

    nbytes: int
    saved: bool
    op: str
    module: str
    line: str


class PlaceMarks(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Marks where each operator begins and ends."""

    def __init__(self, mark: Callable[[Mark], None], where: ModuleFrames) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._mark, self._where = mark, where

    def __torch_dispatch__(
        self,
        func: Operator,
        types: Sequence[type],  # torch's signature
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator between two marks."""
        self._mark(Place(str(func), self._where.module, users_line()))
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._mark(Place(""))


def held_at_peak(entries: Iterable[Entry]) -> list[Held]:
    """Return what the highest moment of the entries holds, by place, most first."""
    place = Place("")
    live: dict[int, tuple[Change, Place]] = {}
    saved: set[int] = set()  # by identity: an address may be used again
    now = most = 0
    peak: list[tuple[Change, Place]] = []
    for entry in entries:
        match entry:
            case Place():
                place = entry
            case Change(address, nbytes, _) if nbytes > 0:
                live[address] = entry, place
                now += nbytes
                if now > most:
                    most, peak = now, list(live.values())
            case Change(address, nbytes, _):
                live.pop(address, None)
                now += nbytes
            case Tag(address, "saved") if address in live:
                saved.add(id(live[address][0]))
    totals: dict[tuple[bool, str, str, str], int] = {}
    for change, where in peak:
        key = id(change) in saved, change.op, where.module, where.line
        totals[key] = totals.get(key, 0) + change.nbytes
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    return [Held(nbytes, *key) for key, nbytes in ranked]
