"""What of the user's folders goes to the machines of a cluster.

Of a run the folder that the user stands in, but for environments and results. The trees of a
comparison go in one folder: of one in a repository what git keeps and what is new and not ignored,
of another folder all but environments and results.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..git import GitError, paths

LEFT_BEHIND: Final = frozenset((".git", ".venv", ".tox", "__pycache__", "node_modules"))
"""Folders that do not go, wherever they are; of a tree in a repository git decides."""
OURS: Final = (Path("results"), Path("reports"))
"""Folders at the top that do not go, unless they hold modules of the user's."""
IGNORES: Final = ".gitignore"
"""A file that Ray heeds, and that has been heeded here: what is kept though ignored is to go."""


def gather(trees: Mapping[str, Path], folder: Path) -> None:
    """Copy what of each tree is to go into a folder of its name."""
    for name, tree in trees.items():
        for path in _files(tree):
            if path.name == IGNORES:
                continue
            target = folder / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # removed since, or a link to nowhere
                shutil.copy2(tree / path, target)


def left_behind(folder: Path, outputs: Iterable[Path]) -> list[str]:
    """Return what of a folder does not go, as git writes what it ignores.

    ``outputs`` are further folders of results, seen from there.
    """
    places = dict.fromkeys((*OURS, *outputs))
    inside = [path for path in places if _is_below(path) and not _has_modules(folder / path)]
    return [*sorted(LEFT_BEHIND), *(f"/{_escaped(path.as_posix())}" for path in inside)]


def _is_below(path: Path) -> bool:
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _has_modules(folder: Path) -> bool:
    """Say whether a folder may be imported from: a package of the user's may be called so too."""
    return any(folder.rglob("*.py"))


def _escaped(name: str) -> str:
    return re.sub(r"([\\\[\]*?!# ])", r"\\\1", name)


def _files(tree: Path) -> Iterator[Path]:
    """Yield the files of a tree that are to go, by their paths in it."""
    try:
        kinds = ("--cached", "--others", "--exclude-standard")
        listed = paths("ls-files", "-z", *kinds, folder=tree)
    except GitError:
        yield from _all_files(tree, tree)
        return
    for path in dict.fromkeys(listed):
        if (tree / path).is_dir():  # a submodule, or a repository within this one
            yield from _all_files(tree / path, tree)
        else:
            yield path


def _all_files(folder: Path, tree: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in LEFT_BEHIND or _is_output(path.relative_to(tree), tree):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _all_files(path, tree)
        elif path.is_file():
            yield path.relative_to(tree)


def _is_output(path: Path, tree: Path) -> bool:
    return path in OURS and not _has_modules(tree / path)
