"""How hard versions are compared: what counts as a change, replicates, time for all of it."""

import math
from dataclasses import dataclass, field
from typing import Final

from ..errors import BadSetting
from ..experiment.axis import MOST
from ..gate.rules import Rules
from ..plurals import counted
from ..stats import table_rule
from ..stats.estimates import MIN_DETECTABLE_EFFECT
from .replicate_effort import Replication

MOST_PROCESSES: Final = 1_000
"""Of each cell at first: as many take hours for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a comparison may take, and the smallest change that counts in it."""

    threshold: float = table_rule.THRESHOLD
    processes: int = table_rule.FIRST  # of each cell, and as many fresh ones or more to confirm
    budget_s: float = math.inf
    instructions: bool = False  # count them under valgrind, too
    seed: int = 0
    rules: Rules = field(default_factory=Rules)  # a gate's, by which bytes are judged
    replication: Replication = field(default_factory=Replication)

    def __post_init__(self) -> None:
        if self.processes < table_rule.FEWEST:
            raise BadSetting(
                "processes",
                f"is {table_rule.FEWEST} at least: {counted(self.processes, 'process')} cannot "
                "outvote a disturbed one",
            )
        if self.processes > MOST_PROCESSES:
            raise BadSetting("processes", f"is {MOST_PROCESSES:,} of a cell at most")
        if not 0 <= self.seed <= MOST:  # as a bisection is read that is gone on with
            raise BadSetting("seed", "must be a whole number from 0 up, of 64 bits at most")
        if not MIN_DETECTABLE_EFFECT <= self.threshold < 1:
            raise BadSetting(
                "threshold",
                f"is a share of {MIN_DETECTABLE_EFFECT} or more, as 0.03, not {self.threshold!r}",
            )
        if not self.budget_s > 0:
            words = f"is a number of seconds above 0, not {self.budget_s!r}"
            raise BadSetting("budget_s", words)
