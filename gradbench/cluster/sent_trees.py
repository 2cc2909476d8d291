"""The trees of a comparison in one folder, as it goes to the machines of a cluster.

Of a tree in a repository go what git keeps and what is new and not ignored; of another folder, all
but environments and results.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..git import GitError, paths

LEFT_BEHIND: Final = frozenset((".git", ".venv", ".tox", "__pycache__", "node_modules"))
"""Folders of a tree without a repository that do not go."""
OURS: Final = frozenset(("results", "reports"))
"""Folders that do not go, of those at the top: further below they may be modules of the user's."""
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
        if path.name in LEFT_BEHIND or (folder == tree and path.name in OURS):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _all_files(path, tree)
        elif path.is_file():
            yield path.relative_to(tree)
