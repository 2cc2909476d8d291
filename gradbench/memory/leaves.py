"""Whether a graph leads to the tensors in what a call returns, and whether hooks see all of it."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from torch import Tensor, nn
from torch.autograd.graph import Node

from ..workloads.trees import given_fields, tensors

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
    ``ctx.f = lambda: tensor``. What a tensor's hook closes over is `GivenHooks`'s.
    """
    return any(
        True for node in nodes(value) for _ in tensors_within(dict(getattr(node, "__dict__", {})))
    )


class GivenHooks:
    """The hooks that a call gives to tensors, which torch does not show: noted as they are given.

    By weak references, so that nothing lives the longer for it. A node's own ``register_hook`` is
    not Python's, and nobody sees what that is given.
    """

    def __init__(self) -> None:
        self._given: list[weakref.ref[Any]] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what `torch.Tensor.register_hook` is given while entered."""
        register = Tensor.register_hook

        def registered(tensor: Tensor, hook: Callable[[Tensor], Tensor | None]) -> object:
            with suppress(TypeError):  # there is no weak reference to some callables
                by = weakref.WeakMethod if isinstance(hook, MethodType) else weakref.ref
                self._given.append(by(hook))
            handle: object = register(tensor, hook)  # type: ignore[no-untyped-call] # torch leaves it untyped
            return handle

        Tensor.register_hook = registered  # type: ignore[method-assign] # on purpose
        try:
            yield
        finally:
            Tensor.register_hook = register  # type: ignore[method-assign] # as it was

    def kept(self) -> Iterator[Tensor | None]:
        """Yield the tensors that hooks which are still there lead to, None for too much to see."""
        for given in self._given:
            yield from tensors_within(given())


def tensors_within(value: object) -> Iterator[Tensor | None]:
    """Yield tensors in containers, objects' attributes and closures; None where that is too much.

    Then nobody has looked at all of it.
    """
    todo, seen = [value], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, OPAQUE):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            yield one
            continue
        if len(seen) > MOST:
            yield None
            return
        todo += _inside(one)


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
            yield from one.__defaults__ or ()
            yield from (one.__kwdefaults__ or {}).values()
        case _:
            yield from getattr(one, "__dict__", {}).values()
            if is_dataclass(one):  # it may have slots
                yield from (getattr(one, name) for name in given_fields(one))
