"""Trials of the measuring itself: arms that are equal, or differ by work of known size."""

import itertools
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Final

from torch.utils.benchmark import Timer

from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..runner.attempts import settle
from ..runner.interleave import Rounds, Warmth, timed_rounds, warm_up
from ..runner.meters import StepTime
from ..runner.timing_rules import calibrate
from ..workloads.arms import CellArm, build, make_arm
from ..workloads.models import Model
from ..workloads.steps import Step

PAD_SIZES: Final = (100, 20_000)
"""Iterations of the two loops from which the cost of an iteration is known."""

BASE_PAD: Final = 10
"""Iterations that follow the step on both sides: what a loop costs beside its turns cancels."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One comparison of a step with itself and ``injected`` more work (a fraction; 0 is A/A)."""

    injected: float
    batch_ns: list[list[int]]  # [base, variant][round]
    iterations: list[int]


@dataclass(frozen=True, slots=True)
class Pad:
    """Work of known size: turns of an empty loop in C, ``each_ns`` long."""

    each_ns: float

    def iterations(self, target_ns: float) -> int:
        """Return how many turns more take ``target_ns`` more."""
        return round(target_ns / self.each_ns)


@dataclass(frozen=True, slots=True)
class PaddedArm:
    """An arm with extra work after its step."""

    arm: CellArm
    step: Step

    def held(self) -> AbstractContextManager[object]:
        """Return the arm's own context."""
        return self.arm.held()


def waste(iterations: int) -> None:
    """Run an empty loop."""
    deque(itertools.repeat(None, iterations), maxlen=0)


def measure_pad(clock_ns: Callable[[], int], *, repeats: int = 300) -> Pad:
    """Return the cost of `waste`, from the medians of a short and a long loop."""
    medians = []
    for size in PAD_SIZES:
        times = []
        for _ in range(repeats):
            start_ns = clock_ns()
            waste(size)
            times.append(clock_ns() - start_ns)
        medians.append(statistics.median(times))
    each_ns = max((medians[1] - medians[0]) / (PAD_SIZES[1] - PAD_SIZES[0]), 1e-3)
    return Pad(each_ns)


def padded(arm: CellArm, extra: int) -> PaddedArm:
    """Return the arm with `BASE_PAD` turns of waste after each step, and ``extra`` more."""
    step, iterations = arm.step, BASE_PAD + extra

    def longer() -> None:
        step()
        waste(iterations)

    return PaddedArm(arm, longer)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An arm warmed up in this process, with what is needed to time it."""

    arm: CellArm
    clock: StepTime
    warmth: Warmth
    rng: random.Random

    @property
    def typical_ns(self) -> float:
        """A step's ns, as warming up found it."""
        return self.warmth.typical_ns[0]

    @property
    def batch(self) -> int:
        """The steps of a batch."""
        return calibrate(self.typical_ns, self.clock.batch_ns)

    def pair(self, extra: int, plan: Plan) -> Rounds:
        """Return the interleaved rounds of the arm and of itself with ``extra`` turns of waste."""
        base = padded(self.arm, 0)
        variant = padded(self.arm, extra) if extra else base
        return timed_rounds(
            [base, variant], self.clock, plan=plan, rng=self.rng, warmth=self.warmth
        )


def prepare(cell: Cell, model: Model, plan: Plan) -> Prepared:
    """Build a cell's step in this process and warm it up."""
    device = settle(cell)
    arm = make_arm(cell, build(cell, model, seed=plan.seed))
    clock, rng = StepTime.of(device), random.Random(plan.seed)
    return Prepared(arm, clock, warm_up([arm], clock, plan=plan, rng=rng), rng)


def compare_with_itself(
    cell: Cell, model: Model, plan: Plan, injections: Sequence[float], count: int
) -> Iterator[Trial]:
    """Yield ``count`` trials of every injection, in shuffled order, each to the plan's budget."""
    bench = prepare(cell, model, plan)
    pad = measure_pad(time.perf_counter_ns)
    typical_ns = bench.typical_ns
    for _ in range(count):
        for injected in bench.rng.sample(list(injections), len(injections)):
            iterations = pad.iterations(injected * typical_ns) if injected else 0
            rounds = bench.pair(iterations, plan)
            yield Trial(injected, rounds.batch_ns, rounds.iterations)
            base = [n / k for n, k in zip(rounds.batch_ns[0], rounds.iterations, strict=True)]
            typical_ns = statistics.median(base)


