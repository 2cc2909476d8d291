"""Two callables of this process, interleaved: which is faster, by how much, how surely."""

import inspect
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import nn

from .. import devices
from ..analysis import format_units
from ..errors import GradbenchError, Impossible
from ..experiment.plan import FEWEST_ROUNDS, Plan
from ..lazy_results import check_done
from ..memory.usage import Usage, memory_usage
from ..plurals import counted
from ..records.measurements import Fact
from ..runner.interleave import Rounds, Stop, Warmth, timed_rounds, warm_up
from ..runner.meters import StepTime
from ..runner.process_settings import ProcessSettings
from ..stats import estimates
from ..stats.estimates import MIN_DETECTABLE_EFFECT, Estimate
from ..stats.verdicts import TOLERANCE, Verdict, classify, percent
from . import call_memory
from .call_memory import BytesChange

WARM_UP_SHARE: Final = 0.2
"""Of the budget, for warm-up, at most."""
WARM_UP_STRETCH: Final = 5
"""`warm_up` ends at so many times the ``warmup_s`` that it is given, steady or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of it: ``change`` is candidate / base over paired rounds, times are per call.

    ``verdict`` is on that change. ``memory`` has the bytes that a call adds at most, ``peak``, and
    those that it saves for backward, ``saved``, with a verdict on each.
    ``notes`` say what else there is to know: settings that a function changed, by its name, under
    ``rounds`` that there were too few of them for a verdict, and why bytes could not be read.
    """

    change: Estimate
    verdict: Verdict
    base_ns: Estimate
    candidate_ns: Estimate
    stopped: Stop
    memory: Mapping[str, BytesChange] = field(default_factory=dict)
    notes: Mapping[str, Fact] = field(default_factory=dict)

    def __repr__(self) -> str:
        times = [format_units.duration(side.point) for side in (self.base_ns, self.candidate_ns)]
        change = self.change
        return (
            f"{self.verdict}: {percent(change.point)} "
            f"[{percent(change.low)}, {percent(change.high)}], {times[0]} -> {times[1]} a call, "
            f"{counted(change.rounds, 'round')}"
            + "".join(
                f"; {name} {bytes_}"
                for name, bytes_ in self.memory.items()
                if bytes_.verdict is not Verdict.SAME
            )
            + "".join(f"; {name}: {words}" for name, words in self.notes.items())
        )


