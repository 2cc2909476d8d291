"""The timed rounds: warm up, calibrate, visit every arm once a round in a fresh order, stop."""

import gc
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from ..devices import nothing
from ..experiment.plan import Plan
from ..workloads.steps import Step
from .meters import StepTime

SHORT_STEP_NS: Final = 1_000_000  # below it the finer precision is asked for
STEADY: Final = 0.05  # warm-up ends when each arm's times change by less
CHECK_EVERY: Final = 1.25  # precision is looked at when rounds have grown by this factor
LOOK_BACK: Final = 50  # rounds between two looks at how long batches last
Z: Final = statistics.NormalDist().inv_cdf(0.975)


class Arm(Protocol):
    """One side of the comparison: a step, and the context to hold while stepping."""

    @property
    def step(self) -> Step:
        """The work."""

    def held(self) -> AbstractContextManager[object]:
        """The mode, entered once per visit, outside the timed window."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """Raw times: ``batch_ns[arm][round]`` in ns over ``iterations[round]`` steps."""

    batch_ns: list[list[int]]
    iterations: list[int]
    stopped: Literal["precision", "budget", "rounds"]
    precision: float  # relative half-width reached by the least certain arm


@dataclass(frozen=True, slots=True)
class Warmth:
    """What warming up came to: each arm's typical step in ns, and what it took."""

    typical_ns: list[float]
    rounds: int
    steady: bool  # or was time up before?


def warm_up(arms: Sequence[Arm], clock: StepTime, *, plan: Plan, rng: random.Random) -> Warmth:
    """Step every arm until its times are steady, or five times ``warmup_s`` are over."""
    step_ns: list[list[int]] = [[] for _ in arms]
    start_ns = clock.clock_ns()
    while True:
        for index in rng.sample(range(len(arms)), len(arms)):
            with arms[index].held():
                step_ns[index].append(clock.read(arms[index].step, 1))
        elapsed_s = (clock.clock_ns() - start_ns) / 1e9
        rounds = len(step_ns[0])
        if rounds >= 6 and elapsed_s >= plan.warmup_s and all(map(_steady, step_ns)):
            steady = True
            break
        if rounds >= 3 and elapsed_s >= 5 * plan.warmup_s:
            steady = False
            break
    typical = [statistics.median(times[-max(3, len(times) // 3) :]) for times in step_ns]
    return Warmth(typical, rounds, steady)


def _steady(times: Sequence[int]) -> bool:
    third = max(2, len(times) // 3)
    before, now = min(times[-2 * third : -third]), min(times[-third:])
    return abs(now - before) <= STEADY * before


def calibrate(step_ns: float, batch_ns: int) -> int:
    """Return the steps in a batch of about ``batch_ns``: three at least, but one of a long step.

    What a switch of modes leaves in the caches may outlast the one untimed step: three timed steps
    dilute it. A step of 1 ms and more needs none of that, and three would near the scheduler's
    slice.
    """
    if batch_ns == 0 or step_ns >= SHORT_STEP_NS:
        return 1
    return max(3, math.ceil(batch_ns / max(step_ns, 1.0)))


def timed_rounds(
    arms: Sequence[Arm],
    clock: StepTime,
    *,
    plan: Plan,
    rng: random.Random,
    warmth: Warmth | None = None,
    between: Callable[[], object] = nothing,
) -> Rounds:
    """Visit every arm once a round, in a freshly shuffled order, until precise or out of budget.

    Arms are warmed up first, unless ``warmth`` says what came of that before. A batch has as many
    steps as last about ``clock.batch_ns`` (see `calibrate`). One untimed step follows each switch,
    for caches and branch predictors belong to the arm that ran before; the garbage collector
    rests. When the machine has become so much faster or slower that the fastest arm's batches last
    twice or half as long as they should, the steps in a batch are counted anew: a round's arms
    always have the same. ``between`` is called before each round.
    """
    warmth = warmth or warm_up(arms, clock, plan=plan, rng=rng)
    step_ns = min(warmth.typical_ns)
    iterations = calibrate(step_ns, clock.batch_ns)
    batch_ns: list[list[int]] = [[] for _ in arms]
    steps: list[int] = []
    target = plan.precision_short if step_ns < SHORT_STEP_NS else plan.precision_long
    order = list(range(len(arms)))
    next_check = plan.min_rounds
    budget_ns = plan.budget_s * 1e9
    stopped: Literal["precision", "budget", "rounds"]
    with collector_resting():
        start_ns = clock.clock_ns()
        while True:
            between()
            rng.shuffle(order)
            for index in order:
                arm = arms[index]
                with arm.held():
                    arm.step()
                    batch_ns[index].append(clock.read(arm.step, iterations))
            steps.append(iterations)
            rounds = len(steps)
            if rounds % LOOK_BACK == 0:
                iterations = recalibrate(batch_ns, steps, clock.batch_ns)
            if rounds < plan.min_rounds:
                continue
            if clock.clock_ns() - start_ns >= budget_ns:
                stopped = "budget"
                break
            if rounds >= plan.max_rounds:
                stopped = "rounds"
                break
            if rounds >= next_check:
                if precision(batch_ns, steps) <= target:
                    stopped = "precision"
                    break
                next_check = math.ceil(rounds * CHECK_EVERY)
    return Rounds(batch_ns, steps, stopped, precision(batch_ns, steps))


def recalibrate(batch_ns: Sequence[Sequence[int]], steps: Sequence[int], target_ns: int) -> int:
    """Return the steps of the next batches: as now, unless these have drifted from the target."""
    now = steps[-1]
    if any(count != now for count in steps[-LOOK_BACK:]):
        return now  # counted anew within these rounds: look again when all are alike
    fastest = min(statistics.median(arm[-LOOK_BACK:]) for arm in batch_ns)
    if target_ns / 2 <= fastest <= target_ns * 2:
        return now
    return calibrate(fastest / now, target_ns)


def precision(batch_ns: Sequence[Sequence[int]], steps: Sequence[int]) -> float:
    """Return the widest relative half-width of any arm's ratio to the first arm.

    It is half the distance between the order statistics n/2 -+ z*sqrt(n)/2 of the paired log
    ratios (the normal approximation of the binomial interval, David & Nagaraja 2003, section
    7.1); with one arm, of the logs themselves. It only decides when to stop: what is reported
    is computed from the rounds, exactly.
    """
    logs = [
        [math.log(max(value, 1) / count) for value, count in zip(values, steps, strict=True)]
        for values in batch_ns
    ]
    if len(logs) == 1:
        return _half_width(logs[0])
    return max(_half_width([a - b for a, b in zip(arm, logs[0], strict=True)]) for arm in logs[1:])


def _half_width(values: Sequence[float]) -> float:
    ordered, n = sorted(values), len(values)
    low = max(0, math.floor(n / 2 - Z * math.sqrt(n) / 2) - 1)
    return math.expm1((ordered[n - 1 - low] - ordered[low]) / 2)


@contextmanager
def collector_resting() -> Iterator[None]:
    """Collect garbage, then keep the collector from running inside."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
