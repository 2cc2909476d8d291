"""What processes that were killed have left behind: temporary folders, and worktrees in them."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from .. import scratch
from .worktree import remove

REPOSITORY: Final = "repository"
"""The note of a folder that says where its worktree belongs."""
BASE: Final = "base"
"""The name of the base's worktree in its folder; a bisection has one for each commit."""


def remove_leftovers() -> list[str]:
    """Remove what killed processes of this user have left; say in words what that was."""
    removed = []
    for folder, notes in scratch.abandoned():
        repository = notes.get(REPOSITORY)
        if repository is not None:
            for tree in {BASE, *_folders_in(folder)}:
                remove(Path(repository), folder / tree)
        scratch.remove(folder)
        what = f" and the worktrees of {repository!r} in it" if repository is not None else ""
        removed.append(f"removed {str(folder)!r}{what}: the process that made it was killed")
    return removed


def _folders_in(folder: Path) -> list[str]:
    with suppress(OSError):
        return [one.name for one in folder.iterdir() if one.is_dir() and not one.is_symlink()]
    return []
