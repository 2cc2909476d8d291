"""Host time by module under each mode, interleaved: which module costs more where a graph is built.

A module's forward is wrapped on the instance, and no hook is set: torch leaves its fused paths
where it sees one. Two readings of the clock a module and call are in every mode's times alike.
"""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..devices import Device
from ..experiment.plan import Plan
from ..records.explanation import OUTSIDE
from ..workloads.steps import Step
from .interleave import Interleaving, warm_up
from .meters import StepTime
from .visits import VisitedArm

OwnTimes = dict[str, tuple[float, ...]]
"""By module, the nanoseconds of its own forward, one a round."""


class ModuleClock:
    """Splits a call's host time by module, that of modules inside one left out of its own."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._wrapped = [
            (module, self._timed(path, module.forward))
            for path, module in modules.items()
            if "forward" not in vars(module)  # what stands there already is its owner's
        ]
        self._own: dict[str, int] = defaultdict(int)
        self._inside = [0]  # ns that modules took, for each module that is running

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap the forward of each module, for one visit: a visit begins by putting state back."""
        for module, timed in self._wrapped:
            module.forward = timed
        try:
            yield
        finally:
            for module, _ in self._wrapped:
                del module.forward

    def split(self, step: Step) -> Step:
        """Return the step; what no module took of it is on the account of `OUTSIDE`."""
        return self._timed(OUTSIDE, step)

    def taken(self) -> dict[str, int]:
        """Return the ns since the last time, by module."""
        own, self._own = dict(self._own), defaultdict(int)
        return own

    def _timed(self, path: str, function: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.perf_counter_ns

        def timed(*args: Any, **kwargs: Any) -> Any:
            inside = self._inside
            inside.append(0)
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = clock() - began
                self._own[path] += took - inside.pop()
                inside[-1] += took

        return timed


class _Split:
    """An arm whose visits note what each module took, per call."""

    def __init__(self, arm: VisitedArm, clock: ModuleClock) -> None:
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
        with self._arm.held(), self._clock.installed():
            self._clock.taken()
            self._calls = 0
            yield
            taken = self._clock.taken()
            self.visits.append({path: ns / self._calls for path, ns in taken.items()})


def host_times(
    arms: Sequence[VisitedArm], modules: Mapping[str, nn.Module], device: Device, plan: Plan
) -> dict[str, OwnTimes]:
    """Return the host time of each module under each mode, by rounds that are pairs."""
    clock, rng = ModuleClock(modules), random.Random(plan.seed)
    steps = StepTime.of(device)
    split = [_Split(arm, clock) for arm in arms]
    warmth = warm_up(split, steps, plan=plan, rng=rng)
    for one in split:
        one.visits.clear()
    for _ in Interleaving(split, steps, plan=plan, rng=rng, warmth=warmth):
        pass
    return {
        arm.cell.grad_mode: {
            path: tuple(visit.get(path, 0.0) for visit in one.visits)
            for path in dict.fromkeys(path for visit in one.visits for path in visit)
        }
        for arm, one in zip(arms, split, strict=True)
    }
