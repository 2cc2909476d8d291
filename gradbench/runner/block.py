"""The time pass, inside its process: one block, its modes interleaved."""

import os
import random
import resource
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from .. import devices, environment
from ..arms import CellArm, build, make_arm, steps
from ..devices import Device, Unreadable
from ..matrix import Cell
from ..meters import METERS, StepTime
from ..models import Model
from ..plan import Plan
from ..records import Cause, Environment, Fact, Measurement, Outcome, Reading, Skipped
from ..workloads import Subject, must_fail
from .clocks import Figure, read_clocks
from .interleave import calibrate, interleave, warm_up
from .surroundings import Surroundings

Refusal = tuple[Cause, str]

TRIAL_STEPS = 2
FAULT_STEPS = 10
LATENCY_SHARE = 0.2  # of a block's budget
NEVER = 1e-12  # a precision that is not reached: single calls are counted out by the budget


@dataclass(frozen=True, slots=True)
class Trying:
    """Sent before a cell's first step, so that a death can be laid at its door."""

    cell: Cell


@dataclass(frozen=True, slots=True)
class Spent:
    """Sent when a phase is over."""

    phase: str
    seconds: float


Message = Trying | Spent | Reading | Environment


@dataclass(slots=True)
class Stopwatch:
    """Splits a process's wall time into phases."""

    _since: float = field(default_factory=time.perf_counter)

    def lap(self, phase: str) -> Spent:
        """Return what has passed since the last lap."""
        now = time.perf_counter()
        spent, self._since = now - self._since, now
        return Spent(phase, spent)


def capture_environment(device_names: Sequence[str]) -> Iterator[Message]:
    """Yield the environment as a measuring process sees it."""
    yield environment.capture(device_names)


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
    clock = StepTime(device.synchronize, time.perf_counter_ns, flush)
    rng = random.Random(f"{plan.seed} {cells[0].block}")
    warmth = warm_up(arms, clock, plan=plan, rng=rng)
    typical = min(warmth.typical_ns)
    yield watch.lap("warm-up")
    splits = read_clocks(
        arms,
        device,
        wanted,
        flush=flush,
        iterations=calibrate(typical, batch_target(cells[0], device)),
        step_ns=typical,
        plan=plan,
        rng=rng,
    )
    for arm, split in zip(arms, splits, strict=True):
        yield from _further(arm, split.figures)
    if "step_time" in wanted:
        warming = {"warmup_rounds": warmth.rounds, "warmup_steady": warmth.steady}
        known = [{**split.notes, **warming} for split in splits]
        yield from step_times(arms, clock, device, known, typical_ns=typical, plan=plan, rng=rng)
    yield watch.lap("timing")
    if "latency" in wanted:
        yield from latencies(arms, clock, device, typical_ns=typical, plan=plan, rng=rng)
        yield watch.lap("latency")


def step_times(
    arms: Sequence[CellArm],
    clock: StepTime,
    device: Device,
    known: Sequence[Mapping[str, Fact]],
    *,
    typical_ns: float,
    plan: Plan,
    rng: random.Random,
) -> Iterator[Message]:
    """Yield each arm's batches; notes say what is ``known``, and what may have spoilt them."""
    monitor, target_ns = device.monitor(), batch_target(arms[0].cell, device)
    with Surroundings() as surroundings:
        rounds = interleave(
            arms,
            clock,
            iterations=calibrate(typical_ns, target_ns),
            target_ns=target_ns,
            step_ns=typical_ns,
            plan=plan,
            rng=rng,
            between=monitor.sample,
        )
    batches = len(arms) * len(rounds.iterations)
    for arm, values, told in zip(arms, rounds.batch_ns, known, strict=True):
        yield _timed(
            arm,
            "step_time",
            values,
            rounds.iterations,
            {
                "stopped_by": rounds.stopped,
                "half_width": round(rounds.precision, 6),
                "minor_faults_per_step": minor_faults(arm),
                **surroundings.notes(batches),
                **monitor.notes(),
                **told,
            },
        )


def latencies(
    arms: Sequence[CellArm],
    clock: StepTime,
    device: Device,
    *,
    typical_ns: float,
    plan: Plan,
    rng: random.Random,
) -> Iterator[Message]:
    """Yield each arm's single calls, interleaved; a share of the budget, as many as it holds."""
    budget_s = plan.budget_s * LATENCY_SHARE
    single = replace(plan, budget_s=budget_s, precision_short=NEVER, precision_long=NEVER)
    rounds = interleave(
        arms,
        clock,
        iterations=1,
        target_ns=device.batch_ns,
        step_ns=typical_ns,
        plan=single,
        rng=rng,
        recalibrating=False,
    )
    for arm, values in zip(arms, rounds.batch_ns, strict=True):
        yield _timed(arm, "latency", values, rounds.iterations, {})


def batch_target(cell: Cell, device: Device) -> int:
    """Return the length of a batch in ns; 0, a single step, where it must find a cold cache."""
    return device.batch_ns if cell.l2 == "hot" else 0


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


def try_to_build(cell: Cell, model: Model, device: Device, *, seed: int) -> Subject | Refusal:
    """Build the subject, or return why that is impossible."""
    try:
        return build(cell, model, seed=seed)
    except Exception as error:  # noqa: BLE001 # a user's factory may raise anything
        return refusal(error, device)


def attempt(arm: CellArm, device: Device, count: int) -> Refusal | None:
    """Step a few times; return why that is impossible, in torch's words, or None."""
    try:
        steps(arm, count)
        device.synchronize()
    except Exception as error:  # noqa: BLE001 # a step may raise anything: it is the outcome
        if isinstance(error, RuntimeError) and must_fail(arm.workload.name, arm.mode.name):
            return "cannot_train", str(error)
        return refusal(error, device)
    return None


def refusal(error: Exception, device: Device) -> Refusal:
    """Return an exception as a cause and one line of words."""
    words = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return ("out_of_memory" if device.out_of_memory(error) else "failed"), words


def minor_faults(arm: CellArm) -> float:
    """Return page faults served without a disk per step; timing wants none."""
    with arm.held():
        arm.step()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(FAULT_STEPS):
            arm.step()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / FAULT_STEPS


def settle(cell: Cell) -> Device:
    """Fix threads, cores and backend settings of this process."""
    torch.set_num_threads(cell.threads)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-cell.threads :])  # the first cores serve most interrupts
    device = devices.find(cell.device)
    device.prepare()
    return device


def skip(cell: Cell, meter: str, why: Refusal) -> Skipped:
    """Return the outcome of a meter that has no number."""
    cause, reason = why
    return Skipped(cell=cell, meter=meter, cause=cause, reason=reason)
