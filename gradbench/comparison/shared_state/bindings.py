"""What others' modules and their classes have under each name, before the tree's code and after."""

import functools
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, Final, cast

import torch

from .modules import SHALLOW, Code, classes, is_others

MANY: Final = 1000
"""Entries of a dictionary, at most, in which a setting is looked for."""
LONG: Final = 100
"""Characters of a setting that are compared as they are."""
_GONE: Final = object()
_PLAIN: Final = (str, bytes, int, float, bool, type(None), torch.dtype, torch.device)
_CLOCKS: Final[tuple[Callable[[], float], ...]] = (
    *(time.time, time.monotonic, time.perf_counter),
    *(time.time_ns, time.monotonic_ns, time.perf_counter_ns),
)


class Bindings:
    """What others' modules and their classes have under each name, from now on compared."""

    def __init__(self) -> None:
        self._before = [
            (place, owner, dict(vars(owner)))
            for name, module in list(sys.modules.items())
            if is_others(name, module)
            for place, owner in [(name, module), *classes(name, module)]
        ]
        self._known = frozenset(sys.modules)
        self.threads = frozenset(threading.enumerate())
        self._began = [clock() for clock in _CLOCKS]
        self._counters: frozenset[str] = frozenset()

    def learn_counters(self, code: Code, step: Callable[[], object]) -> None:
        """Make a step, and leave out from now on the numbers that it changes: they count, or time.

        What they came to by then says nothing of what a step does.
        """
        before = dict(self._numbers(code))
        step()
        self._counters = frozenset(
            name for name, value in self._numbers(code) if before.get(name, value) != value
        )

    def _numbers(self, code: Code) -> Iterator[tuple[str, float]]:
        for place, owner, before in self._before:
            now = vars(owner)
            for name in before:
                if type(value := now.get(name)) in (int, float):  # isinstance may ask its class
                    yield f"{place}.{name}", cast("float", value)
        for later, module in self._later(code):
            for place, one in _plain(later, module):
                if type(one) in (int, float):
                    yield place, cast("float", one)

    def known(self) -> frozenset[int]:
        """Return the identities of all that had a name: none of it is code that came later."""
        return frozenset(id(value) for _, _, before in self._before for value in before.values())

    def changes(self) -> Iterator[tuple[str, str]]:
        """Yield each name that stands for something else by now, with that in words."""
        for place, owner, before in self._before:
            now = vars(owner)
            for name, old in before.items():
                new = now.get(name, _GONE)
                if new is not old and not self._counts(f"{place}.{name}", new):
                    yield f"{place}.{name}", "gone" if new is _GONE else described(new)

    def later_values(self, code: Code) -> Mapping[str, Mapping[str, str]]:
        """Return what others' modules that came since, by name, have under which name.

        Plain values, entries of dictionaries, and functions that stand under another name than
        their own: by these a package keeps what its users set.
        """
        return {
            name: {
                place: _shortened(described(value).replace(code.root, ""))
                for place, value in _plain(name, module)
                if not self._counts(place, value)
            }
            for name, module in self._later(code)
        }

    def _later(self, code: Code) -> Iterator[tuple[str, ModuleType]]:
        """Yield the modules that came since, of packages that the tree's own modules have names of.

        What others import lazily, and set by themselves, is no setting of the tree's.
        """
        packages = _used(code)
        for name, module in list(sys.modules.items()):
            known = name in self._known or name.partition(".")[0] not in packages
            if not known and is_others(name, module) and not code.owns(name, module):
                yield name, module

    def _counts(self, name: str, value: object) -> bool:
        """Return whether a number goes on from step to step, or is a time since this was made."""
        times = zip(_CLOCKS, self._began, strict=True)
        timed = type(value) in (int, float) and any(
            began <= cast("float", value) <= clock() for clock, began in times
        )
        return timed or name in self._counters


def _used(code: Code) -> frozenset[str]:
    """Return the packages of which something stands in the tree's own modules."""
    names: set[str] = set()
    for name, module in list(sys.modules.items()):
        if is_others(name, module) and code.owns(name, module):
            for value in list(vars(module).values()):
                kind = type(value)
                if issubclass(kind, ModuleType):
                    names.add(value.__name__)
                else:
                    named = value if issubclass(kind, FunctionType | type) else kind
                    names.add(str(getattr(named, "__module__", "")))
    return frozenset(one.partition(".")[0] for one in names) - SHALLOW


def _plain(name: str, module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield the plain values of a module and its classes, by the place where each stands."""
    for place, owner in [(name, module), *classes(name, module)]:
        for attribute, value in list(vars(owner).items()):
            kind, own = type(value), f"{place}.{attribute}"
            if attribute.startswith("__"):
                continue
            if kind in _PLAIN:
                yield own, value
            elif issubclass(kind, FunctionType):
                if cast("FunctionType", value).__name__ != attribute:
                    yield own, value
            elif kind is dict:
                for key, one in list(cast("dict[Any, Any]", value).items())[:MANY]:
                    if type(key) is str and type(one) in _PLAIN:
                        yield f"{own}[{key!r}]", one


def _shortened(words: str) -> str:
    """Return words, or the beginning of many with a sum of them all."""
    if len(words) <= LONG:
        return words
    return f"{words[:LONG]}... (sum {zlib.crc32(words.encode('utf-8', 'replace')):08x})"


def described(value: object) -> str:
    """Return a plain value as it is, a function or class by its name, all else by its class.

    What a container prints depends on the order in which modules were imported.
    """
    if isinstance(value, functools.partial):
        bound = {name: described(one) for name, one in value.keywords.items()}
        return f"{described(value.func)} with {[*map(described, value.args)]} and {bound}"
    if type(value) in _PLAIN:
        return repr(value)
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str):
        return f"{getattr(value, '__module__', '')}.{name}"
    return f"{type(value).__module__}.{type(value).__qualname__}"
