"""Two trees' modules in one process: each tree's own stand in ``sys.modules`` for its turn alone.

Both trees have modules of the same names. So while it is a tree's turn, what is imported from it,
now or in the midst of a step, is found under these names; then it is put away, and the other
tree's modules take the place. What lies in neither tree is there once, for both. A tree's code
stands in its own tree, too: the working folder is where the user stands, as that tree has it.

A worker loads this by its file, as gradbench itself may be what the trees hold: it uses the
standard library alone.
"""

import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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

    ``path``, ``finders`` and ``folder`` are its own ``sys.path``, ``sys.meta_path`` and working
    folder: it may change them. ``environment`` are folders of which nothing is its own.
    """

    root: str
    path: list[str]
    folder: str
    environment: Sequence[str] = ()
    finders: list[Any] = field(default_factory=lambda: list(sys.meta_path))
    modules: dict[str, Any] = field(default_factory=dict)
    inside_shared: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def holds(self, place: str) -> bool:
        """Return whether a file or folder is the tree's own, and not of an environment in it."""
        if not place.startswith(self.root + os.sep):
            return False
        inside = Path(place[len(self.root) :]).parts
        elsewhere = (*_LIBRARY, *(one + os.sep for one in self.environment))
        return _INSTALLED.isdisjoint(inside) and not place.startswith(elsewhere)

    def leads_out(self, place: str) -> bool:
        """Return whether a file of the tree's is a link to what lies elsewhere."""
        return not os.path.realpath(place).startswith(os.path.realpath(self.root) + os.sep)

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


def tree(
    root: Path, paths: Sequence[str], *, home: str = "", environment: Sequence[str] = ()
) -> Tree:
    """Return a tree that imports from its paths before all else but the standard library.

    It stands in the first of them. ``home`` is the checkout that the user stands in: what of it is
    on the path of this process, by ``PYTHONPATH`` or as a package that is installed in place, each
    tree has for itself, but for folders that are the ``environment`` of all.
    """
    here = [at_home(path, root=str(root), home=home, environment=environment) for path in sys.path]
    folder = paths[0] if paths else str(root)
    return Tree(str(root), in_front(paths, filter(None, here)), folder, environment)


def in_front(paths: Sequence[str], others: Iterable[str]) -> list[str]:
    """Return these paths and others, the standard library before all, then these."""
    known = sysconfig.get_paths()
    library = {known["stdlib"], known["platstdlib"], str(Path(known["platstdlib"], "lib-dynload"))}
    others = list(dict.fromkeys(others))
    first = [path for path in others if path in library or path.endswith(".zip")]
    rest = [path for path in others if path not in {*first, *paths}]
    return [*first, *paths, *rest]


def is_installed(folder: Path) -> bool:
    """Return whether a folder belongs to an environment, as its name or this process's says."""
    return not _INSTALLED.isdisjoint(folder.parts) or f"{folder}{os.sep}".startswith(_LIBRARY)


def at_home(path: str, *, root: str, home: str, environment: Sequence[str] = ()) -> str | None:
    """Return a folder of the user's checkout as a tree has it, or None where it has none.

    Any other is what it was, and so is one of an environment that lies in the checkout.
    """
    real = os.path.realpath(path)
    if not home or home == root or not f"{real}{os.sep}".startswith(home + os.sep):
        return path
    if real in environment:
        return path
    inside = real[len(home) :].strip(os.sep)
    if not _INSTALLED.isdisjoint(Path(inside).parts) or f"{real}{os.sep}".startswith(_LIBRARY):
        return path
    own = str(Path(root, inside))
    return own if Path(own).is_dir() else None


class Turns:
    """Gives the turn to one tree or another; at first to none.

    A tree's thread that imports while it is not the tree's turn gets the other's modules.
    """

    def __init__(self, trees: Sequence[Tree]) -> None:
        self.trees = trees
        self.current: int | None = None
        self._between = list(sys.path), list(sys.meta_path)
        self._stood = _working_folder()
        self._seen = set(sys.modules)
        self._mark = _mark()

    def give(self, turn: int | None) -> None:
        """Let it be that tree's turn, or nobody's."""
        if turn == self.current:
            return
        if self.current is not None:
            self._put_away(self.trees[self.current])
        if turn is None:
            sys.path[:], sys.meta_path[:] = self._between
            _stand_in(self._stood)
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
        _stand_in(tree.folder)
        sys.modules.update(tree.modules)
        for name, (parent, attribute) in tree.inside_shared.items():
            setattr(parent, attribute, tree.modules[name])
        self._mark = _mark()

    def _put_away(self, tree: Tree) -> None:
        tree.path[:], tree.finders[:] = sys.path, sys.meta_path
        tree.folder = _working_folder() or tree.folder
        if _mark() != self._mark:
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


def _mark() -> tuple[int, str]:
    """Return what shows at once whether modules were added since: how many, and the latest."""
    return len(sys.modules), next(reversed(sys.modules))


def _working_folder() -> str:
    """Return where this process stands, or ``""`` of a folder that is gone."""
    try:
        return os.getcwd()  # noqa: PTH109 # each turn asks: a text is quicker than a path
    except FileNotFoundError:
        return ""


def _stand_in(folder: str) -> None:
    """Let a folder be the working folder, unless it is gone."""
    with suppress(OSError):
        os.chdir(folder)


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
