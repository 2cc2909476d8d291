"""What a call leaves in the modules that it ran: tensors that stay, and other contents."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from ..plurals import counted
from ..workloads.module_parts import own_buffers
from ..workloads.state import MODULES_OWN, OPAQUE, bits, has_plain_contents, is_foreign
from . import leaks
from .saved_tensors import paths
from .storage_tracker import Creation
from .storages import key, storages

MOST: Final = 1_000
"""Entries of a container that are looked at."""

DEEP: Final = 5
"""Containers and objects inside one another that are looked into."""

NAMED: Final = 3
"""Owners that are named in words, and attributes of each."""

INFERENCE_TENSOR: Final = "inference tensor"

Place = tuple[str, str]
"""An owner and what a tensor lies in there: ``rotary RotaryTables`` and ``.cos``."""


@dataclass(frozen=True, slots=True)
class Left:
    """One thing that a call left: where it is, and how many bytes it made for it.

    ``owner`` is ``rotary RotaryTables``, path and class, and ``attribute`` what it lies in there,
    ``.cos``; for what is in no module the owner is the operator and the line that made it. Contents
    that only changed have no bytes.
    """

    owner: str
    attribute: str = ""
    nbytes: int = 0
    kind: str = ""  # of tensors, where that matters: "inference tensor", "tensor with its graph"


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """What a call made and left, largest first, and which tensors of before it changed."""

    made: tuple[Left, ...]
    changed: tuple[Left, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that were made and stay."""
        return sum(left.nbytes for left in self.made)


def left_by(
    call: Callable[[], object], roots: Sequence[nn.Module], *, apart: Callable[[], set[int]] = set
) -> LeftBehind:
    """Make a call; return what it leaves when it is over, but for storages that are ``apart``."""
    before = {
        place: bits(tensor).clone()
        for place, tensor in attributes(roots)
        if has_plain_contents(tensor)
    }
    births = leaks.alive_after(call, paths(*roots))
    left_out = apart()
    made = {birth.key: birth for birth in births if birth.key not in left_out}
    named = dict(attributes(roots))
    return LeftBehind(
        tuple(_merged(_made(made, named))),
        tuple(
            Left(*place)
            for place, contents in before.items()
            if place in named
            and not _keys(named[place]) & made.keys()
            and _differs(named[place], contents)
        ),
    )


def attributes(roots: Iterable[nn.Module]) -> Iterator[tuple[Place, Tensor]]:
    """Yield the tensors that modules hold beside parameters, by owner and attribute."""
    for path, module in paths(*roots).items():
        title = f"{path} {type(module).__name__}"
        own = {name: one for name, one in vars(module).items() if name not in MODULES_OWN}
        buffers = dict(own_buffers(module))
        for name, value in (own | buffers).items():
            for attribute, tensor in _tensors(value, f".{name}"):
                yield (title, attribute), tensor


def in_words(lefts: Sequence[Left]) -> str:
    """Return what was left in words, by owner: the first few, and how many there are besides."""
    owned: dict[tuple[str, str], list[Left]] = {}
    for left in lefts:
        owned.setdefault((left.owner, left.kind), []).append(left)
    words = [_of_one(owner, kind, those) for (owner, kind), those in owned.items()]
    more = len(words) - NAMED
    return "; ".join([*words[:NAMED], f"and {counted(more, 'more place')}"] if more > 0 else words)


def _of_one(owner: str, kind: str, lefts: Sequence[Left]) -> str:
    """Return ``rotary RotaryTables.cos, .sin (inference tensors, 2,048 B)``."""
    several, more = lefts[:NAMED], len(lefts) - NAMED
    names = [left.attribute for left in several] + ([f"and {more} more"] if more > 0 else [])
    facts = [_many(kind, len(lefts))] if kind else []
    nbytes = sum(left.nbytes for left in lefts)
    facts += [f"{nbytes:,} B"] if nbytes else []
    behind = f" ({', '.join(facts)})" if facts else ""
    return f"{owner}{', '.join(names)}{behind}"


def _many(kind: str, count: int) -> str:
    return kind if count == 1 else kind.replace("tensor", "tensors").replace("its", "their")


def _made(births: Mapping[int, Creation], named: Mapping[Place, Tensor]) -> Iterator[Left]:
    """Yield what was made: by attribute where one leads to it, else by line."""
    places: dict[int, tuple[Place, Tensor]] = {}
    for place, tensor in named.items():
        for one in _keys(tensor):
            places.setdefault(one, (place, tensor))
    for birth in births.values():
        if birth.key in places:
            place, tensor = places[birth.key]
            yield Left(*place, birth.nbytes, _kind(tensor))
        else:
            module = f" in {birth.module}" if birth.module else ""
            line = f" at {birth.line}" if birth.line else ""
            yield Left(f"made by {birth.op}{module}{line}", nbytes=birth.nbytes)


def _merged(lefts: Iterable[Left]) -> list[Left]:
    """Return one for each place, most bytes first."""
    by_place: dict[Place, Left] = {}
    for left in lefts:
        place = left.owner, left.attribute
        before = by_place.get(place, replace(left, nbytes=0))
        by_place[place] = replace(before, nbytes=before.nbytes + left.nbytes)
    return sorted(by_place.values(), key=lambda left: -left.nbytes)


def _kind(tensor: Tensor) -> str:
    if tensor.is_inference():
        return INFERENCE_TENSOR
    return "tensor with its graph" if tensor.grad_fn is not None else ""


def _keys(tensor: Tensor) -> set[int]:
    return {key(storage) for storage in storages(tensor)}


def _differs(tensor: Tensor, contents: Tensor) -> bool:
    return has_plain_contents(tensor) and not torch.equal(bits(tensor), contents)


def _tensors(value: object, path: str, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a value: in containers, and in objects of the user's own classes."""
    if isinstance(value, Tensor):
        yield path, value
    elif depth < DEEP:
        for name, one in _inside(value):
            yield from _tensors(one, f"{path}{name}", depth + 1)


def _inside(value: object) -> Iterator[tuple[str, object]]:
    match value:
        case nn.Module():  # it has a path of its own, or is in no registry and is nobody's to name
            return
        case Mapping() if len(value) <= MOST:
            yield from ((f"[{name!r}]", one) for name, one in value.items())
        case list() | tuple() | deque() if len(value) <= MOST:
            yield from ((f"[{index}]", one) for index, one in enumerate(value))
        case _ if not (isinstance(value, OPAQUE) or is_foreign(type(value))):
            yield from ((f".{name}", one) for name, one in getattr(value, "__dict__", {}).items())
