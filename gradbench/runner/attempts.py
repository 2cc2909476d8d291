"""What a model is asked inside the guard: to be built, to step; and why it could not."""

import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from .. import devices
from ..devices import Device
from ..experiment.matrix import Cell
from ..records.measurements import (
    Breakdown,
    Cause,
    Environment,
    Measurement,
    Reading,
    Skipped,
)
from ..workloads.arms import CellArm, build, steps
from ..workloads.models import Model
from ..workloads.steps import Subject, must_fail
from . import environment
from .fork_server import WorkerDied

Refusal = tuple[Cause, str]


TRIAL_STEPS = 2
THREADS: Final = Path("/proc/self/task")


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
    if set(device_names) <= {"cpu"}:
        os.environ.update(devices.find("cpu").environment)
    yield environment.capture(device_names)


def try_to_build(cell: Cell, model: Model, device: Device, *, seed: int) -> Subject | Refusal:
    """Build the subject, or return why that is impossible."""
    try:
        subject = build(cell, model, seed=seed)
        device.set_precision(cell.precision)
        return subject
    except Exception as error:  # noqa: BLE001 # a user's factory may raise anything
        return refusal(error, device)


def attempt(arm: CellArm, device: Device, count: int) -> Refusal | None:
    """Step a few times; return why that is impossible, in torch's words, or None."""
    try:
        steps(arm, count)
        device.synchronize()
    except Exception as error:  # noqa: BLE001 # a step may raise anything: it is the outcome
        why = refusal(error, device)
        if (
            why[0] == "failed"
            and isinstance(error, RuntimeError)
            and must_fail(arm.workload.name, arm.mode.name)
        ):
            return "cannot_train", str(error)
        return why
    return None


def refusal(error: Exception, device: Device) -> Refusal:
    """Return an exception as a cause and one line of words.

    Raise `WorkerDied` where the device is lost with it: what comes after would fail in its words.
    """
    words = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    if device.out_of_memory(error):
        return "out_of_memory", words
    if device.lost(error):
        raise WorkerDied("crashed", f"left without its device by {words}") from error
    return "failed", words


def survived(
    messages: Iterator[Message], cells: Sequence[Cell], wanted: Collection[str]
) -> Iterator[Message]:
    """Pass a job's messages on; where memory runs out, give each missing outcome that reason.

    Between the steps that are tried, too, it may run out: in a round, in a buffer of our own.
    """
    given: set[tuple[Cell, str]] = set()
    try:
        for message in messages:
            if isinstance(message, Measurement | Breakdown | Skipped):
                given.add((message.cell, message.meter))
            yield message
    except Exception as error:
        device = devices.find(cells[0].device)
        why = refusal(error, device)
        if why[0] != "out_of_memory":
            raise
        yield from (
            skip(cell, name, why) for cell in cells for name in wanted if (cell, name) not in given
        )


def settle(cell: Cell) -> Device:
    """Fix the environment, threads, backend settings and cores of this process.

    Cores last, and for every thread: a device may have started some, which would keep the others.
    """
    device = devices.find(cell.device)
    os.environ.update(device.environment)
    torch.set_num_threads(cell.threads)
    device.prepare()
    near = device.near_cores(os.sched_getaffinity(0))
    cores = near[-(cell.threads + device.spare_cores) :]  # the first serve most interrupts
    for thread in THREADS.iterdir():
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)
    return device


def skip(cell: Cell, meter: str, why: Refusal) -> Skipped:
    """Return the outcome of a meter that has no number."""
    cause, reason = why
    return Skipped(cell=cell, meter=meter, cause=cause, reason=reason)
