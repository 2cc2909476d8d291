"""Modules that both sides would find: neither the tree's own, nor gradbench's."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final, Protocol

SHALLOW: Final = frozenset((*sys.stdlib_module_names, "torch", "numpy", "gradbench"))
"""Large packages that have no such registries: there it is looked for in dictionaries and lists."""


class Code(Protocol):
    """The tree, as far as it is asked here."""

    @property
    def root(self) -> str:
        """The folder that holds it."""

    def holds(self, place: str) -> bool:
        """Return whether a file is the tree's own."""

    def leads_out(self, place: str) -> bool:
        """Return whether a file of the tree's is a link to what lies elsewhere."""

    def owns(self, name: str, module: object) -> bool:
        """Return whether a module is the tree's own."""

    @property
    def modules(self) -> dict[str, Any]:
        """Its modules, by name."""

    def extensions(self) -> list[str]:
        """Return the names of its compiled modules."""


def is_others(name: str, module: object) -> bool:
    """Return whether it is a module that both sides would find, and that is not gradbench's."""
    mine = name.partition(".")[0] in ("gradbench", "__main__", "__mp_main__")
    return issubclass(type(module), ModuleType) and not mine and not name.startswith("beside_")


def classes(name: str, module: ModuleType) -> Iterator[tuple[str, type]]:
    """Yield the classes that a module defines, by the places where they stand in it."""
    for attribute, value in list(vars(module).items()):
        if issubclass(type(value), type) and value.__module__ == name:
            yield f"{name}.{attribute}", value
