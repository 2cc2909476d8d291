"""What happens inside a measuring process: one block (or one cell of it), read by one pass."""

import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import psutil
import torch
from torch import Tensor, nn

from .. import devices, environment, meters
from ..devices import Device, Unreadable
from ..matrix import Cell
from ..meters import METERS, StepTime
from ..models import Model
from ..modes import MODES, GradMode
from ..plan import Plan
from ..records import Cause, Environment, Measurement, Outcome, Skipped
from ..workloads import WORKLOADS, Step, Subject, Workload, must_fail
from .interleave import calibrate, interleave, warm_up

Refusal = tuple[Cause, str]

TRIAL_STEPS = 2
FAULT_STEPS = 10


@dataclass(frozen=True, slots=True)
class Trying:
    """Sent before a cell's first step, so that a death can be laid at its door."""

    cell: Cell


@dataclass(frozen=True, slots=True)
class Spent:
    """Sent when a phase is over."""

    phase: str
    seconds: float


Message = Trying | Spent | Outcome | Environment


@dataclass(frozen=True, slots=True)
class CellArm:
    """A cell made runnable."""

    cell: Cell
    step: Step
    mode: GradMode
    workload: Workload

    def held(self) -> AbstractContextManager[object]:
        """Return the context to hold around steps."""
        return nullcontext() if self.cell.entry == "per_call" else self.workload.held(self.mode)


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


def time_block(cells: Sequence[Cell], model: Model, plan: Plan) -> Iterator[Message]:
    """Yield the interleaved step times of a block's cells."""
    watch, device = Stopwatch(), _settle(cells[0])
    subject = try_to_build(cells[0], model, device, seed=plan.seed)
    yield watch.lap("build")
    if not isinstance(subject, Subject):
        yield from (_skip(cell, "step_time", subject) for cell in cells)
        return
    arms = []
    for cell in cells:
        yield Trying(cell)
        arm = make_arm(cell, subject)
        refused = attempt(arm, device, TRIAL_STEPS)
        if refused is None:
            arms.append(arm)
        else:
            yield _skip(cell, "step_time", refused)
    if not arms:
        yield watch.lap("warm-up")
        return
    clock = StepTime(device.synchronize, time.perf_counter_ns)
    rng = random.Random(f"{plan.seed} {cells[0].block}")
    typical = min(warm_up(arms, clock, plan=plan, rng=rng))
    iterations = calibrate(typical, device.batch_ns)
    yield watch.lap("warm-up")
    before, load = resource.getrusage(resource.RUSAGE_SELF), psutil.getloadavg()[0]
    rounds = interleave(arms, clock, iterations=iterations, step_ns=typical, plan=plan, rng=rng)
    after = resource.getrusage(resource.RUSAGE_SELF)
    yield watch.lap("timing")
    for arm, values in zip(arms, rounds.batch_ns, strict=True):
        yield Measurement(
            cell=arm.cell,
            meter="step_time",
            unit=METERS["step_time"].unit,
            values=tuple(values),
            iterations=iterations,
            exact=METERS["step_time"].exact,
            notes={
                "stopped_by": rounds.stopped,
                "half_width": round(rounds.precision, 6),
                "load": round(load, 2),
                "involuntary_switches": after.ru_nivcsw - before.ru_nivcsw,
                "minor_faults_per_step": minor_faults(arm),
            },
        )
    yield watch.lap("timing")


def memory_block(cells: Sequence[Cell], model: Model, plan: Plan) -> Iterator[Message]:
    """Yield the exact figures of a block's cells: allocator peaks, bytes saved for backward."""
    watch, device = Stopwatch(), _settle(cells[0])
    names = [meter.name for meter in METERS.values() if meter.read_in == "memory"]
    try:
        ledger = device.ledger()
    except Unreadable as reason:
        for cell in cells:
            for name in names:
                yield _skip(cell, name, ("unreadable", str(reason)))
        return
    subject, _ = ledger.observe(partial(try_to_build, cells[0], model, device, seed=plan.seed))
    yield watch.lap("build")
    if not isinstance(subject, Subject):
        yield from (_skip(cell, name, subject) for cell in cells for name in names)
        return
    for cell in cells:
        yield Trying(cell)
        arm, _ = ledger.observe(partial(make_arm, cell, subject))
        refused, _ = ledger.observe(partial(attempt, arm, device, TRIAL_STEPS))
        if refused is not None:
            for name in names:
                yield _skip(cell, name, refused)
            continue
        ledger.observe(subject.clear_gradients)
        _, window = ledger.observe(partial(steps, arm, 1))
        figures = meters.allocator_figures(window)
        with arm.held():
            saved, _ = ledger.observe(partial(_saved_bytes, arm.step, subject.resident()))
        ledger.observe(subject.clear_gradients)
        for name, figure in (figures | {"saved_for_backward": saved}).items():
            yield _outcome(cell, name, figure)
    yield watch.lap("memory passes")


