"""How hard versions are compared: what counts as a change, replicates, time for all of it."""

import math
from dataclasses import dataclass, field
from typing import Final

from ..errors import Impossible
from ..experiment.axis import MOST
from ..experiment.plan import MOST_S
from ..plurals import counted
from ..stats import table_rule
from ..stats.estimates import MIN_DETECTABLE_EFFECT

MOST_PROCESSES: Final = 1_000
"""Of each cell at first: as many take hours for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replication:
    """What a replicate spends on a cell, and how."""

    warm_up_s: float = 0.05
    limit_s: float = 120.0  # for any one answer about a cell; then the process is killed
    one_process: bool = True  # where that can be
    share: bool = True  # weights and batch, where they are equal
    cell_s: float = 0.4  # of CPU time, of both sides' rounds in one process
    least_rounds: int = 8
    pair_s: float = 0.4  # of both sides' turns in a pair: fewer of them where steps are long
    slice_s: float = 0.003  # of one side's turn in a pair
    turns: int = 24  # of each side in a pair, at most
    least_turns: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.limit_s <= MOST_S:
            raise Impossible(
                f"the limit is a number of seconds above 0, {MOST_S:g} at most, "
                f"not {self.limit_s!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a comparison may take, and the smallest change that counts in it."""

    threshold: float = table_rule.THRESHOLD
    processes: int = table_rule.FIRST  # of each cell, and as many fresh ones or more to confirm
    budget_s: float = math.inf
    instructions: bool = False  # count them under valgrind, too
    seed: int = 0
    replication: Replication = field(default_factory=Replication)

    def __post_init__(self) -> None:
        if self.processes < table_rule.FEWEST:
            raise Impossible(
                f"{counted(self.processes, 'process')} cannot outvote a disturbed one: "
                f"{table_rule.FEWEST} at least"
            )
        if self.processes > MOST_PROCESSES:
            raise Impossible(f"{counted(MOST_PROCESSES, 'process')} of a cell are the most")
        if not 0 <= self.seed <= MOST:  # as a bisection is read that is gone on with
            raise Impossible("the seed must be a whole number from 0 up, of 64 bits at most")
        if not MIN_DETECTABLE_EFFECT <= self.threshold < 1:
            raise Impossible(
                f"the threshold is a share of {MIN_DETECTABLE_EFFECT} or more, as 0.03, not "
                f"{self.threshold!r}"
            )
        if not self.budget_s > 0:
            raise Impossible(f"the budget is a number of seconds above 0, not {self.budget_s!r}")
