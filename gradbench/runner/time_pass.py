"""The time pass, inside its process: one block, its modes interleaved."""

import random
import resource
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from ..devices import Device, Unreadable
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..records.measurements import Fact, Measurement, Outcome
from ..workloads.arms import CellArm, make_arm
from ..workloads.models import Model
from ..workloads.steps import Subject
from .attempts import TRIAL_STEPS, Message, Stopwatch, Trying, attempt, settle, skip, try_to_build
from .cuda_clocks import Figure, read_clocks
from .host_noise import HostNoise
from .interleave import Warmth, calibrate, timed_rounds, warm_up
from .meters import METERS, StepTime

FAULT_STEPS = 10
LATENCY_SHARE = 0.2  # of a block's budget
NEVER = 1e-12  # a precision that is not reached: single calls are counted out by the budget


def time_block(
    cells: Sequence[Cell], model: Model, plan: Plan, wanted: Collection[str]
) -> Iterator[Message]:
    """Yield the interleaved times of a block's cells: of batches, and of single calls."""
    watch, device = Stopwatch(), settle(cells[0])
    flush = device.l2_flusher(cells[0].l2)  # its buffer first: it's the model that may not fit
    subject = try_to_build(cells[0], model, device, seed=plan.seed)
    yield watch.lap("build")
    if not isinstance(subject, Subject):
        yield from (skip(cell, name, subject) for cell in cells for name in wanted)
        return
    arms = []
    for cell in cells:
        yield Trying(cell)
        arm = make_arm(cell, subject)
        refused = attempt(arm, device, TRIAL_STEPS)
        if refused is None:
            arms.append(arm)
        else:
            yield from (skip(cell, name, refused) for name in wanted)
    if not arms:
        yield watch.lap("warm-up")
        return
    clock = StepTime.of(device, flush=flush)
    rng = random.Random(f"{plan.seed} {cells[0].block}")
    warmth = warm_up(arms, clock, plan=plan, rng=rng)
    typical = min(warmth.typical_ns)
    yield watch.lap("warm-up")
    splits = read_clocks(
        arms,
        device,
        wanted,
        flush=flush,
        iterations=calibrate(typical, clock.batch_ns),
        step_ns=typical,
        plan=plan,
        rng=rng,
    )
    for arm, split in zip(arms, splits, strict=True):
        yield from _further(arm, split.figures)
    if "step_time" in wanted:
        warming = {"warmup_rounds": warmth.rounds, "warmup_steady": warmth.steady}
        known = [{**split.notes, **warming} for split in splits]
        yield from step_times(arms, clock, device, known, warmth=warmth, plan=plan, rng=rng)
    yield watch.lap("timing")
    if "latency" in wanted:
        yield from latencies(arms, clock, warmth=warmth, plan=plan, rng=rng)
        yield watch.lap("latency")


def step_times(
    arms: Sequence[CellArm],
    clock: StepTime,
    device: Device,
    known: Sequence[Mapping[str, Fact]],
    *,
    warmth: Warmth,
    plan: Plan,
    rng: random.Random,
) -> Iterator[Message]:
    """Yield each arm's batches; notes say what is ``known``, and possible interference."""
    monitor = device.monitor()
    with HostNoise() as noise:
        rounds = timed_rounds(
            arms, clock, plan=plan, rng=rng, warmth=warmth, between=monitor.sample
        )
    batches = len(arms) * len(rounds.iterations)
    for arm, values, notes in zip(arms, rounds.batch_ns, known, strict=True):
        yield _timed(
            arm,
            "step_time",
            values,
            rounds.iterations,
            {
                "stopped_by": rounds.stopped,
                "half_width": round(rounds.precision, 6),
                "minor_faults_per_step": minor_faults(arm),
                **noise.notes(batches),
                **monitor.notes(),
                **notes,
            },
        )


def latencies(
    arms: Sequence[CellArm],
    clock: StepTime,
    *,
    warmth: Warmth,
    plan: Plan,
    rng: random.Random,
) -> Iterator[Message]:
    """Yield each arm's single calls, interleaved; a share of the budget, as many as it holds."""
    budget_s = plan.budget_s * LATENCY_SHARE
    single = replace(plan, budget_s=budget_s, precision_short=NEVER, precision_long=NEVER)
    calls = replace(clock, batch_ns=0)
    rounds = timed_rounds(arms, calls, plan=single, rng=rng, warmth=warmth)
    for arm, values in zip(arms, rounds.batch_ns, strict=True):
        yield _timed(arm, "latency", values, rounds.iterations, {})


def _further(arm: CellArm, figures: Mapping[str, Figure]) -> Iterator[Outcome]:
    for name, figure in figures.items():
        if isinstance(figure, Unreadable):
            yield skip(arm.cell, name, ("unreadable", str(figure)))
        else:
            yield _timed(arm, name, figure.values, figure.iterations, figure.notes)


def _timed(
    arm: CellArm,
    name: str,
    values: Sequence[int],
    iterations: Sequence[int],
    notes: Mapping[str, Fact],
) -> Measurement:
    alike = len(set(iterations)) == 1
    return Measurement(
        cell=arm.cell,
        meter=name,
        unit=METERS[name].unit,
        values=tuple(values),
        iterations=iterations[0] if alike else tuple(iterations),
        exact=METERS[name].exact,
        notes=dict(notes),
    )


def minor_faults(arm: CellArm) -> float:
    """Return page faults served without a disk per step; timing wants none."""
    with arm.held():
        arm.step()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(FAULT_STEPS):
            arm.step()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / FAULT_STEPS
