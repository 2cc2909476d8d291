"""Whether a graph leads to the tensors in what a call returns, and whether hooks see all of it."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Final

from torch import Tensor, nn
from torch.autograd.graph import Node

from ..workloads.trees import tensors

OPAQUE: Final = (str, bytes, int, float, complex, type, ModuleType, nn.Module)
"""What is not looked into: a module is there without the graph, with its parameters."""

MOST: Final = 10_000
"""Objects that are looked at, at most."""


def nodes(value: object) -> Iterator[Node]:
    """Yield the nodes of the graphs that lead to the tensors in there, each once."""
    todo: list[Node | None] = [tensor.grad_fn for _, tensor in tensors(value)]
    seen: set[Node | None] = {None}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo += [following for following, _ in node.next_functions]


SAVED: Final = "_saved_"
"""How the attributes of a node begin that show what it saved."""


def saved_by(node: Node) -> Iterator[Tensor]:
    """Yield the tensors that a node saved, as far as they are as they were then.

    A number that is an operand is a tensor of no dimension: it is no activation.
    """
    names = [name for name in dir(node) if name.startswith(SAVED)]
    for name in (*names, "saved_tensors"):  # the second of a `torch.autograd.Function`
        try:
            held = getattr(node, name, None)
        except RuntimeError:  # it was changed in place since
            continue
        yield from (tensor for _, tensor in tensors(held) if tensor.dim())


def kept_unsaved(value: object) -> bool:
    """Return whether a node of the graph keeps a tensor by an attribute, where no hook sees it.

    So does a `torch.autograd.Function` that writes ``ctx.x = tensor`` instead of saving it, or
    ``ctx.f = lambda: tensor``. A tensor that only the closure of a tensor's hook holds, which
    `torch.Tensor.register_hook` was given, is not seen: torch does not show a node's hooks.
    """
    return any(_leads_to_a_tensor(dict(getattr(node, "__dict__", {}))) for node in nodes(value))


def _leads_to_a_tensor(value: object) -> bool:
    """Return whether a tensor is in there: in containers, objects' attributes or closures."""
    todo, seen = [value], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, OPAQUE):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            return True
        if len(seen) > MOST:
            return True  # nobody has looked at all of it
        todo += _inside(one)
    return False


def _inside(one: object) -> Iterator[object]:
    """Yield what an object holds: entries, attributes, what a function closes over."""
    match one:
        case Mapping():
            yield from one.values()
        case list() | tuple() | set() | frozenset():
            yield from one
        case partial():
            yield from (one.func, *one.args, *one.keywords.values())
        case MethodType():
            yield from (one.__self__, one.__func__)
        case FunctionType():
            for cell in one.__closure__ or ():
                with suppress(ValueError):  # nothing is in it yet
                    yield cell.cell_contents
        case _:
            yield from getattr(one, "__dict__", {}).values()
            if is_dataclass(one):  # it may have slots
                yield from (getattr(one, each.name) for each in fields(one))
