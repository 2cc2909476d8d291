"""Commits and histories that bisections are tested on."""

import random
from itertools import pairwise

from gradbench.analysis.commit_graph import Graph
from gradbench.records.bisection import Commit

GOOD = "good"


def commit(name: str, *parents: str) -> Commit:
    return Commit(
        id=name,
        parents=parents,
        author="Ann",
        authored_at="2026-01-02T03:04:05+00:00",
        subject=f"the commit {name}",
    )


def line(length: int) -> Graph:
    names = [GOOD, *(f"c{number}" for number in range(length))]
    commits = [commit(one, before) for before, one in pairwise(names)]
    return Graph(commits, [commit(GOOD)])


def grown(rng: random.Random, length: int) -> Graph:
    """Return a history with branches and merges, all of it reachable from its last commit."""
    commits, heads = [commit("c0", GOOD)], ["c0"]
    for number in range(1, length):
        name = f"c{number}"
        if len(heads) > 1 and (rng.random() < 0.3 or number == length - 1):
            merged = heads if number == length - 1 else rng.sample(heads, 2)
            commits.append(commit(name, *merged))
            heads = [one for one in heads if one not in merged]
        else:
            parent = rng.choice(heads)
            commits.append(commit(name, parent))
            if rng.random() < 0.75:
                heads.remove(parent)
        heads.append(name)
    inner = {parent for one in commits for parent in one.parents}
    left = [one.id for one in commits if one.id not in inner]
    if len(left) > 1:
        commits.append(commit("last", *left))
    return Graph(commits, [commit(GOOD)])