def process_cells(cells: Sequence[Cell], model: Model, plan: Plan) -> Iterator[Message]:
    """Yield the resident high-water mark of the cells, one after the other in this process."""
    watch, device = Stopwatch(), _settle(cells[0])
    subject = try_to_build(cells[0], model, device, seed=plan.seed)
    yield watch.lap("build")
    if not isinstance(subject, Subject):
        yield from (_skip(cell, "peak_rss", subject) for cell in cells)
        return
    for cell in cells:
        yield Trying(cell)
        arm = make_arm(cell, subject)
        refused = attempt(arm, device, TRIAL_STEPS)
        if refused is not None:
            yield _skip(cell, "peak_rss", refused)
            continue
        subject.clear_gradients()
        with arm.held():
            try:
                figure: int | Unreadable = meters.peak_rss(arm.step, steps=TRIAL_STEPS)
            except Unreadable as reason:
                figure = reason
        yield _outcome(cell, "peak_rss", figure)
    yield watch.lap("memory passes")


def build(cell: Cell, model: Model, *, seed: int) -> Subject:
    """Return the block's one model and one batch, the same for every process of the seed."""
    torch.manual_seed(seed)
    dtype = getattr(torch, cell.dtype)
    layout = torch.channels_last if cell.memory_format == "channels_last" else None
    module = model.build().to(cell.device, dtype)
    x, y = model.batch(cell.batch_size)
    x = x.to(cell.device, dtype if x.is_floating_point() else None)
    y = y.to(cell.device)
    if layout is not None:
        module = module.to(memory_format=layout)  # type: ignore[call-overload] # torch's stub lacks it
        x = x.contiguous(memory_format=layout)
    head = None
    if WORKLOADS[cell.workload].splits_head and model.head is not None:
        head = module.get_submodule(model.head)
        module.set_submodule(model.head, nn.Identity())
    forward: Callable[[Tensor], Tensor] = module
    if cell.compile == "on":
        forward = torch.compile(module)
    return Subject(module, forward, x, y, model.loss, head)


def make_arm(cell: Cell, subject: Subject) -> CellArm:
    """Return the cell's step over the shared subject."""
    workload, mode = WORKLOADS[cell.workload], MODES[cell.grad_mode]
    step = workload.prepare(subject, mode)
    if cell.entry == "per_call":
        step = entering(mode, step)
    return CellArm(cell, step, mode, workload)


def entering(mode: GradMode, step: Step) -> Step:
    """Return a step that enters the mode itself, as code does that holds no mode around it."""
    enter = mode.enter

    def entered() -> None:
        with enter():
            step()

    return entered


def steps(arm: CellArm, count: int) -> None:
    """Step a few times in the arm's mode and keep nothing."""
    with arm.held():
        for _ in range(count):
            arm.step()


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


def _saved_bytes(step: Step, resident: Sequence[Tensor]) -> int | Unreadable:
    try:
        return meters.saved_for_backward(step, resident)
    except Exception as error:  # noqa: BLE001 # hooks meet any code, compiled graphs included
        return Unreadable(f"saved-tensor hooks do not work here: {type(error).__name__}: {error}")


def _settle(cell: Cell) -> Device:
    """Fix threads, cores and backend settings of this process."""
    torch.set_num_threads(cell.threads)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-cell.threads :])  # the first cores serve most interrupts
    device = devices.find(cell.device)
    device.prepare()
    return device


def _outcome(cell: Cell, name: str, figure: int | Unreadable) -> Outcome:
    if isinstance(figure, Unreadable):
        return _skip(cell, name, ("unreadable", str(figure)))
    meter = METERS[name]
    return Measurement(
        cell=cell, meter=name, unit=meter.unit, values=(figure,), iterations=1, exact=meter.exact
    )


def _skip(cell: Cell, meter: str, why: Refusal) -> Skipped:
    cause, reason = why
    return Skipped(cell=cell, meter=meter, cause=cause, reason=reason)
