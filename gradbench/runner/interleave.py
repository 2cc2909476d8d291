"""The timed rounds: warm up, calibrate, visit every arm once a round in a fresh order, stop."""

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, Protocol

from ..devices import nothing
from ..experiment.plan import FEWEST_ROUNDS, Plan
from ..workloads.steps import Step
from .meters import StepTime
from .timing_rules import (
    LONG_STEP_NS,
    SHORT_STEP_NS,
    calibrate,
    collector_resting,
    precision,
)

GRACE: Final = 4  # times the budget that a block of long steps may take for its rounds
STEADY: Final = 0.05  # warm-up ends when each arm's times change by less
CHECK_EVERY: Final = 1.25  # precision is looked at when rounds have grown by this factor
LOOK_BACK: Final = 50  # rounds between two looks at how long batches last


class Arm(Protocol):
    """One side of the comparison: a step, and the context to hold while stepping."""

    @property
    def step(self) -> Step:
        """The work."""

    def held(self) -> AbstractContextManager[object]:
        """The mode, entered once per visit, outside the timed window."""


Stop = Literal["precision", "budget", "rounds", "limit", "arms"]
"""Why no further round was made: ``limit`` is the process's time, ``arms`` that all were lost."""

Lost = Callable[[int, BaseException], object]
"""What is called with the place of an arm whose step raised, and what it raised."""


def reraise(_index: int, error: BaseException) -> NoReturn:
    """Raise what an arm raised: for those who cannot go on without it."""
    raise error


@dataclass(frozen=True, slots=True)
class Rounds:
    """Raw times: ``batch_ns[arm][round]`` in ns over ``iterations[round]`` steps.

    An arm that was lost on the way has fewer rounds than the others.
    """

    batch_ns: list[list[int]]
    iterations: list[int]
    stopped: Stop
    precision: float  # relative half-width reached by the least certain arm


@dataclass(frozen=True, slots=True)
class Warmth:
    """What warming up came to: each arm's typical step in ns, and what it took."""

    typical_ns: list[float]  # infinite for an arm that was lost
    rounds: int
    steady: bool  # or was time up before?


