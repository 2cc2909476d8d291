"""What a model is asked inside the guard: to be built, to step; and why it could not."""

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, NamedTuple, TypeVar

import torch
from torch import nn

from .. import devices
from ..devices import Device, Unreadable, nothing
from ..errors import DeviceUnavailable, GradbenchError, in_one_line, kind_of, message_line, speaking
from ..experiment.matrix import RECORDING, Cell
from ..plurals import counted
from ..records.measurements import (
    Breakdown,
    Cause,
    Environment,
    Measurement,
    Reading,
    Skipped,
)
from ..users_traceback import users_traceback
from ..workloads.arms import CellArm, build, make_arm, steps
from ..workloads.models import Model
from ..workloads.module_parts import named_parts
from ..workloads.steps import Subject, is_over_the_call, says_the_mode
from ..workloads.trees import tensors
from . import environment, host_system, ranks
from .fork_server import WorkerDied
from .held_alone import step_cores
from .memory_guard import GrowingMemory
from .process_settings import ProcessSettings

T = TypeVar("T")

TRIAL_STEPS: Final = 2


class Refusal(NamedTuple):
    """Why a cell, or a figure of it, could not be had."""

    cause: Cause
    reason: str
    traceback: str = ""  # of the user's own frames


@dataclass(frozen=True, slots=True)
class Trying:
    """Sent before a cell's first step, so that a process that ends is charged to that cell."""

    cell: Cell


@dataclass(frozen=True, slots=True)
class Spent:
    """Sent when a phase is over."""

    phase: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Sent while rounds are made: what there is of them, should the process come to no end."""

    measurement: Measurement


Message = Trying | Spent | Unfinished | Reading | Environment


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
    if len(set(device_names)) == 1:  # or what one hides would be missing of another
        os.environ.update(devices.find(device_names[0]).environment)
    yield environment.capture(device_names)


def guarded(function: Callable[[], T], device: Device) -> T | Refusal:
    """Return what a function returns that runs the user's code, or why it came to no end.

    Whatever it raises: a model may even exit, and that is the outcome of this cell, not of the
    process. Only `Unreadable`, which is ours, is raised. Ranks meet here: all go on, or none does.
    """
    over = f"{_name(function)} is over"
    try:
        result = function()
    except Unreadable:
        ranks.agree(over)
        raise
    except BaseException as error:  # noqa: BLE001 # a model may raise anything, SystemExit included
        why = refusal(error, device)
        ranks.agree(over, refused=why.reason)
        return why
    ranks.agree(over)
    return result


def _name(function: Callable[[], object]) -> str:
    """Return what a function is called, or the one that a partial is of."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__qualname__)


def try_to_build(
    cell: Cell,
    model: Model,
    device: Device,
    *,
    seed: int,
    settings: ProcessSettings | None = None,
) -> Subject | Refusal:
    """Build the subject, or return why that is impossible.

    What the model's own package sets on the way, threads and cores, is put right: to ``settings``,
    or to what they are now.
    """

    def built() -> Subject:
        before = settings or ProcessSettings.now()
        subject = build(cell, model, seed=seed)
        notes = before.notes(ProcessSettings.now(), who="model_set")
        before.put_right()
        device.set_precision(cell.precision)
        return replace(subject, notes={**subject.notes, **notes})

    return guarded(built, device)


def try_to_arm(cell: Cell, subject: Subject, device: Device) -> CellArm | Refusal:
    """Make the cell's step, or return why that is impossible: nothing to optimize, say."""
    return guarded(partial(make_arm, cell, subject), device)


def attempt(
    arm: CellArm, device: Device, count: int, *, put_back: Callable[[], object] = nothing
) -> Refusal | None:
    """Step a few times; return why that is impossible, in torch's words, or None.

    Where the mode records nothing, training must fail, and may after an evaluation inside it, by
    torch's own words for that; but only if the same step, with the module ``put_back``, works where
    a graph is recorded is the mode the reason.
    """
    try:
        steps(arm, count)
        device.synchronize()
    except BaseException as error:  # noqa: BLE001 # a step may raise anything: it is the outcome
        why = refusal(error, device)
        ranks.agree(f"steps of {arm.cell.grad_mode}", refused=why.reason)
        by_mode = says_the_mode(arm.workload.name, arm.mode.name, speaking(error))
        if ranks.any_of("the mode is not why", not by_mode):
            called = _with_call(why, error, arm.subject)
            return _with_cure(called) if arm.mode.records else called
        with_graph = guarded(partial(_step_with_graph, arm, device, put_back), device)
        if with_graph is None:
            return Refusal("cannot_train", message_line(error))
        there = _with_cure(with_graph).reason
        more = there.removeprefix(why.reason) if there.startswith(why.reason) else f": {there}"
        return Refusal("failed", f"{why.reason}; under {RECORDING}, too{more}")
    ranks.agree(f"steps of {arm.cell.grad_mode}")
    return None


CURES: Final = {
    "backward through the graph a second time": "what one step keeps is in the next one's "
    "graph: detach() what the model or the batch function keeps",
    "does not require grad and does not have a grad_fn": "its loss is detached, or every parameter "
    "that it depends on is frozen",
}
"""Words of torch that say what is wrong, and not why: what it is in a step that was to work."""


