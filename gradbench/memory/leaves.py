"""Whether a graph leads to the tensors in what a call returns, and whether hooks see all of it."""

from collections.abc import Iterator

from torch.autograd.graph import Node

from ..workloads.trees import tensors


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


def kept_unsaved(value: object) -> bool:
    """Return whether a node of the graph keeps a tensor by an attribute, where no hook sees it.

    So does a `torch.autograd.Function` that writes ``ctx.x = tensor`` instead of saving it.
    """
    return any(
        next(tensors(dict(getattr(node, "__dict__", {}))), None) is not None
        for node in nodes(value)
    )