def warm_up(
    arms: Sequence[Arm],
    clock: StepTime,
    *,
    plan: Plan,
    rng: random.Random,
    lost: Lost = reraise,
) -> Warmth:
    """Step every arm until its times are steady, or five times ``warmup_s`` are over."""
    step_ns: dict[int, list[int]] = {index: [] for index in range(len(arms))}
    start_ns = clock.now_ns()
    rounds, steady = 0, False
    while step_ns:
        for index in rng.sample(list(step_ns), len(step_ns)):
            try:
                with arms[index].held():
                    step_ns[index].append(clock.read(arms[index].step, 1))
            except BaseException as error:  # noqa: BLE001 # a step may raise anything
                del step_ns[index]
                lost(index, error)
        rounds += 1
        elapsed_s = (clock.now_ns() - start_ns) / 1e9
        steady = rounds >= 6 and all(map(_steady, step_ns.values()))
        if (steady and elapsed_s >= plan.warmup_s) or elapsed_s >= 5 * plan.warmup_s:
            break
    typical = [
        statistics.median(step_ns[index][-max(3, rounds // 3) :]) if index in step_ns else math.inf
        for index in range(len(arms))
    ]
    return Warmth(typical, rounds, steady)


def _steady(times: Sequence[int]) -> bool:
    third = max(2, len(times) // 3)
    before, now = min(times[-2 * third : -third]), min(times[-third:])
    return abs(now - before) <= STEADY * before


def timed_rounds(
    arms: Sequence[Arm],
    clock: StepTime,
    *,
    plan: Plan,
    rng: random.Random,
    warmth: Warmth | None = None,
    keeps_budget: bool = False,
) -> Rounds:
    """Return the rounds of an `Interleaving` that has come to its end.

    Arms are warmed up first, unless ``warmth`` says what came of that before.
    """
    warmth = warmth or warm_up(arms, clock, plan=plan, rng=rng)
    rounds = Interleaving(arms, clock, plan=plan, rng=rng, warmth=warmth, keeps_budget=keeps_budget)
    for _ in rounds:
        pass
    return rounds.so_far()


class Interleaving:
    """Visits every arm once a round, in a freshly shuffled order, until precise or out of budget.

    Iterating over it makes the rounds, one for each turn.

    A batch has as many steps as last about ``clock.batch_ns`` (see `calibrate`). One untimed step
    follows each switch, for caches and branch predictors belong to the arm that ran before, unless
    steps are so long that this is nothing; the garbage collector rests. When the machine has
    become so much faster or slower that the fastest arm's batches last twice or half as long as
    they should, the steps in a batch are counted anew: a round's arms always have the same.
    ``between`` is called before each round.

    ``plan.min_rounds`` are made whatever they take, unless the budget is passed `GRACE` times over:
    then `FEWEST_ROUNDS`, or with ``keeps_budget`` what the budget holds, one at least. No round is
    begun that would not end by ``deadline_ns``.

    An arm that raises is ``lost``, and the others go on.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        clock: StepTime,
        *,
        plan: Plan,
        rng: random.Random,
        warmth: Warmth,
        keeps_budget: bool = False,
        between: Callable[[], object] = nothing,
        lost: Lost = reraise,
        deadline_ns: float = math.inf,
    ) -> None:
        self._arms, self._clock, self._plan, self._rng = arms, clock, plan, rng
        self._step_ns = min(warmth.typical_ns)
        self._iterations = calibrate(self._step_ns, clock.batch_ns)
        self._between, self._lost = between, lost
        self._keeps_budget, self._deadline_ns = keeps_budget, deadline_ns
        self._batch_ns: list[list[int]] = [[] for _ in arms]
        self._steps: list[int] = []
        self._order = list(range(len(arms)))
        self._next_check = plan.min_rounds
        self._stopped: Stop = "rounds"

    def __iter__(self) -> Iterator[None]:
        with collector_resting():
            start_ns = self._clock.now_ns()
            longest_ns = 0
            while True:
                before_ns = self._clock.now_ns()
                self._visit_all()
                yield
                now_ns = self._clock.now_ns()
                longest_ns = max(longest_ns, now_ns - before_ns)
                stopped = self._why_stop(now_ns - start_ns, longest_ns, now_ns)
                if stopped is not None:
                    self._stopped = stopped
                    return

    def so_far(self) -> Rounds:
        """Return the rounds that were made."""
        return Rounds(self._batch_ns, self._steps, self._stopped, self._precision())

    def _visit_all(self) -> None:
        self._between()
        self._rng.shuffle(self._order)
        for index in tuple(self._order):
            arm = self._arms[index]
            try:
                with arm.held():
                    if self._step_ns < LONG_STEP_NS:
                        arm.step()
                    self._batch_ns[index].append(self._clock.read(arm.step, self._iterations))
            except BaseException as error:  # noqa: BLE001 # a step may raise anything
                self._order.remove(index)
                self._lost(index, error)
        self._steps.append(self._iterations)
        if self._order and len(self._steps) % LOOK_BACK == 0:
            self._iterations = recalibrate(self._left(), self._steps, self._clock.batch_ns)

    def _why_stop(self, elapsed_ns: int, round_ns: int, now_ns: int) -> Stop | None:
        rounds, budget_ns = len(self._steps), self._plan.budget_s * 1e9
        if not self._order:
            return "arms"
        if now_ns + round_ns > self._deadline_ns:
            return "limit"
        if rounds < self._least(elapsed_ns, round_ns):
            return None
        if elapsed_ns >= budget_ns or (self._keeps_budget and elapsed_ns + round_ns > budget_ns):
            return "budget"
        if rounds >= self._plan.max_rounds:
            return "rounds"
        return "precision" if self._is_precise(rounds) else None

    def _is_precise(self, rounds: int) -> bool:
        """Look now and then whether the rounds are precise enough."""
        if rounds < self._next_check:
            return False
        self._next_check = math.ceil(rounds * CHECK_EVERY)
        short = self._step_ns < SHORT_STEP_NS
        target = self._plan.precision_short if short else self._plan.precision_long
        return self._precision() <= target

    def _least(self, elapsed_ns: int, round_ns: int) -> int:
        if self._keeps_budget:
            return 1
        grace_ns = GRACE * self._plan.budget_s * 1e9
        return self._plan.min_rounds if elapsed_ns + round_ns <= grace_ns else FEWEST_ROUNDS

    def _left(self) -> list[list[int]]:
        """Return the batches of the arms that are left, in their own order."""
        return [self._batch_ns[index] for index in sorted(self._order)]

    def _precision(self) -> float:
        return precision(self._left(), self._steps) if self._order else math.inf


def recalibrate(batch_ns: Sequence[Sequence[int]], steps: Sequence[int], target_ns: int) -> int:
    """Return the steps of the next batches: as now, unless these have drifted from the target."""
    now = steps[-1]
    if any(count != now for count in steps[-LOOK_BACK:]):
        return now  # counted anew within these rounds: look again when all are alike
    fastest = min(statistics.median(arm[-LOOK_BACK:]) for arm in batch_ns)
    if target_ns / 2 <= fastest <= target_ns * 2:
        return now
    return calibrate(fastest / now, target_ns)
