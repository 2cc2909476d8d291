"""The commits between a good and a bad one as a graph, and the binary search in it. Pure.

The search is that of ``git bisect``: of the commits that the bad one holds and no good one does,
look at that one by which the most are ruled out, whatever comes of it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from ..records.bisection import Commit


class Side(Enum):
    """What a look at a commit came to."""

    GOOD = auto()
    BAD = auto()
    UNKNOWN = auto()  # it cannot be measured, or its time is not clear


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How far a search has come.

    The first bad commit is one of ``suspects``, oldest first; ``bad``, the last of them, is known
    to be bad. ``next`` is the one to look at, None where no look can tell more.
    """

    bad: str
    suspects: tuple[str, ...]
    next: str | None
    untested: int  # suspects that nobody has looked at
    inherited: bool = False  # a parent of it is as bad, on a line that was so already

    @property
    def steps(self) -> int:
        """How many more looks it takes, about."""
        return (self.untested + 1).bit_length() - 1 if self.next is not None else 0


class Graph:
    """A range of commits, parents before children, with what each holds."""

    def __init__(self, commits: Sequence[Commit], border: Iterable[Commit] = ()) -> None:
        self.ids = tuple(commit.id for commit in commits)
        self.by_id = {commit.id: commit for commit in (*border, *commits)}
        self._place = {one: place for place, one in enumerate(self.ids)}
        self._found: dict[tuple[str, frozenset[tuple[str, Side]]], Search] = {}
        self._held: list[int] = []  # by place: the places of what a commit holds, as bits
        for place, commit in enumerate(commits):
            held = 1 << place
            for parent in commit.parents:
                if parent in self._place:
                    held |= self._held[self._place[parent]]
            self._held.append(held)

    @property
    def is_linear(self) -> bool:
        """Whether no commit of the range has two parents in question."""
        return all(held == (1 << place + 1) - 1 for place, held in enumerate(self._held))

    def __contains__(self, commit: str) -> bool:
        return commit in self._place

    def parents(self, commit: str) -> tuple[str, ...]:
        """Return a commit's parents, in the range or just before it."""
        return self.by_id[commit].parents

    def before(self, found: Search) -> tuple[str, ...]:
        """Return the parents of a search's suspects that are no suspects themselves."""
        parents = (parent for one in found.suspects for parent in self.parents(one))
        return tuple(one for one in dict.fromkeys(parents) if one not in found.suspects)

    def first_bad(self, bad: str, sides: Mapping[str, Side]) -> Search:
        """Return how far the search has come, the parents of what it finds looked at, too.

        A branch that left before the good commit may be as the bad one is, and always have been:
        then what is found on it has bad parents alone, and the search goes on without it, up to
        the merge. ``sides`` are of commits just before the range, too.
        """
        asked = (bad, frozenset(sides.items()))  # most cells are alike
        if asked not in self._found:
            self._found[asked] = self._first_bad(bad, sides)
        return self._found[asked]

    def _first_bad(self, bad: str, sides: Mapping[str, Side]) -> Search:
        without = dict(sides)
        while True:
            found = self.search(bad, without)
            if found.next is not None or len(found.suspects) > 1:
                return found
            parents = self.parents(found.bad)
            unseen = [parent for parent in parents if parent not in sides]
            if unseen:
                return replace(found, next=unseen[0], untested=len(unseen))
            of_parents = {sides[parent] for parent in parents}
            if of_parents != {Side.BAD} or found.bad == bad:
                return replace(found, inherited=Side.BAD in of_parents)
            without[found.bad] = Side.GOOD

    def search(self, bad: str, sides: Mapping[str, Side]) -> Search:
        """Return how far the search for the first bad commit in ``bad``'s history has come."""
        suspected = self._held[self._place[bad]]
        looked_at = {
            commit: side
            for commit, side in sides.items()
            if commit in self._place and suspected >> self._place[commit] & 1
        }
        for commit, side in looked_at.items():
            if side is Side.GOOD and commit != bad:
                suspected &= ~self._held[self._place[commit]]
        while closer := self._closer(bad, suspected, looked_at):
            bad = closer
            suspected &= self._held[self._place[bad]]
        suspects = tuple(self._named(suspected))
        untested = [one for one in suspects if one not in looked_at and one != bad]
        skipped = len(suspects) - len(untested) - 1
        return Search(
            bad=bad,
            suspects=suspects,
            next=self._halving(untested, suspected, skipped),
            untested=len(untested),
        )

    def _closer(self, bad: str, suspected: int, sides: Mapping[str, Side]) -> str | None:
        """Return the bad suspect that holds the fewest others."""
        others = [
            commit
            for commit, side in sides.items()
            if side is Side.BAD and commit != bad and suspected >> self._place[commit] & 1
        ]
        if not others:
            return None
        return min(others, key=lambda commit: self._weight(commit, suspected))

    def _halving(self, untested: Sequence[str], suspected: int, skipped: int) -> str | None:
        """Return the commit that rules out the most.

        Each one that could not be measured makes the next step aside twice as far, for its
        neighbours can often be measured no more than it.
        """
        if not untested:
            return None
        total = suspected.bit_count()

        def ruled_out(commit: str) -> int:
            weight = self._weight(commit, suspected)
            return min(weight, total - weight)

        best_first = sorted(untested, key=ruled_out, reverse=True)
        return best_first[min(1 << skipped, len(untested)) - 1]

    def _weight(self, commit: str, suspected: int) -> int:
        return (self._held[self._place[commit]] & suspected).bit_count()

    def _named(self, places: int) -> Iterator[str]:
        return (one for place, one in enumerate(self.ids) if places >> place & 1)
