"""Makes the replicates of a comparison on equal machines of a Ray cluster, all of them at once."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Final

from ..comparison.budget import Budget
from ..comparison.replicate_results import Results
from ..comparison.replication import unlike
from ..errors import BadModel
from ..experiment.matrix import Cell
from . import replicate_process
from .dispatch import Dispatcher, GivenUp
from .equal_machines import EqualMachines, Facts
from .jobs import ReplicateJob, ReplicateResult, ReplicateSetup
from .limits import longest_replicate_s
from .ray_fleet import RayFleet

LOOK: Final = "look and replicate"
REPLICATE: Final = "replicate"


class ReplicatesOnRay:
    """Makes replicates, as many at once as the group has machines, each on one machine wholly."""

    def __init__(self, fleet: RayFleet, group: EqualMachines, setup: ReplicateSetup) -> None:
        self._fleet, self._group, self._setup = fleet, group, setup
        self.results = Results()
        self.facts: dict[str, Mapping[str, str]] = {}
        self.made_on: dict[str, Facts] = {}
        """The machines that have made replicates, each with what decides its times."""
        self._number = 0
        self._begun_s: dict[int, float] = {}

    @property
    def machines(self) -> int:
        """How many machines are blocks of the statistics; 0 where it is over replicates."""
        return self._group.count if self._group.is_spread else 0

    def examine(self, cells: Sequence[Cell], budget: Budget) -> None:
        """Do nothing: each machine looks at the cells before its first replicate of them."""

    def unlike(self) -> str:
        """Return in words where the sides' torch or Python differ, or ``""``."""
        return unlike(self.facts)

    def rounds(self, wanted: Callable[[], Sequence[Cell]], budget: Budget) -> Iterator[str]:
        """Make replicates of what is wanted; say after each on which machine it was made."""
        self._fleet.measure_with(
            replicate_process.serve,
            self._setup,
            longest_s=partial(longest_replicate_s, self._setup),
        )
        dispatcher = Dispatcher[ReplicateJob](
            self._group,
            resource_of=lambda _job: self._group.resource,
            wait_s=self._setup.wait_s,
            say=self._note_begin,
        )
        self._ask(dispatcher, wanted, budget)
        with closing(dispatcher.results((), over=lambda: budget.is_over)) as outcomes:
            for job, outcome in outcomes:
                if isinstance(outcome, GivenUp):
                    self._give_up(dispatcher, job, outcome)
                else:
                    assert isinstance(outcome, ReplicateResult)
                    self._add(job, outcome, budget)
                    yield f" on {outcome.host}"
                if not wanted():
                    return
                self._ask(dispatcher, wanted, budget)

    def _ask(
        self,
        dispatcher: Dispatcher[ReplicateJob],
        wanted: Callable[[], Sequence[Cell]],
        budget: Budget,
    ) -> None:
        """Ask for replicates until every machine of the group has one to make."""
        at_once = max(1, len(self._group.machines()))
        while dispatcher.outstanding < at_once and (cells := wanted()):
            if not budget.allows(REPLICATE):
                return
            dispatcher.add([self._job(cells)])

    def _job(self, cells: Sequence[Cell]) -> ReplicateJob:
        self._number += 1
        return ReplicateJob(number=self._number, cells=tuple(cells), apart=dict(self.results.apart))

    def _note_begin(self, job: ReplicateJob, _host: str, _ended: int) -> None:
        self._begun_s[job.number] = time.monotonic()

    def _add(self, job: ReplicateJob, outcome: ReplicateResult, budget: Budget) -> None:
        """Add what a machine found to what is known."""
        if outcome.refused:
            raise BadModel(outcome.refused)
        kind = LOOK if outcome.looked else REPLICATE
        budget.took(kind, time.monotonic() - self._begun_s.get(job.number, math.inf))
        if outcome.host not in self.made_on:
            self.made_on[outcome.host] = self._group.kind_of(outcome.host) or {}
        self.facts.update(outcome.sides)
        self.results.add(outcome.results, machine=outcome.host)

    def _give_up(
        self, dispatcher: Dispatcher[ReplicateJob], job: ReplicateJob, why: GivenUp
    ) -> None:
        """Try each cell by itself where one of them may have ended the processes of all."""
        if why.cause == "crashed" and len(job.cells) > 1:
            dispatcher.add([self._job([cell]) for cell in job.cells])
        else:
            self.results.given_up.update(dict.fromkeys(job.cells, why.reason))
