"""Host time by part of a call under each mode, interleaved: a part is a module or an operator."""

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from ..devices import Device
from ..experiment.plan import Plan
from ..workloads.steps import Step
from .interleave import timed_rounds, warm_up
from .meters import StepTime
from .visits import VisitedArm

OwnTimes = dict[str, tuple[float, ...]]
"""By part, the nanoseconds of its own in a call, one a round."""


class SplittingClock(Protocol):
    """Splits the host time of a step's calls into parts that add up to it."""

    def installed(self) -> AbstractContextManager[None]:
        """Split what runs inside: one visit to an arm."""

    def split(self, step: Step) -> Step:
        """Return the step, the calls of which are split."""

    def taken(self) -> dict[str, int]:
        """Return the ns of the last visit, by part."""


class _Split:
    """An arm whose visits note what each part took, per call."""

    def __init__(self, arm: VisitedArm, clock: SplittingClock) -> None:
        self._arm, self._clock = arm, clock
        self._calls = 0
        self.visits: list[dict[str, float]] = []
        split = clock.split(arm.step)

        def step() -> object:
            self._calls += 1
            return split()

        self.step: Step = step

    @contextmanager
    def held(self) -> Iterator[None]:
        self._calls = 0
        with self._arm.held(), self._clock.installed():
            yield
        taken = self._clock.taken()
        self.visits.append({part: ns / self._calls for part, ns in taken.items()})


def host_times(
    arms: Sequence[VisitedArm], clock: SplittingClock, device: Device, plan: Plan
) -> dict[str, OwnTimes]:
    """Return the host time of each part of a call under each mode, by rounds that are pairs."""
    rng, steps = random.Random(plan.seed), StepTime.of(device)
    split = [_Split(arm, clock) for arm in arms]
    warmth = warm_up(split, steps, plan=plan, rng=rng)
    for one in split:
        one.visits.clear()
    timed_rounds(split, steps, plan=plan, rng=rng, warmth=warmth)
    return {
        arm.cell.grad_mode: {
            part: tuple(visit.get(part, 0.0) for visit in one.visits)
            for part in dict.fromkeys(part for visit in one.visits for part in visit)
        }
        for arm, one in zip(arms, split, strict=True)
    }
