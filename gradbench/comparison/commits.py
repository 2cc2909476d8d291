"""The commits of a range as git has them, and the files that one changes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..errors import Impossible
from ..git import GitError, git
from ..records.bisection import MOST_COMMITS, Commit
from .worktree import commit as resolved

LIMIT_S: Final = 120.0
"""For what looks at a whole history."""
_FIELDS: Final = ("%H", "%P", "%an", "%aI", "%s")
_FORMAT: Final = (
    *("--no-show-signature", "--no-notes", "--encoding=UTF-8", "-z"),
    f"--format=tformat:{'%x00'.join(_FIELDS)}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The commits of GOOD..BAD, parents before children, and those that they begin from.

    The good commit is the first of ``border``; the bad one is the last of ``commits``.
    """

    good: str
    bad: str
    commits: tuple[Commit, ...]
    border: tuple[Commit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedFile:
    """A file that a commit changes, and how many lines; None for a file that is no text."""

    path: str
    added: int | None
    deleted: int | None

    @property
    def words(self) -> str:
        """How much of it is changed: ``+3 -1``."""
        if self.added is None or self.deleted is None:
            return "binary"
        return f"+{self.added:,} -{self.deleted:,}"


def ends_of(asked: str) -> tuple[str, str]:
    """Return the revisions that ``GOOD..BAD`` names, HEAD where one is left out, as in git."""
    good, dots, bad = asked.partition("..")
    if not dots or bad.startswith(".") or not (good or bad):
        raise Impossible(
            f"--bisect {asked!r} is not GOOD..BAD, two revisions with two dots between"
        )
    return good or "HEAD", bad or "HEAD"


def between(root: Path, asked: str, *, first_parent: bool, paths: Sequence[str] = ()) -> Range:
    """Return the commits of a range, of these paths only if any are given.

    Raise `Impossible` where there are none, `BadRevision` for a revision that is none.
    """
    good, bad = (resolved(root, revision) for revision in ends_of(asked))
    _check_ends(root, asked, good, bad)
    arguments = ["--first-parent"] if first_parent else []
    span = f"{good}..{bad}"
    listing = _log(root, "--topo-order", "--reverse", "--parents", *arguments, span, "--",
                   *paths)  # fmt: skip
    commits = [
        replace(commit, parents=commit.parents[:1]) if first_parent else commit
        for commit in listing
    ]
    if not commits:
        raise Impossible(f"no commit of {asked} touches {', '.join(paths)}: bisect without paths")
    if len(commits) > MOST_COMMITS:
        raise Impossible(
            f"{asked} has {len(commits):,} commits, and {MOST_COMMITS:,} are the most: "
            "begin later, or take --first-parent"
        )
    known = {commit.id for commit in commits}
    if bad not in known:  # it touches none of the paths: it stands for the newest that do
        (last,) = _log(root, "--no-walk", bad)
        inner = {parent for commit in commits for parent in commit.parents}
        heads = tuple(commit.id for commit in commits if commit.id not in inner)
        commits.append(replace(last, parents=heads))
        known.add(bad)
    outside = dict.fromkeys(p for commit in commits for p in commit.parents if p not in known)
    if first_parent and not paths and list(outside) != [good]:
        raise Impossible(
            f"{asked}: {good[:10]} is not among the first parents of {bad[:10]}, which leave its "
            f"history at {next(iter(outside), bad)[:10]}: bisect without --first-parent"
        )
    border = [good, *(one for one in outside if one != good)]
    by_id = {commit.id: commit for commit in _log(root, "--no-walk=unsorted", *border)}
    return Range(
        good=good,
        bad=bad,
        commits=tuple(commits),
        border=tuple(by_id[one] for one in border),
    )


def from_root(inside: Path, paths: Sequence[str]) -> tuple[str, ...]:
    """Return paths as the repository's root has them, of a user who stands ``inside`` it.

    What begins with a colon is a pathspec of git's, and stays as it is.
    """
    return tuple(path if path.startswith(":") else str(inside / path) for path in paths)


def changed_files(root: Path, commit: Commit) -> list[ChangedFile]:
    """Return the files that a commit changes against its first parent."""
    against = commit.parents[0] if commit.parents else _empty_tree(root)
    asked = ("-r", "-z", "--numstat", "--no-renames", "--no-ext-diff", against, commit.id)
    rows = git("diff-tree", *asked, folder=root, limit_s=LIMIT_S).split("\0")
    return [_changed_file(row) for row in rows if row]


def _changed_file(row: str) -> ChangedFile:
    added, deleted, path = row.split("\t", 2)
    numbers = [int(number) if number.isdecimal() else None for number in (added, deleted)]
    return ChangedFile(path=path, added=numbers[0], deleted=numbers[1])


def _empty_tree(root: Path) -> str:
    return git("hash-object", "-t", "tree", "/dev/null", folder=root)


def _check_ends(root: Path, asked: str, good: str, bad: str) -> None:
    if good == bad:
        raise Impossible(f"both ends of {asked} are the commit {good[:10]}: nothing lies between")
    try:
        fork = git("merge-base", good, bad, folder=root, limit_s=LIMIT_S)
    except GitError:
        raise Impossible(f"the ends of {asked} have no commit in common") from None
    if fork != good:
        remedy = (
            "give the older one first"
            if fork == bad
            else f"they part at {fork[:10]}: give {fork[:10]}..{bad[:10]}"
        )
        raise Impossible(f"{good[:10]} is no ancestor of {bad[:10]}: {remedy}")


def _log(root: Path, *asked: str) -> list[Commit]:
    text = git("log", *_FORMAT, *asked, folder=root, limit_s=LIMIT_S)
    return list(_commits(text.split("\0")))


def _commits(fields: Sequence[str]) -> Iterator[Commit]:
    rows: Iterable[tuple[str, ...]] = zip(*(iter(fields),) * len(_FIELDS), strict=False)
    for name, parents, author, authored_at, subject in rows:
        yield Commit(
            id=name.strip(),
            parents=tuple(parents.split()),
            author=author,
            authored_at=authored_at,
            subject=subject,
        )