def interleaved_and_separate(
    cells: Sequence[Cell], model: Model, plan: Plan, blocks: int
) -> Iterator[tuple[Trial, Trial]]:
    """Yield two cells' interleaved rounds, and as many pairs of long ``blocks`` (ABBA), as trials.

    A block's time is the median of its batches.
    """
    device = settle(cells[0])
    subject = build(cells[0], model, seed=plan.seed)
    arms = [make_arm(cell, subject) for cell in cells]
    clock, rng = StepTime.of(device), random.Random(plan.seed)
    warmth = warm_up(arms, clock, plan=plan, rng=rng)
    rounds = timed_rounds(arms, clock, plan=plan, rng=rng, warmth=warmth)
    typical_ns = min(warmth.typical_ns)
    steps = calibrate(typical_ns, clock.batch_ns)
    medians: list[list[int]] = [[], []]
    long = max(20, round(plan.budget_s * 1e9 / blocks / 2 / (typical_ns * steps)))
    for block in range(blocks):
        for index in (0, 1) if block % 2 == 0 else (1, 0):
            with arms[index].held():
                times = [clock.read(arms[index].step, steps) for _ in range(long)]
            medians[index].append(round(statistics.median(times)))
    apart = Trial(0.0, medians, [steps] * blocks)
    yield Trial(0.0, rounds.batch_ns, rounds.iterations), apart


def overheads() -> Iterator[tuple[float, float]]:
    """Yield what the timing loop adds to a step and to a batch, in ns.

    The loop's share is what a batch of empty steps takes beyond the same calls written out one
    after the other.
    """
    clock = StepTime(lambda: None, time.perf_counter_ns)

    def nothing() -> None:
        pass

    many = 1000
    written_out: dict[str, Callable[[], None]] = {}
    source = "def calls():\n" + "    nothing()\n" * many
    exec(source, {"nothing": nothing}, written_out)  # noqa: S102 # our own text, written out above
    calls = written_out["calls"]
    looped, plain, empty = [], [], []
    for _ in range(2000):
        looped.append(clock.read(nothing, many))
        plain.append(clock.read(calls, 1))
        empty.append(clock.read(nothing, 0))
    each = (statistics.median(looped) - statistics.median(plain)) / many
    yield each, statistics.median(empty)


def against_timer(
    cell: Cell, model: Model, plan: Plan, turns: int
) -> Iterator[tuple[float, float]]:
    """Yield our median step and `torch.utils.benchmark.Timer`'s, in ns, turn and turn about."""
    bench = prepare(cell, model, plan)
    steps = bench.batch
    timer = Timer("step()", globals={"step": bench.arm.step})
    with bench.arm.held():
        for _ in range(turns):
            timer_ns = timer.blocked_autorange(min_run_time=plan.budget_s).median * 1e9
            end = time.perf_counter() + plan.budget_s
            own_ns = []
            while time.perf_counter() < end:
                own_ns.append(bench.clock.read(bench.arm.step, steps) / steps)
            yield statistics.median(own_ns), timer_ns


def timer_trials(
    cell: Cell, model: Model, plan: Plan, injections: Sequence[float], count: int
) -> Iterator[tuple[float, list[float], list[float]]]:
    """Yield for each injection the times of Timer run twice in sequence, base and variant."""
    bench = prepare(cell, model, plan)
    pad = measure_pad(time.perf_counter_ns)
    for _ in range(count):
        for injected in injections:
            iterations = pad.iterations(injected * bench.typical_ns) if injected else 0
            sides = []
            for side in (padded(bench.arm, 0), padded(bench.arm, iterations)):
                with side.held():
                    timer = Timer("step()", globals={"step": side.step})
                    sides.append(timer.blocked_autorange(min_run_time=plan.budget_s / 2).times)
            yield injected, sides[0], sides[1]


def live_processes(
    cell: Cell, model: Model, plan: Plan, processes: int, turns: int
) -> Iterator[list[float]]:
    """Yield each process's median step in ns: identical processes, alive together, in turns."""
    context = get_context("fork")
    ends = []
    for _ in range(processes):
        parent_end, child_end = context.Pipe()
        context.Process(target=_live, args=(cell, model, plan, child_end), daemon=True).start()
        ends.append(parent_end)
    times: list[list[float]] = [[] for _ in ends]
    rng = random.Random(plan.seed)
    for end in ends:
        end.recv()
    for _ in range(turns):
        for index in rng.sample(range(processes), processes):
            ends[index].send("go")
            times[index].append(ends[index].recv())
    yield [statistics.median(of_one) for of_one in times]


def _live(cell: Cell, model: Model, plan: Plan, pipe: Connection) -> None:
    bench = prepare(cell, model, plan)
    steps = bench.batch
    pipe.send("ready")
    with bench.arm.held():
        while pipe.recv() == "go":
            bench.arm.step()
            pipe.send(
                statistics.median(bench.clock.read(bench.arm.step, steps) for _ in range(9)) / steps
            )
