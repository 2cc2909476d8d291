"""Two callables of this process, interleaved: which is faster, by how much, how surely."""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from .. import devices
from ..analysis import format_units
from ..experiment.plan import Plan
from ..gate.decide import percent
from ..runner.interleave import Stop, timed_rounds
from ..runner.meters import StepTime
from ..stats import estimates
from ..stats.estimates import MIN_DETECTABLE_EFFECT, Estimate
from ..stats.verdicts import TOLERANCE, Verdict, classify


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of it: ``change`` is candidate / base over paired rounds, times are per call."""

    change: Estimate
    verdict: Verdict
    base_ns: Estimate
    candidate_ns: Estimate
    stopped: Stop

    def __repr__(self) -> str:
        times = [format_units.duration(side.point) for side in (self.base_ns, self.candidate_ns)]
        change = self.change
        return (
            f"{self.verdict}: {percent(change.point)} "
            f"[{percent(change.low)}, {percent(change.high)}], {times[0]} -> {times[1]} a call, "
            f"{change.rounds} rounds"
        )


@dataclass(frozen=True, slots=True)
class _Arm:
    step: Callable[[], object]

    def held(self) -> AbstractContextManager[object]:
        return nullcontext()


def compare(
    base: Callable[[], object],
    candidate: Callable[[], object],
    *,
    device: str = "cpu",
    tolerance: float = TOLERANCE,
    budget_s: float = 5.0,
    seed: int = 0,
) -> Comparison:
    """Call two functions in turn, within fractions of a millisecond, and judge their ratio.

    Both are called without arguments, in this process as it is: same thread count, same heap.
    Rounds visit both in random order; it stops when the ratio's interval is narrow (0.25% for
    calls under 1 ms, 0.5% above) or at ``budget_s``, never because of what it shows.
    ``tolerance`` is the change that does not matter. ``device`` is what the calls leave work on.
    What either raises is raised.
    """
    plan = Plan(budget_s=budget_s, seed=seed)
    torch_device = devices.find(device)
    torch_device.check()
    arms = [_Arm(base), _Arm(candidate)]
    clock, rng = StepTime.of(torch_device), random.Random(seed)
    rounds = timed_rounds(arms, clock, plan=plan, rng=rng)
    sides = [
        np.asarray(batch_ns, dtype=np.float64) / np.asarray(rounds.iterations)
        for batch_ns in rounds.batch_ns
    ]
    change = estimates.paired_ratio(sides[1], sides[0])
    return Comparison(
        change=change,
        verdict=classify(change, floor=MIN_DETECTABLE_EFFECT, tolerance=tolerance),
        base_ns=estimates.median(sides[0]),
        candidate_ns=estimates.median(sides[1]),
        stopped=rounds.stopped,
    )
