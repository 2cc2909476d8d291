"""Whose the bytes of a call's peak are: module and line that ran when each block was allocated."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode

from ..records.allocations import Change, Entry, Mark, Phase, Tag
from ..workloads.module_parts import own_parameters
from .saved_tensors import ModuleFrames, users_line
from .storage_tracker import Operator

ONCE: Final = "in the first call alone"
"""In place of a line: what a further call does not allocate, an optimizer's state say."""


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


class BackwardModules:
    """Knows whose work a node of the graph does: of the module that ran when it was made.

    What adds a gradient to a parameter works for the module that owns it. Nodes are known by their
    number, which each thread counts for itself: one that two modules have is nobody's.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._owners = {
            id(parameter): path
            for path, module in modules.items()
            for _, parameter in own_parameters(module)
        }
        self._makers: dict[int, str] = {}

    def made(self, module: str) -> None:
        """Remember whose the node is that was made last, before its operator ran."""
        number = torch._C._autograd._get_sequence_nr() - 1
        self._makers[number] = module if self._makers.get(number, module) == module else ""

    def of(self, node: Node) -> str:
        """Return the module's path, or ``""``."""
        variable = getattr(node, "variable", None)
        if variable is not None:
            return self._owners.get(id(variable), "")
        return self._makers.get(node._sequence_nr(), "")


class PlaceMarks(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Marks where each operator begins and ends, in which module, backward too."""

    def __init__(
        self, mark: Callable[[Mark], None], where: ModuleFrames, backward: BackwardModules
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._mark, self._where, self._backward = mark, where, backward

    def __torch_dispatch__(
        self,
        func: Operator,
        types: Sequence[type],  # torch's signature
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator between two marks."""
        self._mark(Place(str(func), self._module(), users_line()))
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._mark(Place(""))

    def _module(self) -> str:
        module = self._where.module
        node = torch._C._current_autograd_node()
        if node is not None:
            return module or self._backward.of(node)  # a forward is run again in checkpointing
        self._backward.made(module)
        return module


@dataclass(frozen=True, slots=True)
class _Block:
    """A block that was allocated, and where."""

    op: str
    nbytes: int
    place: Place
    saved: bool


def held_at_peak(entries: Sequence[Entry], watched: Sequence[Entry] | None = None) -> list[Held]:
    """Return what the highest moment of the entries holds, by place, most first.

    Where they have no places, as of a call that nobody watched, each block is taken for the one of
    the same operator and size whose turn it is among the ``watched`` entries of a further call.
    """
    blocks = _blocks(entries)
    if watched is not None:
        alike: dict[tuple[str, int], deque[_Block]] = {}
        for block in _blocks(watched).values():
            alike.setdefault((block.op, block.nbytes), deque()).append(block)
        for number, block in blocks.items():
            turns = alike.get((block.op, block.nbytes))
            once = replace(block, place=Place("", line=ONCE))
            blocks[number] = turns.popleft() if turns else once
    totals: dict[tuple[bool, str, str, str], int] = {}
    for number in _highest(entries):
        block = blocks[number]
        key = block.saved, block.op, block.place.module, block.place.line
        totals[key] = totals.get(key, 0) + block.nbytes
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    return [Held(nbytes, *key) for key, nbytes in ranked]


def _blocks(entries: Iterable[Entry]) -> dict[int, _Block]:
    """Return each block by the number of the entry that allocates it, in order."""
    place = Place("")
    live: dict[int, int] = {}
    made: dict[int, tuple[Change, Place]] = {}
    saved: set[int] = set()
    for number, entry in enumerate(entries):
        match entry:
            case Place():
                place = entry
            case Change(address, nbytes, _) if nbytes > 0:
                live[address] = number
                made[number] = entry, place
            case Change(address, _, _):
                live.pop(address, None)
            case Tag(address, "saved") if address in live:
                saved.add(live[address])
    return {
        number: _Block(change.op, change.nbytes, where, number in saved)
        for number, (change, where) in made.items()
    }


def _highest(entries: Iterable[Entry]) -> list[int]:
    """Return the numbers of the entries whose blocks are there at the highest moment."""
    live: dict[int, int] = {}
    peak: list[int] = []
    now = most = 0
    for number, entry in enumerate(entries):
        match entry:
            case Change(address, nbytes, _) if nbytes > 0:
                live[address] = number
                now += nbytes
                if now > most:
                    most, peak = now, list(live.values())
            case Change(address, nbytes, _):
                live.pop(address, None)
                now += nbytes
    return peak
