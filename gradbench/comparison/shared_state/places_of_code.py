"""The tree's own code in what others' modules and classes hold."""

import functools
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Final, cast

import torch

from .modules import SHALLOW, Code

DEPTH: Final = 2
"""How deep the tree's code is looked for: what is in the dictionary of a registry's object."""
NESTED: Final = 30
"""Parts of what binds or wraps functions that are looked at: they may be in one another."""
_THESE_FILES: Final = os.path.dirname(__file__) + os.sep  # noqa: PTH120 # compared as text


def strangers(code: Code, known: Collection[int]) -> Iterator[str]:
    """Yield the places in others' modules, classes, lists and dictionaries that hold its code."""
    own = code.modules

    def is_own(value: object) -> bool:
        return id(value) not in known and any(map(is_own_part, _unwrapped(value)))

    def is_own_part(value: object) -> bool:
        kind = type(value)  # isinstance would ask objects that answer for others
        if issubclass(kind, FunctionType):
            file = cast("FunctionType", value).__code__.co_filename
            # the tree may be gradbench itself
            return not file.startswith(_THESE_FILES) and code.holds(file)
        if issubclass(kind, ModuleType):
            return cast("ModuleType", value).__name__ in own
        return (cast("type", value) if issubclass(kind, type) else kind).__module__ in own

    seen: set[int] = {id(sys.modules)}
    for name, module in list(sys.modules.items()):
        if name in own or name == "__main__" or not issubclass(type(module), ModuleType):
            continue
        depth = 1 if name.partition(".")[0] in SHALLOW else DEPTH
        for attribute, value in list(vars(module).items()):
            place = f"{name}.{attribute}"
            if place in own:  # a package's attribute for a module in it
                continue
            if is_own(value) or _holds_own(value, is_own, seen, depth):
                yield place


def _holds_own(value: object, is_own: Callable[[object], bool], seen: set[int], depth: int) -> bool:
    """Return whether something of the tree's own is in a value that nobody has looked into yet."""
    if id(value) in seen:
        return False
    parts = _parts(value, is_own)
    if not parts:
        return False
    seen.add(id(value))
    return any(
        is_own(part) or (depth > 1 and _holds_own(part, is_own, seen, depth - 1)) for part in parts
    )


def _parts(value: object, is_own: Callable[[object], bool]) -> list[Any]:
    """Return what may be exchanged in it; what its own class or function is the key of is apart."""
    kind = type(value)
    if kind in _WITHOUT_PARTS or issubclass(kind, ModuleType):  # a module is looked into by itself
        return []
    if issubclass(kind, list | tuple | set | frozenset):
        return list(cast("list[Any]", value))
    if issubclass(kind, dict | MappingProxyType):
        pairs = list(cast("dict[Any, Any]", value).items())
        return [part for key, part in pairs if not is_own(key)]
    if issubclass(kind, type):
        return list(vars(cast("type", value)).values())
    try:  # past objects that answer for others
        return list(object.__getattribute__(value, "__dict__").values())
    except AttributeError:
        return []


_WITHOUT_PARTS: Final = frozenset(
    (
        *(str, bytes, int, float, bool, type(None), torch.dtype),
        *(BuiltinFunctionType, WrapperDescriptorType, MethodDescriptorType),
        *(GetSetDescriptorType, MemberDescriptorType, CodeType),
    )
)


def _unwrapped(value: Any) -> Iterator[Any]:
    """Yield the functions within what binds, wraps or describes some; anything else as it is."""
    left = [value]
    for _ in range(NESTED):
        if not left:
            return
        value = left.pop()
        names = _WRAPPERS.get(type(value))
        if names is None:
            yield value
        else:
            left += [part for name in names if (part := getattr(value, name)) is not None]


_WRAPPERS: Final[Mapping[type, tuple[str, ...]]] = {
    functools.partial: ("func",),
    functools.partialmethod: ("func",),
    functools.cached_property: ("func",),
    type(functools.lru_cache(len)): ("__wrapped__",),
    MethodType: ("__func__",),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
}