@dataclass(slots=True)
class _Arm:
    """A function that finds the process, at each visit, as it was before the comparison."""

    name: str
    step: Callable[[], object]
    before: ProcessSettings
    left: ProcessSettings

    @contextmanager
    def held(self) -> Iterator[None]:
        inference = torch.is_inference_mode_enabled()
        try:
            yield
        finally:
            now = ProcessSettings.now()
            if now != self.before:
                self.left = now
                self.before.put_right()
        if torch.is_inference_mode_enabled() != inference:
            raise GradbenchError(
                f"{self.name} leaves inference mode switched, and what runs after it would be "
                "measured in that: enter it by a with statement"
            )

    def first_call(self, clock: StepTime) -> int:
        """Return the ns of a call whose result is looked at."""
        results: list[object] = []
        with self.held():
            step_ns = clock.read(lambda: results.append(self.step()), 1)
        check_done(results.pop(), call=self.name)
        return step_ns

    def usage(self, device: str) -> Usage:
        """Return what a call does to memory."""
        with self.held():
            return memory_usage(self.step, device=device)


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

    Both are called without arguments, in this process as it is: same thread count, same heap, and
    whichever cores it may use. So it holds none of them alone, as a run does, and waits for no run:
    what else works on the host then disturbs both sides alike, and widens the interval.
    Rounds visit both in random order; it stops when the ratio's interval is narrow (0.25% for
    calls under 1 ms, 0.5% above) or when ``budget_s``, first calls and warm-up included, would not
    hold another round, never because of what it shows. One round is timed in any case; fewer than
    six have no verdict, which a note says. Threads, cores and the grad mode that a call leaves are
    put back after each visit, and noted. ``tolerance`` is the change that does not matter.
    ``device`` is what the calls leave work on.

    Before that, two or four calls of each say what they do to memory, as `memory_usage` does, where
    a fifth of the budget holds them: bytes are judged as they are.

    What either raises is raised, and `LazyResult` where one returns a generator, a coroutine or
    another iterator: only the making of that would be timed.
    """
    plan = Plan(budget_s=budget_s, seed=seed)
    _check_tolerance(tolerance)
    torch_device = devices.find(device)
    torch_device.check()
    ends_s, settings = time.perf_counter() + budget_s, ProcessSettings.now()
    arms = [
        _Arm(name, _without_arguments(name, function), settings, settings)
        for name, function in (("base", base), ("candidate", candidate))
    ]
    clock = StepTime.of(torch_device)
    first_ns = [float(arm.first_call(clock)) for arm in arms]
    memory, unread = call_memory.changes(
        [partial(arm.usage, device) for arm in arms], budget_s=budget_s, first_s=sum(first_ns) / 1e9
    )
    rounds = _timed(arms, clock, first_ns, plan=plan, ends_s=ends_s)
    notes = {key: fact for arm in arms for key, fact in _notes(arm).items()} | unread
    return replace(_judged(rounds, tolerance=tolerance, notes=notes), memory=memory)


def _timed(
    arms: Sequence[_Arm],
    clock: StepTime,
    first_ns: Sequence[float],
    *,
    plan: Plan,
    ends_s: float,
) -> Rounds:
    """Return the rounds that fit what first calls and warm-up leave of the budget."""
    rng = random.Random(plan.seed)
    warmth = _warm(arms, clock, first_ns, plan=plan, rng=rng)
    left = replace(plan, budget_s=max(ends_s - time.perf_counter(), 1e-9))
    return timed_rounds(arms, clock, plan=left, rng=rng, warmth=warmth, keeps_budget=True)


def _judged(rounds: Rounds, *, tolerance: float, notes: Mapping[str, Fact]) -> Comparison:
    """Return what the rounds of base and candidate show."""
    sides = [
        np.asarray(batch_ns, dtype=np.float64) / np.asarray(rounds.iterations)
        for batch_ns in rounds.batch_ns
    ]
    change = estimates.paired_ratio(sides[1], sides[0])
    verdict = classify(change, floor=MIN_DETECTABLE_EFFECT, tolerance=tolerance)
    if change.rounds < FEWEST_ROUNDS:
        too_few = f"a verdict takes {FEWEST_ROUNDS} rounds or more: {_needed(sides)}"
        notes = {**notes, "rounds": too_few}
    return Comparison(
        change=change,
        verdict=verdict,
        base_ns=estimates.median(sides[0]),
        candidate_ns=estimates.median(sides[1]),
        stopped=rounds.stopped,
        notes=notes,
    )


def _without_arguments(name: str, function: Callable[[], object]) -> Callable[[], object]:
    """Return the function; raise `Impossible` for what cannot be called without arguments."""
    if not callable(function):
        raise Impossible(f"{name} must be a function to call, not {type(function).__name__}")
    try:
        signature = inspect.signature(
            function.forward if isinstance(function, nn.Module) else function
        )
    except (TypeError, ValueError):  # of a function written in C: the call will show
        return function
    try:
        signature.bind()
    except TypeError as error:
        raise Impossible(
            f"{name} is called without arguments ({error}): give lambda: {name}(x)"
        ) from None
    return function


def _check_tolerance(tolerance: float) -> None:
    number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if not (number and 0 <= tolerance < math.inf):
        raise Impossible(f"tolerance is a share from 0 up, such as 0.01, not {tolerance!r}")


def _warm(
    arms: Sequence[_Arm],
    clock: StepTime,
    first_ns: Sequence[float],
    *,
    plan: Plan,
    rng: random.Random,
) -> Warmth:
    """Call each function for a while, unless the first calls took that long."""
    share_s = WARM_UP_SHARE * plan.budget_s
    if sum(first_ns) / 1e9 >= share_s:
        return Warmth(list(first_ns), 1, steady=False)
    warmup_s = min(plan.warmup_s, share_s / WARM_UP_STRETCH)
    return warm_up(arms, clock, plan=replace(plan, warmup_s=warmup_s), rng=rng)


def _notes(arm: _Arm) -> Mapping[str, Fact]:
    return arm.before.notes(arm.left, who=arm.name)


def _needed(sides: Sequence[estimates.Floats]) -> str:
    """Return in words the budget that would hold rounds enough."""
    round_s = sum(float(np.median(side)) for side in sides) / 1e9
    return f"with a budget_s of {math.ceil((FEWEST_ROUNDS + 2) * round_s)} there is time for them"
