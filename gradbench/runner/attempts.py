"""What a model is asked inside the guard: to be built, to step; and why it could not."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from .. import devices
from ..devices import Device
from ..experiment.matrix import Cell
from ..records.measurements import Cause, Environment, Reading, Skipped
from ..workloads.arms import CellArm, build, steps
from ..workloads.models import Model
from ..workloads.steps import Subject, must_fail
from . import environment

Refusal = tuple[Cause, str]


TRIAL_STEPS = 2


@dataclass(frozen=True, slots=True)
class Trying:
    """Sent before a cell's first step, so that a process that ends is charged to that cell."""

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
