"""The tensors in what a call takes or returns, and whether a graph leads to them."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor
from torch.autograd.graph import Node


def tensors(value: object, path: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses, each with its path."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from tensors(one, f"{path}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for index, one in enumerate(value):
            yield from tensors(one, f"{path}[{index}]")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors(getattr(value, field.name), f"{path}.{field.name}")


def has_graph(value: object) -> bool:
    """Return whether a graph leads to a tensor in there: whether it can be trained through."""
    return any(tensor.grad_fn is not None for _, tensor in tensors(value))


def kept_unsaved(value: object) -> bool:
    """Return whether a node of the graph keeps a tensor by an attribute, where no hook sees it.

    So does a `torch.autograd.Function` that writes ``ctx.x = tensor`` instead of saving it.
    """
    todo: list[Node | None] = [tensor.grad_fn for _, tensor in tensors(value)]
    seen: set[Node | None] = {None}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        attributes = getattr(node, "__dict__", {})
        if next(tensors(dict(attributes)), None) is not None:
            return True
        todo += [following for following, _ in node.next_functions]
    return False
