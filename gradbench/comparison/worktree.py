"""A revision of the user's repository in a folder of its own, for as long as it is needed."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree

from ..errors import GradbenchError


class BadRevision(GradbenchError):
    """A folder that is no git repository, or a revision that it does not have."""


def repository(folder: Path) -> Path:
    """Return the root of the git repository that a folder lies in; raise `BadRevision`."""
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel"))
    except BadRevision as error:
        raise BadRevision(
            f"{str(folder)!r} is in no git repository: compare needs one to take --base from "
            f"({error})"
        ) from error


def commit(root: Path, revision: str) -> str:
    """Return the full hash of a revision; raise `BadRevision` where there is none of that name."""
    try:
        return _git(
            root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
        )
    except BadRevision as error:
        raise BadRevision(
            f"no revision {revision!r} in {str(root)!r}: name a commit, a branch or a tag "
            "(a shallow clone has only its newest commits: git fetch --unshallow)"
        ) from error


def is_dirty(root: Path) -> bool:
    """Return whether the working tree differs from its commit."""
    return bool(_git(root, "status", "--porcelain"))


@contextmanager
def checked_out(root: Path, revision: str, folder: Path) -> Iterator[Path]:
    """Check a revision out into a folder that is not there yet; remove it in the end.

    Submodules stay empty. Raise `BadRevision` in git's words where git cannot.
    """
    found = commit(root, revision)
    try:  # from here on: interrupted while it adds, git leaves a worktree that it has locked
        _git(root, "worktree", "add", "--quiet", "--detach", "--force", str(folder), found)
        yield folder
    finally:
        # what is half made, "remove" may not know; "prune" forgets what is gone and not locked
        for command in (("remove", "--force", "--force", str(folder)), ("unlock", str(folder))):
            with suppress(BadRevision):
                _git(root, "worktree", *command)
        rmtree(folder, ignore_errors=True)
        with suppress(BadRevision):
            _git(root, "worktree", "prune")


def _git(folder: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise BadRevision(f"git cannot be run: {error.strerror}") from error
    if answer.returncode:
        said = (answer.stderr.strip().splitlines() or [f"git {arguments[0]} failed"])[-1]
        raise BadRevision(said)
    return answer.stdout.strip()
