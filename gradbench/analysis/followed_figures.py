"""Follows a figure from the bad commit down to the good one's value, change by change. Pure."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .commit_graph import Graph, Search, Side

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Followed:
    """What a figure's changes came to so far.

    ``found`` are searches that have ended, each with those of its suspects' parents that were
    measured; ``searches`` go on.
    """

    found: tuple[tuple[Search, Sequence[str]], ...]
    searches: tuple[Search, ...]


def followed(
    graph: Graph,
    values: Mapping[str, V],
    *,
    good: str,
    bad: str,
    unmeasured: Iterable[str],
    alike: Callable[[V, V], bool] = operator.eq,
) -> Followed:
    """Follow a figure, of which values by commit are known, from ``bad`` to the value of ``good``.

    ``unmeasured`` are commits of which it is known that there is no value.
    """
    found: list[tuple[Search, Sequence[str]]] = []
    searches: list[Search] = []
    targets, seen = [bad], set[str]()
    without_value = dict.fromkeys(unmeasured, Side.UNKNOWN)
    while targets:
        target = targets.pop()
        seen.add(target)
        sides = {
            commit: Side.BAD if alike(value, values[target]) else Side.GOOD
            for commit, value in values.items()
        }
        search = graph.first_bad(target, without_value | sides)
        if search.next is not None:
            searches.append(search)
            continue
        before = [one for one in graph.before(search) if one in values]
        found.append((search, before))
        if not search.inherited:
            targets += [
                one
                for one in before
                if one in graph and one not in seen and not alike(values[one], values[good])
            ]
    return Followed(tuple(found), tuple(searches))