def _with_cure(why: Refusal) -> Refusal:
    """Return the reason with what is to be done about it, where torch's words tell that."""
    for words, cure in CURES.items():
        if words in why.reason:
            start, _, _ = why.reason.partition(" (or directly")  # the rest is on retain_graph
            return why._replace(reason=f"{start}: {cure}")
    return why


def _with_call(why: Refusal, error: BaseException, subject: Subject) -> Refusal:
    """Return the reason with what the model was called with, where that may not fit it."""
    if why.cause != "failed" or not is_over_the_call(error):
        return why
    said = [f"called with {subject.batch}"]
    if "unexpected keyword argument" in why.reason and not subject.batch.args:
        said.append("where forward takes the dict itself, the batch is a tuple of it: (dict,)")
    said += _of_indices(subject) if isinstance(error, IndexError) else []
    return why._replace(reason=f"{why.reason} ({'; '.join(said)})")


def _of_indices(subject: Subject) -> Iterator[str]:
    """Yield which embeddings have no row for a batch's whole numbers, or for a vocabulary.

    The numbers themselves are random: to say them would make a reason of each pass.
    """
    batch = subject.batch
    numbers = [
        one
        for _, one in tensors((batch.args, batch.kwargs))
        if one.numel()
        and not (one.is_floating_point() or one.is_complex() or one.dtype == torch.bool)
    ]
    highest = max((int(one.max()) for one in numbers), default=-1)
    if subject.generation is not None:
        yield f"the vocabulary of its Generation is {subject.generation.vocabulary:,}"
        highest = max(highest, subject.generation.vocabulary - 1)
    rows = {
        f"{path} {type(part).__name__}".strip(): part.num_embeddings
        for path, part in named_parts(subject.module)
        if isinstance(part, nn.Embedding | nn.EmbeddingBag)
    }
    for name, count in rows.items():
        if count <= highest or subject.generation is not None:
            yield f"{name} has {counted(count, 'row')}"


def _step_with_graph(
    arm: CellArm, device: Device, put_back: Callable[[], object]
) -> Refusal | None:
    other = put_back()
    if isinstance(other, Refusal):
        return other
    subject = other if isinstance(other, Subject) else arm.subject
    steps(make_arm(replace(arm.cell, grad_mode=RECORDING), subject), 1)
    device.synchronize()
    return None


def refusal(error: BaseException, device: Device) -> Refusal:
    """Return what was raised as a cause and one line of words.

    Raise `WorkerDied` where the device is lost with it: what comes after would fail in its words.
    """
    try:
        return _described(error, device)
    except WorkerDied:
        raise
    except BaseException as another:  # noqa: BLE001 # its class may answer anything, or raise
        return Refusal("failed", f"{kind_of(error)}, which raises {kind_of(another)} when asked")


def _described(error: BaseException, device: Device) -> Refusal:
    error = speaking(error)
    words = in_one_line(error)
    if isinstance(error, GrowingMemory):
        return Refusal("out_of_memory", message_line(error))
    if device.out_of_memory(error):
        return Refusal("out_of_memory", words)
    if device.occupied(words):
        return Refusal("unavailable", f"{words}: another process has {device.name} to itself")
    if device.lost(error):
        raise WorkerDied("crashed", f"left without its device by {words}") from error
    if isinstance(error, DeviceUnavailable):
        return Refusal("unavailable", message_line(error))
    if isinstance(error, GradbenchError):
        return Refusal("impossible", message_line(error))
    return Refusal("failed", words, users_traceback(error))


def survived(
    messages: Iterator[Message], cells: Sequence[Cell], wanted: Collection[str]
) -> Iterator[Message]:
    """Pass a job's messages on; where memory runs out, give each missing outcome that reason.

    Between the steps that are tried, too, it may run out: in a round, in a buffer of our own. So
    may another process have the device, which shows when this one first asks for it.
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
        if why.cause not in ("out_of_memory", "unavailable"):
            raise
        ranks.agree("a pass ends early", refused=why.reason)
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
    near = near_cores(device, host_system.usable_cores())
    rank = ranks.here()
    if rank is not None:  # all of its share: what waits for other ranks has threads of its own
        host_system.bind(rank.own_share(near))
        return device
    host_system.bind(step_cores(cell, near))
    return device


def near_cores(device: Device, usable: Sequence[int]) -> list[int]:
    """Return those of the usable cores that are near the device, or all where none is known."""
    try:
        near = device.local_cores().intersection(usable)
    except Unreadable:
        near = frozenset()
    return sorted(near or usable)


@dataclass(frozen=True, slots=True)
class DeviceSite:
    """Where a device is on this host."""

    lock_name: str  # what every process of the host calls it
    cores: frozenset[int] | None  # of its own NUMA node, None where the system does not say


def find_site(device_name: str) -> Iterator[DeviceSite]:
    """Yield where a device is: asked in a process that ends, for the driver may start to answer."""
    device = devices.find(device_name)
    device.check()
    cores: frozenset[int] | None = None
    with suppress(Unreadable):
        cores = device.local_cores()
    yield DeviceSite(device.lock_name(), cores)


def skip(cell: Cell, meter: str, why: Refusal) -> Skipped:
    """Return the outcome of a meter that has no number."""
    return Skipped(
        cell=cell, meter=meter, cause=why.cause, reason=why.reason, traceback=why.traceback
    )
