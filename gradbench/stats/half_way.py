"""The rule by which a commit's time is that of before a change or of after it. Pure.

A commit is beyond the change when its ratio to the good commit is nearer to the bad one's than to
1, on a scale of logarithms. It is asked for by Student's t, at a level that holds for all commits
that a bisection asks about.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .table_rule import ALPHA, FEWEST, TableRule, p_value


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfWayRule:
    """Says on which side of half a change the replicates of a commit lie.

    ``change_log`` is the log of the whole change. With ``tests`` commits and cells asked about,
    each tested at each look at `ALPHA` / (looks x tests), the chance that any of them is put on
    the wrong side is at most `ALPHA` (Bonferroni), where replicates are near to normal.
    """

    change_log: float
    tests: int
    first: int  # replicates of a cell in the table

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of replicates at which a commit is tested; a large change is clear at once."""
        return tuple(sorted({FEWEST, *TableRule(first=self.first).looks}))

    @property
    def level(self) -> float:
        """The level of one test at one look."""
        return ALPHA / (len(self.looks) * max(self.tests, 1))

    def is_beyond(self, logs: Sequence[float]) -> bool | None:
        """Return whether the change is in these replicates, or None where it is not clear."""
        half = self.change_log / 2
        for look in self.looks:
            if look <= len(logs):
                apart = np.asarray(logs[:look], dtype=np.float64) - half
                if p_value(apart.tolist()) <= self.level:
                    return math.copysign(1.0, float(apart.mean())) == math.copysign(1.0, half)
        return None

    def more(self, logs: Sequence[float]) -> bool:
        """Return whether another replicate is needed, and may help."""
        return self.is_beyond(logs) is None and len(logs) < self.looks[-1]


def planned_tests(commits: int, cells: int) -> int:
    """Return how many tests a bisection of times takes: a look at each of its steps and cells."""
    return (commits.bit_length() + 1) * cells
