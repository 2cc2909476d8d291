"""Measures blocks of several accelerators at once, one at a time on each, on cores of its own.

A thread for each device has a bench of its own; what measures are its processes, which inherit
the thread's cores. Blocks of the CPU, and of ranks on several devices, are measured before, with
nothing beside them.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Self

from .. import devices
from ..experiment.matrix import Block, Cell
from ..experiment.plan import Plan
from ..records.measurements import Ended, Environment, Fact, Measurement, Reading
from ..workloads.models import MODELS, Model
from . import bench, held_alone, host_system, preflight
from .block_runner import BlockRunner, Listener, OneAfterAnother, Progress
from .core_shares import CoreShare, core_shares
from .meters import METERS
from .passes import PASSES

NOTE: Final = "measured_beside"
"""The note of a time with the devices on which blocks were measured meanwhile."""
END_S: Final = 10.0
"""How long a thread is waited for whose processes were ended."""
LOOK_S: Final = 0.2
"""Between two looks at such a thread, which may have started another process meanwhile."""


def here(
    cells: Iterable[Cell], *, plan: Plan, models: Mapping[str, Model], meters: Sequence[str]
) -> BlockRunner:
    """Return who measures these cells on this machine: several accelerators are used at once."""
    at_once = (cell for cell in cells if _takes_one(cell))
    names = [*dict.fromkeys(cell.device for cell in at_once)]
    if len(names) > 1:
        return SideBySide(names, plan=plan, models=models, meters=meters)
    return OneAfterAnother(plan=plan, models=models, meters=meters)


def _takes_one(cell: Cell) -> bool:
    """Whether a cell needs a device alone, and only one: ranks are on as many as they are."""
    return cell.world_size == 1 and devices.find(cell.device).exclusive


@dataclass(frozen=True, slots=True)
class _Doing:
    """A pass over a block begins, or waits for the device."""

    device: str
    block: Block
    doing: str


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """What a pass has read, and from when to when it had its device alone."""

    device: str
    outcomes: list[Reading]
    began_at_s: float
    ended_at_s: float


@dataclass(frozen=True, slots=True)
class _BlockEnded:
    """A block is measured, or had nothing left to read."""

    device: str
    block: Block


@dataclass(frozen=True, slots=True)
class _ThreadEnded:
    """A device has no more blocks, or an error has ended its thread."""

    device: str
    error: BaseException | None


_Event = _Doing | _Outcomes | _BlockEnded | _ThreadEnded
_ReadBlock = Callable[..., Iterator[list[Reading]]]


class _Beside:
    """Which devices had a block running at any time since a device's last outcomes."""

    def __init__(self) -> None:
        self._running: set[str] = set()
        self._since: dict[str, set[str]] = {}

    def begin(self, device: str) -> None:
        if device not in self._running:
            for other in self._running:
                self._since[other].add(device)
            self._since[device] = set(self._running)
            self._running.add(device)

    def end(self, device: str) -> None:
        self._running.discard(device)

    def take(self, device: str) -> list[str]:
        """Return them in order; from here on those count that run now."""
        others = sorted(self._since.get(device, ()))
        self._since[device] = self._running - {device}
        return others


class _Counts:
    """How many blocks have begun and ended, for whoever wants to hear it."""

    def __init__(self, total: int, progress: Listener | None) -> None:
        self._total, self._progress = total, progress
        self._begun: set[Block] = set()
        self._ended: set[Block] = set()

    def say(self, block: Block, doing: str) -> None:
        self._begun.add(block)
        if self._progress is not None:
            done, begun = len(self._ended), len(self._begun)
            self._progress(Progress(block, doing, done, self._total, begun))

    def end(self, block: Block) -> None:
        self._begun.add(block)
        self._ended.add(block)


