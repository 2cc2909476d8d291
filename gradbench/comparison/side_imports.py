"""Two trees' modules in one process: each tree's own stand in ``sys.modules`` for its turn alone.

Both trees have modules of the same names. So while it is a tree's turn, what is imported from it,
now or in the midst of a step, is found under these names; then it is put away, and the other
tree's modules take the place. What lies in neither tree is there once, for both.

A worker loads this by its file, as gradbench itself may be what the trees hold: it uses the
standard library alone.
"""

import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ExtensionFileLoader, PathFinder
from pathlib import Path
from typing import Any, Final

_INSTALLED: Final = frozenset(("site-packages", "dist-packages"))
"""Folders whose modules belong to an environment, which may lie within a tree."""
_MISSING: Final = object()


@dataclass(slots=True)
class Tree:
    """One side's code: the folder that holds it, and its modules by name while they are put away.

    ``path`` and ``finders`` are its own ``sys.path`` and ``sys.meta_path``: it may change both.
    """

    root: str
    path: list[str]
    finders: list[Any] = field(default_factory=lambda: list(sys.meta_path))
    modules: dict[str, Any] = field(default_factory=dict)
    inside_shared: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def holds(self, place: str) -> bool:
        """Return whether a file or folder is the tree's own, and not of an environment in it."""
        if not place.startswith(self.root + os.sep):
            return False
        inside = Path(place[len(self.root) :]).parts
        return _INSTALLED.isdisjoint(inside) and not place.startswith(_LIBRARY)

    def owns(self, name: str, module: object) -> bool:
        """Return whether what stands under a name in ``sys.modules`` came from the tree.

        A module may have put another object in its own place, which has no file.
        """
        places = [getattr(module, "__file__", None), *_portions(module)]
        known = [place for place in places if isinstance(place, str)]
        if known:
            return any(map(self.holds, known))
        parent = name.rpartition(".")[0]
        if parent:
            return parent in self.modules
        spec = PathFinder.find_spec(name)
        return spec is not None and spec.origin is not None and self.holds(spec.origin)

    def extensions(self) -> list[str]:
        """Return the names of its compiled modules, while they are put away."""
        return sorted(
            name
            for name, module in self.modules.items()
            if isinstance(
                getattr(getattr(module, "__spec__", None), "loader", None), ExtensionFileLoader
            )
        )


def tree(root: Path, paths: Sequence[str]) -> Tree:
    """Return a tree that imports from its paths before all else but the standard library."""
    return Tree(str(root), in_front(paths))


def in_front(paths: Sequence[str]) -> list[str]:
    """Return ``sys.path`` with these paths before all else but the standard library."""
    known = sysconfig.get_paths()
    library = {known["stdlib"], known["platstdlib"], str(Path(known["platstdlib"], "lib-dynload"))}
    first = [path for path in sys.path if path in library or path.endswith(".zip")]
    rest = [path for path in sys.path if path not in {*first, *paths}]
    return [*first, *paths, *rest]


class Turns:
    """Gives the turn to one tree or another; at first to none.

    A tree's thread that imports while it is not the tree's turn gets the other's modules.
    """

    def __init__(self, trees: Sequence[Tree]) -> None:
        self.trees = trees
        self.current: int | None = None
        self._between = list(sys.path), list(sys.meta_path)
        self._seen = set(sys.modules)
        self._length = len(sys.modules)

    def give(self, turn: int | None) -> None:
        """Let it be that tree's turn, or nobody's."""
        if turn == self.current:
            return
        if self.current is not None:
            self._put_away(self.trees[self.current])
        if turn is None:
            sys.path[:], sys.meta_path[:] = self._between
        else:
            self._put_in_place(self.trees[turn])
        self.current = turn

    @contextmanager
    def turn(self, turn: int) -> Iterator[Tree]:
        """Let it be that tree's turn, inside; then whoever's it was."""
        before = self.current
        self.give(turn)
        try:
            yield self.trees[turn]
        finally:
            self.give(before)

    def _put_in_place(self, tree: Tree) -> None:
        sys.path[:], sys.meta_path[:] = tree.path, tree.finders
        sys.modules.update(tree.modules)
        for name, (parent, attribute) in tree.inside_shared.items():
            setattr(parent, attribute, tree.modules[name])
        self._length = len(sys.modules)

    def _put_away(self, tree: Tree) -> None:
        tree.path[:], tree.finders[:] = sys.path, sys.meta_path
        if len(sys.modules) != self._length:
            self._look(tree)
        for name in list(tree.modules):
            module = sys.modules.pop(name, _MISSING)
            if module is _MISSING:  # the tree has removed it
                del tree.modules[name]
                tree.inside_shared.pop(name, None)
            else:
                tree.modules[name] = module
        for parent, attribute in tree.inside_shared.values():
            vars(parent).pop(attribute, None)

    def _look(self, tree: Tree) -> None:
        """Learn which of the modules that are new are the tree's."""
        new = [name for name in sys.modules if name not in self._seen and name not in tree.modules]
        for name in new:  # parents come before what is in them
            module = sys.modules[name]
            if not tree.owns(name, module):
                self._seen.add(name)
                continue
            tree.modules[name] = module
            parent, _, attribute = name.rpartition(".")
            if parent and parent not in tree.modules and parent in sys.modules:
                tree.inside_shared[name] = (sys.modules[parent], attribute)


def _portions(module: object) -> list[object]:
    """Return the folders of a package; of one without a file they may lie in several places."""
    try:
        return list(getattr(module, "__path__", ()))
    except Exception:  # noqa: BLE001 # a module may have put any object in its place
        return []


def _library() -> tuple[str, ...]:
    names: Mapping[str, str] = sysconfig.get_paths()
    return tuple(names[name] + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))


_LIBRARY: Final = _library()
