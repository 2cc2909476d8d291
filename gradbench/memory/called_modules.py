"""Which modules a call is about: through functions, methods, partials, closures, arguments."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence

from torch import nn


def called_modules(
    function: object, arguments: Sequence[object] = (), options: Mapping[str, object] | None = None
) -> list[nn.Module]:
    """Return the modules that a call is about, each once, the nearest first.

    Those that the callable is, is a method of, is a partial of or wraps; that it closes over or
    names; that it has as an attribute, or its owner has; and those among its arguments.
    """
    modules: list[nn.Module] = []
    visited: set[int] = set()
    todo: list[object] = [function, *arguments, *(options or {}).values()]
    while todo:
        one = todo.pop(0)
        if id(one) in visited:  # a function may wrap itself
            continue
        visited.add(id(one))
        if isinstance(one, nn.Module):
            modules.append(one)
        todo = [*_behind(one), *todo]
    return modules


def _behind(one: object) -> list[object]:
    """Return what an object leads to: a module's own parts are reached through it."""
    if isinstance(one, nn.Module):
        return []
    if isinstance(one, functools.partial):
        return [one.func, *one.args, *one.keywords.values()]
    if inspect.ismethod(one):
        return [one.__self__, one.__func__]
    if inspect.isfunction(one):
        return [*_named_in(one), *([one.__wrapped__] if hasattr(one, "__wrapped__") else [])]
    attributes = getattr(one, "__dict__", {}).values()
    return [value for value in attributes if isinstance(value, nn.Module)]


def _named_in(function: Callable[..., object]) -> list[object]:
    try:
        variables = inspect.getclosurevars(function)
    except ValueError:  # it closes over a variable that has no value yet
        return []
    named = {**variables.globals, **variables.nonlocals}
    return [one for one in named.values() if isinstance(one, nn.Module)]
