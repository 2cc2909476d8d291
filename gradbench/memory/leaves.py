"""Whether a graph leads to the tensors in what a call returns, and whether hooks see all of it."""

from torch.autograd.graph import Node

from ..workloads.trees import tensors as tensors


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
