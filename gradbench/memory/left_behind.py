"""What a call leaves in the modules that it ran: tensors that stay, and other contents."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from ..workloads.state import FOREIGN, MODULES_OWN, OPAQUE, bits, has_plain_contents
from . import leaks
from .saved_tensors import paths
from .storage_tracker import Creation
from .storages import key, storages

MOST: Final = 1_000
"""Entries of a container that are looked at."""

DEEP: Final = 5
"""Containers and objects inside one another that are looked into."""

NAMED: Final = 3
"""Things that are named in words."""


@dataclass(frozen=True, slots=True)
class Left:
    """One thing that a call left: where it is, and how many bytes it made for it.

    ``where`` is ``rotary RotaryTables.cos``, path, class and attribute; for what is in no module it
    is the operator and the line that made it. Contents that only changed have no bytes.
    """

    where: str
    nbytes: int = 0
    note: str = ""  # what is to be known of the tensor: "an inference tensor"


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
        name: bits(tensor).clone()
        for name, tensor in attributes(roots)
        if has_plain_contents(tensor)
    }
    births = leaks.alive_after(call, paths(*roots))
    left_out = apart()
    made = {birth.key: birth for birth in births if birth.key not in left_out}
    named = dict(attributes(roots))
    return LeftBehind(
        tuple(_merged(_made(made, named))),
        tuple(
            Left(name)
            for name, contents in before.items()
            if name in named
            and not _keys(named[name]) & made.keys()
            and _differs(named[name], contents)
        ),
    )


def attributes(roots: Iterable[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that modules hold beside parameters, by path, class and attribute."""
    for path, module in paths(*roots).items():
        title = f"{path} {type(module).__name__}"
        own = {name: one for name, one in vars(module).items() if name not in MODULES_OWN}
        buffers = dict(module.named_buffers(recurse=False))
        for name, value in (own | buffers).items():
            yield from _tensors(value, f"{title}.{name}")


def in_words(lefts: Sequence[Left]) -> str:
    """Return what was left in words: the largest few, and how many there are besides."""
    words = []
    for left in lefts[:NAMED]:
        facts = [left.note] if left.note else []
        facts += [f"{left.nbytes:,} B"] if left.nbytes else []
        words.append(f"{left.where} ({', '.join(facts)})" if facts else left.where)
    more = len(lefts) - NAMED
    return ", ".join([*words, f"and {more} more"] if more > 0 else words)


def _made(births: Mapping[int, Creation], named: Mapping[str, Tensor]) -> Iterator[Left]:
    """Yield what was made: by attribute where one leads to it, else by line."""
    owners: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in named.items():
        for one in _keys(tensor):
            owners.setdefault(one, (name, tensor))
    for birth in births.values():
        if birth.key in owners:
            name, tensor = owners[birth.key]
            yield Left(name, birth.nbytes, _note(tensor))
        else:
            place = f" in {birth.module}" if birth.module else ""
            line = f" at {birth.line}" if birth.line else ""
            yield Left(f"made by {birth.op}{place}{line}", birth.nbytes)


def _merged(lefts: Iterable[Left]) -> list[Left]:
    """Return one for each place, most bytes first."""
    found: dict[str, Left] = {}
    for left in lefts:
        before = found.get(left.where, replace(left, nbytes=0))
        found[left.where] = replace(before, nbytes=before.nbytes + left.nbytes)
    return sorted(found.values(), key=lambda left: -left.nbytes)


def _note(tensor: Tensor) -> str:
    if tensor.is_inference():
        return "an inference tensor"
    return "with its graph" if tensor.grad_fn is not None else ""


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
        case _ if not isinstance(value, OPAQUE) and _is_users(value):
            yield from ((f".{name}", one) for name, one in getattr(value, "__dict__", {}).items())


def _is_users(value: object) -> bool:
    return type(value).__module__.partition(".")[0] not in FOREIGN
