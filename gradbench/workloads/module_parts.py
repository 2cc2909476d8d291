"""What a module consists of, whatever its author's own `parameters()` or `modules()` return."""

from collections.abc import Iterator

from torch import Tensor, nn


def named_parts(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and all modules in it, each once, by path, in the order of `named_modules`."""
    known: dict[int, nn.Module] = {}
    todo = [("", root)]
    while todo:
        path, part = todo.pop()
        if id(part) in known:
            continue
        known[id(part)] = part
        yield path, part
        children = [(name, one) for name, one in part._modules.items() if one is not None]
        todo += [(_joined(path, name), one) for name, one in reversed(children)]


def parts(root: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and all modules in it, each once."""
    for _, part in named_parts(root):
        yield part


def own_parameters(part: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield a module's parameters by name, without those of modules in it."""
    for name, parameter in part._parameters.items():
        if parameter is not None:
            yield name, parameter


def own_buffers(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's buffers by name, without those of modules in it."""
    for name, buffer in part._buffers.items():
        if buffer is not None:
            yield name, buffer


def named_parameters(root: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a module and of those in it, each once, by path."""
    known: dict[int, nn.Parameter] = {}
    for path, part in named_parts(root):
        for name, parameter in own_parameters(part):
            if id(parameter) not in known:
                known[id(parameter)] = parameter
                yield _joined(path, name), parameter


def parameters(root: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a module and of those in it, each once."""
    for _, parameter in named_parameters(root):
        yield parameter


def buffers(root: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers of a module and of those in it, each once."""
    known: dict[int, Tensor] = {}
    for part in parts(root):
        for _, buffer in own_buffers(part):
            if id(buffer) not in known:
                known[id(buffer)] = buffer
                yield buffer


def tensors_of(root: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters of a module, and then its buffers."""
    yield from parameters(root)
    yield from buffers(root)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
