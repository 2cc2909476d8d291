"""Trees: what a model is called with and what it returns, tensors in containers of any depth."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Final

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..errors import BadModel

DEEP: Final = 5
"""Containers in one another that are outlined."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a model is called with, and what only its loss needs."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    target: Any = None

    @classmethod
    def of(cls, tree: object) -> "Batch":
        """Return a batch as a user writes it: a tensor, a tuple of arguments, a dict by name."""
        match tree:
            case Batch():
                return tree
            case Mapping():
                wrong = [name for name in tree if not isinstance(name, str)]
                if wrong:
                    raise BadModel(
                        f"a batch that is a dict has the names of arguments: {wrong[0]!r}"
                    )
                return cls(kwargs=dict(tree))
            case tuple() if not isinstance(tree, PackedSequence):
                return cls(args=tuple(tree))
        return cls(args=(tree,))

    def __str__(self) -> str:
        """Return the arguments with shapes and dtypes: ``float32 [8, 3], mask=bool [8, 128]``."""
        return ", ".join(
            [
                *map(outlined, self.args),
                *(f"{name}={outlined(value)}" for name, value in self.kwargs.items()),
            ]
        )


def tensors(tree: object, path: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses, each with its path.

    However deep they lie; a container inside itself, as a parent that a child knows, is not entered
    again.
    """
    around: dict[int, object] = {}  # containers that are entered, held, or an id could be another's
    todo: list[_Place | int] = [(path, tree)]  # what to look at, and what to leave
    while todo:
        one = todo.pop()
        if isinstance(one, int):
            del around[one]
            continue
        where, value = one
        if isinstance(value, Tensor):
            yield where, value
        elif id(value) not in around and (inside := list(_inside(where, value))):
            around[id(value)] = value
            todo += [id(value), *reversed(inside)]


_Place = tuple[str, object]


def _inside(path: str, tree: object) -> Iterator[_Place]:
    """Yield what a container holds, by path; a field that was given no value yet is left out."""
    if isinstance(tree, Mapping):
        for key, one in tree.items():
            yield f"{path}[{key!r}]", one
    elif isinstance(tree, (tuple, list)):
        for index, one in enumerate(tree):
            yield f"{path}[{index}]", one
    elif _is_dataclass(tree):
        for name in given_fields(tree):
            yield f"{path}.{name}", getattr(tree, name)


def mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the tree with a function of each of its tensors in their places.

    A tensor that is there twice is so in the result. What is no container is passed through.
    """
    made: dict[int, Tensor] = {}

    def leaf(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = function(tensor)
        return made[id(tensor)]

    return _mapped(tree, leaf)


def _mapped(tree: Any, leaf: Callable[[Tensor], Tensor]) -> Any:  # one return a kind
    match tree:
        case Tensor():
            return leaf(tree)
        case PackedSequence():  # its batch sizes stay on the host, as torch wants them
            order = (tree.sorted_indices, tree.unsorted_indices)
            moved = (None if one is None else leaf(one) for one in order)
            return PackedSequence(leaf(tree.data), tree.batch_sizes, *moved)
        case tuple():
            return _tuple_like(tree, [_mapped(one, leaf) for one in tree])
        case list():  # a kind of its own may be made of other arguments, and hold more
            copied = copy.copy(tree)
            copied[:] = [_mapped(one, leaf) for one in tree]
            return copied
        case MutableMapping():
            new = copy.copy(tree)
            for key, one in tree.items():
                new[key] = _mapped(one, leaf)
            return new
    return _mapped_fields(tree, leaf) if _is_dataclass(tree) else tree


def _tuple_like(tree: tuple[Any, ...], items: Sequence[Any]) -> tuple[Any, ...]:
    try:
        new = tuple.__new__(type(tree), items)
    except TypeError:  # kinds that are written in C, such as torch.Size, make themselves
        return type(tree)(items)
    getattr(new, "__dict__", {}).update(getattr(tree, "__dict__", {}))
    return new


def _mapped_fields(tree: Any, leaf: Callable[[Tensor], Tensor]) -> Any:
    new = copy.copy(tree)
    for name in given_fields(tree):
        value = _mapped(getattr(tree, name), leaf)
        object.__setattr__(new, name, value)  # a frozen one, too
    return new


def _is_dataclass(tree: object) -> bool:
    return is_dataclass(tree) and not isinstance(tree, type)


def given_fields(tree: Any) -> list[str]:
    """Return the fields of a dataclass's object that have a value: some get theirs later."""
    return [one.name for one in fields(tree) if hasattr(tree, one.name)]


def outlined(tree: object, *, numbers: bool = True, depth: int = DEEP) -> str:
    """Return a tree in few words: shapes and dtypes of tensors, types of all else.

    Numbers are written out, unless they are of an output: those differ from call to call. So deep
    containers are entered, and no deeper.
    """
    within = partial(outlined, numbers=numbers, depth=depth - 1)
    match tree:
        case Mapping() | list() | tuple() if not depth:
            return type(tree).__name__
        case Tensor():
            return f"{str(tree.dtype).removeprefix('torch.')} {list(tree.shape)}"
        case Mapping():
            return f"{{{', '.join(f'{key}: {within(one)}' for key, one in tree.items())}}}"
        case list() | tuple():
            opening, closing = "[]" if isinstance(tree, list) else "()"
            return f"{opening}{_few(tree, within)}{closing}"
        case None | bool() | int() | float() if numbers or tree is None:
            return repr(tree)
    return type(tree).__name__


def _few(trees: Sequence[object], words_of: Callable[[object], str], *, most: int = 4) -> str:
    words = [words_of(one) for one in trees[:most]]
    return ", ".join([*words, f"and {len(trees) - most} more"] if len(trees) > most else words)