class SideBySide:
    """Measures blocks of different accelerators at once; see `BlockRunner`."""

    def __init__(
        self,
        device_names: Sequence[str],
        *,
        plan: Plan,
        models: Mapping[str, Model] = MODELS,
        meters: Sequence[str] = preflight.DEFAULT_METERS,
    ) -> None:
        self._names, self._models = tuple(device_names), models
        make = partial(bench.Bench, plan=plan, models=models, meters=meters)
        self._common = make()
        self._own = {name: make() for name in self._names}
        self._shares: dict[str, CoreShare] = {}
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._threads: dict[str, threading.Thread] = {}
        self._began_at_s: dict[str, float] = {}  # what each device does now
        self._stopped = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self._common)  # which starts what it needs when it is asked
            stack.callback(self._stop)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def environment(self, device_names: Iterable[str]) -> Environment:
        """Return the facts of this machine and its devices, and which cores serve which."""
        captured = self._common.environment(device_names)
        near = {name: self._common.site(name).cores for name in self._names}
        usable = host_system.neighbours(host_system.usable_cores())
        self._shares = core_shares(near, usable)
        shares: dict[str, Fact] = {
            f"{name} own_cores": str(share) for name, share in self._shares.items()
        }
        if not shares:
            shares = {"own_cores": f"none: {len(usable)} for {len(near)} devices, one at a time"}
        return Environment(facts={**captured.facts, **shares})

    def measure(
        self,
        blocks: Mapping[Block, Sequence[Cell]],
        *,
        done: Collection[tuple[Cell, str]] = (),
        passes: Collection[str] = PASSES,
        progress: Listener | None = None,
    ) -> Iterator[Reading]:
        """Yield outcomes of blocks that are measured alone, then of all devices' as they come."""
        counts = _Counts(len(blocks), progress)
        at_once = {
            b: m for b, m in blocks.items() if b.cell.device in self._shares and _takes_one(b.cell)
        }
        for block, members in blocks.items():
            if block not in at_once:
                say = partial(counts.say, block)
                for outcomes in self._common.measure(members, done=done, passes=passes, say=say):
                    yield from outcomes
                counts.end(block)
        for members in at_once.values():  # what it looks up in forks, no thread may fork for
            for cell in members:
                preflight.obstacle(cell, self._models)
        for device, own in by_device(at_once).items():
            read = partial(self._own[device].measure, done=done, passes=passes)
            self._start(device, own, read)
        yield from self._gathered(counts)

    def ended(self) -> Ended:
        """Return where time went: of all benches together, which is more than passed."""
        ends = [one.ended() for one in (self._common, *self._own.values())]
        phases = dict.fromkeys(phase for end in ends for phase in end.seconds if phase != "harness")
        seconds = {
            phase: round(sum(end.seconds.get(phase, 0.0) for end in ends), 3) for phase in phases
        }
        passed = sum(ends[0].seconds.values()) * max(1, len(self._shares))
        harness = max(0.0, round(passed - sum(seconds.values()), 3))
        return Ended(seconds={**seconds, "harness": harness}, load_after=ends[0].load_after)

    def _start(self, device: str, blocks: Mapping[Block, Sequence[Cell]], read: _ReadBlock) -> None:
        thread = threading.Thread(
            target=self._measure_on, args=(device, blocks, read), name=device, daemon=True
        )
        self._threads[device] = thread
        thread.start()

    def _measure_on(
        self, device: str, blocks: Mapping[Block, Sequence[Cell]], read: _ReadBlock
    ) -> None:
        """Measure a device's blocks, in its thread, and say what happens to `_gathered`."""
        put, error = self._events.put, None
        try:
            host_system.bind_thread(self._shares[device].cores)
            self._own[device].__enter__()  # what it starts has this thread's cores
            for block, members in blocks.items():
                if self._stopped.is_set():
                    break
                self._began_at_s[device] = time.time()
                for outcomes in read(members, say=partial(self._doing, device, block)):
                    put(_Outcomes(device, outcomes, self._began_at_s[device], time.time()))
                put(_BlockEnded(device, block))
        except BaseException as raised:  # noqa: BLE001 # the thread that waits is to raise it
            error = raised
        put(_ThreadEnded(device, error))

    def _doing(self, device: str, block: Block, doing: str) -> None:
        """Say from a device's thread what it does from now on."""
        self._began_at_s[device] = time.time()
        self._events.put(_Doing(device, block, doing))

    def _gathered(self, counts: _Counts) -> Iterator[Reading]:
        """Yield what the devices' threads read, until all of them have ended."""
        beside = _Beside()
        while self._threads:
            match self._events.get():
                case _Doing(device, block, doing):
                    beside.begin(device)
                    counts.say(block, doing)
                case _Outcomes(device, outcomes, began_at_s, ended_at_s):
                    stay = held_alone.stay(began_at_s, ended_at_s)
                    yield from _noted(outcomes, stay, beside.take(device))
                case _BlockEnded(device, block):
                    beside.end(device)
                    counts.end(block)
                case _ThreadEnded(device, error):
                    self._threads.pop(device).join()
                    if error is not None:
                        raise error

    def _stop(self) -> None:
        """End what the devices' threads have started, wait for them, then close what they read."""
        self._stopped.set()
        for own in self._own.values():
            own.end()
        deadline = time.monotonic() + END_S
        for thread in self._threads.values():
            while thread.is_alive() and time.monotonic() < deadline:
                thread.join(LOOK_S)
                self._own[thread.name].end()  # it may have started one more
        for name, own in self._own.items():
            if name not in self._threads or not self._threads[name].is_alive():
                own.__exit__(None, None, None)


def by_device(
    blocks: Mapping[Block, Sequence[Cell]],
) -> dict[str, dict[Block, Sequence[Cell]]]:
    """Return the blocks of each device, in their order."""
    by_device: dict[str, dict[Block, Sequence[Cell]]] = {}
    for block, members in blocks.items():
        by_device.setdefault(block.cell.device, {})[block] = members
    return by_device


def _noted(
    outcomes: Iterable[Reading], stay: Mapping[str, Fact], others: Sequence[str]
) -> Iterator[Reading]:
    """Yield the outcomes: figures with when they were read, times with what ran meanwhile."""
    for outcome in outcomes:
        if not isinstance(outcome, Measurement):
            yield outcome
            continue
        notes = {**outcome.notes, **stay}
        if others and not outcome.exact and METERS[outcome.meter].read_in == "time":
            notes[NOTE] = ", ".join(others)
        yield replace(outcome, notes=notes)
