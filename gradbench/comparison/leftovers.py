"""What processes that were killed have left behind: temporary folders, and worktrees in them."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from .. import scratch
from ..git import GitError
from .worktree import remove

REPOSITORY: Final = "repository"
"""The note of a folder that says where its worktree belongs."""
BASE: Final = "base"
"""The worktree's name in its folder."""


def remove_leftovers() -> list[str]:
    """Remove what killed processes of this user have left; say in words what that was."""
    removed = []
    for folder, notes in scratch.abandoned():
        repository = notes.get(REPOSITORY)
        if repository is not None:
            with suppress(GitError):
                remove(Path(repository), folder / BASE)
        scratch.remove(folder)
        what = f" and the worktree of {repository!r} in it" if repository is not None else ""
        removed.append(f"removed {str(folder)!r}{what}: the process that made it was killed")
    return removed
