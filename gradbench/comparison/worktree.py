"""A revision of the user's repository in a folder of its own, for as long as it is needed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree

from ..git import GitError, git, paths


class BadRevision(GitError):
    """A folder that is no git repository, or a revision that it does not have."""


def repository(folder: Path) -> Path:
    """Return the root of the git repository that a folder lies in; raise `BadRevision`."""
    try:
        return paths("rev-parse", "--show-toplevel", folder=folder)[0]
    except GitError as error:
        raise BadRevision(
            f"{str(folder)!r} is in no git repository: compare needs one to take versions from "
            f"({error})"
        ) from error


def commit(root: Path, revision: str) -> str:
    """Return the full hash of a revision; raise `BadRevision` where there is none of that name."""
    try:
        asked = ("--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        return git("rev-parse", *asked, folder=root)
    except GitError as error:
        raise BadRevision(
            f"no revision {revision!r} in {str(root)!r}: name a commit, a branch or a tag "
            "(a shallow clone has only its newest commits: git fetch --unshallow)"
        ) from error


def is_dirty(root: Path, *, outputs: Iterable[Path] = ()) -> bool:
    """Return whether the working tree is known to differ from its commit, but for ``outputs``.

    Those are folders that gradbench writes. To look through a large tree on a slow drive takes
    longer than git is given.
    """
    top = root.resolve()
    left_out = (
        f":(top,exclude,literal){place.relative_to(top).as_posix()}"
        for place in (one.resolve() for one in outputs)
        if top in place.parents
    )
    try:
        return bool(git("status", "--porcelain", "--", ":/", *left_out, folder=root))
    except GitError:
        return False


def is_ignored(root: Path, folder: Path) -> bool:
    """Return whether git ignores a folder of a repository, and keeps nothing in it."""
    with suppress(GitError):  # its answer where it does not ignore it
        git("check-ignore", "--quiet", "--", str(folder), folder=root)
        return not git("ls-files", "--", str(folder), folder=root)
    return False


def is_kept(root: Path, path: Path) -> bool:
    """Return whether git keeps a file at this path, or at its end, in any folder."""
    try:
        return bool(git("ls-files", "--", f":(top,glob)**/{path.as_posix()}", folder=root))
    except GitError:
        return False


def hint_at_submodules(tree: Path, build: str) -> str:
    """Return in words how a revision's submodules are had, where it has any; else ``""``."""
    if build or not (tree / ".gitmodules").is_file():
        return ""
    return (
        "submodules stay empty in a revision that is checked out: "
        "--build 'git submodule update --init' fills them"
    )


@contextmanager
def checked_out(root: Path, revision: str, folder: Path) -> Iterator[Path]:
    """Check a revision out into a folder that is not there yet; remove it in the end.

    Submodules stay empty. Raise `BadRevision` for a revision that is not there, `GitError` in git's
    words where git cannot.
    """
    revision_id = commit(root, revision)
    try:  # from here on: interrupted while it adds, git leaves a worktree that it has locked
        asked = ("--quiet", "--detach", "--force", str(folder), revision_id)
        git("worktree", "add", *asked, folder=root, limit_s=None)  # a large tree takes its time
        yield folder
    finally:
        remove(root, folder)


def remove(root: Path, folder: Path) -> None:
    """Remove a worktree, in whatever state it is, and let its repository forget it.

    It alone: to "prune" would forget those of the user, too, whose drive is just not there.
    """
    asked = ("worktree", "remove", "--force", "--force", str(folder))
    with suppress(GitError):  # what is half made it may not know
        git(*asked, folder=root, limit_s=None)
    rmtree(folder, ignore_errors=True)
    with suppress(GitError):  # of one whose folder is gone it removes what the repository has
        git(*asked, folder=root, limit_s=None)
