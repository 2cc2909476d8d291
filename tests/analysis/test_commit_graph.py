"""The search among commits: few looks, the right commit, merges, what cannot be measured."""

import math
import random

import pytest
from histories import GOOD, commit, grown, line

from gradbench.analysis.commit_graph import Graph, Side


def looks(graph: Graph, bad: str, side_of) -> tuple[list[str], "object"]:
    """Return the commits that a search looks at, and what it ends with."""
    sides = {GOOD: Side.GOOD, bad: Side.BAD}
    asked = []
    while (found := graph.first_bad(bad, sides)).next is not None:
        assert found.next not in sides
        asked.append(found.next)
        sides[found.next] = side_of(found.next)
    return asked, found


@pytest.mark.parametrize("length", [1, 2, 3, 8, 100, 1000])
def test_the_first_bad_commit_of_a_line_is_found_in_a_logarithm_of_looks(length):
    graph = line(length)
    for first in {0, length // 3, length - 1}:
        asked, found = looks(
            graph,
            f"c{length - 1}",
            lambda one, first=first: Side.BAD if int(one[1:]) >= first else Side.GOOD,
        )
        assert found.suspects == (f"c{first}",)
        assert len(asked) <= math.ceil(math.log2(length)) if length > 1 else not asked


def test_what_is_said_of_the_steps_left_is_what_it_takes():
    graph = line(100)
    found = graph.search("c99", {"c99": Side.BAD})
    assert (found.untested, found.steps) == (99, 6)
    asked, _ = looks(graph, "c99", lambda one: Side.BAD)
    assert len(asked) in (6, 7)


def test_commits_that_cannot_be_measured_leave_a_range_and_are_stepped_over():
    graph = line(64)
    broken = set(range(28, 40))
    asked, found = looks(
        graph,
        "c63",
        lambda one: (
            Side.UNKNOWN
            if int(one[1:]) in broken
            else Side.BAD
            if int(one[1:]) >= 35
            else Side.GOOD
        ),
    )
    assert found.suspects == tuple(f"c{number}" for number in range(28, 41))
    assert found.bad == "c40"
    assert len(set(asked) & {f"c{number}" for number in broken}) == len(broken)
    apart, found = looks(
        graph,
        "c63",
        lambda one: (
            Side.UNKNOWN
            if int(one[1:]) in broken
            else Side.BAD
            if int(one[1:]) >= 50
            else Side.GOOD
        ),
    )
    assert found.suspects == ("c50",)
    assert len(set(apart) & {f"c{number}" for number in broken}) <= len(broken) / 2


def diamond() -> Graph:
    """A fork and a merge: good - a - b - m - z, and good - s - t - m."""
    return Graph(
        [
            commit("a", GOOD),
            commit("b", "a"),
            commit("s", GOOD),
            commit("t", "s"),
            commit("m", "b", "t"),
            commit("z", "m"),
        ],
        [commit(GOOD)],
    )


@pytest.mark.parametrize(
    ("bad", "first"),
    [({"t", "m", "z"}, "t"), ({"b", "m", "z"}, "b"), ({"m", "z"}, "m"), ({"z"}, "z")],
)
def test_a_search_goes_into_what_a_merge_brings_in(bad, first):
    _, found = looks(diamond(), "z", lambda one: Side.BAD if one in bad else Side.GOOD)
    assert found.suspects == (first,)
    assert not diamond().is_linear


def test_a_branch_that_was_always_so_is_not_what_changed_it_but_its_merge_is():
    """The line s, t left before the good commit, and is as the bad one is since ever."""
    graph = Graph(
        [commit("s", "old"), commit("t", "s"), commit("a", GOOD), commit("m", "a", "t")],
        [commit(GOOD, "old"), commit("old")],
    )
    bad = {"old", "s", "t", "m"}
    _, found = looks(graph, "m", lambda one: Side.BAD if one in bad else Side.GOOD)
    assert (found.suspects, found.inherited) == (("m",), True)
    bad.add("z")
    graph = Graph([*(graph.by_id[one] for one in graph.ids), commit("z", "m")],
                  [commit(GOOD, "old"), commit("old")])  # fmt: skip
    _, found = looks(graph, "z", lambda one: Side.BAD if one in bad else Side.GOOD)
    assert found.suspects == ("m",)


def test_in_any_history_a_commit_by_which_it_went_bad_is_found():
    rng = random.Random(0)
    for _ in range(300):
        graph = grown(rng, rng.randrange(2, 40))
        culprit = rng.choice(graph.ids)
        last = graph.ids[-1]
        bad = {one for one in graph.ids if culprit in graph.search(one, {}).suspects}
        assert last in bad
        asked, found = looks(
            graph, last, lambda one, bad=bad: Side.BAD if one in bad else Side.GOOD
        )
        assert found.suspects == (culprit,)
        assert len(asked) <= 2 * math.log2(len(graph.ids) + 1) + 3
