"""Hands blocks to machines: each where its device is, again elsewhere where it is lost, or never.

What a machine is, and how one is asked, is the cluster's matter (`Fleet`); when a block is given up
is decided here, by our own clock: a scheduler lets a task whose resource is gone wait for ever.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..plurals import counted
from ..records.measurements import Cause
from .jobs import BlockJob, BlockResult

TRIES: Final = 3
"""How often a block is begun before what became of it is its reason."""
REFRESH_S: Final = 2.0
"""Between two looks at which machines there are."""


class Slot(Protocol):
    """A place on a machine where one block is measured at a time."""

    @property
    def machine(self) -> str:
        """The machine's name in the cluster."""

    @property
    def host(self) -> str:
        """The machine's name for people."""

    def taken(self) -> bool:
        """Whether the cluster has given it to us and blocks can come; raise `SlotLost`."""

    def submit(self, job: BlockJob) -> None:
        """Have a block measured."""

    def result(self) -> BlockResult | None:
        """Return what came of it, None while it is measured; raise `SlotLost`."""

    def leave(self) -> None:
        """Give the place back, and end what it runs."""


class Fleet(Protocol):
    """The machines of a cluster."""

    def machines(self) -> dict[str, frozenset[str]]:
        """Return the machines that are alive, each with the resources that it has; "" is a CPU."""

    def slots(self, machine: str, resource: str) -> list[Slot]:
        """Ask for all places that a machine has for blocks that need the resource."""

    def pause(self, slots: Sequence[Slot]) -> None:
        """Wait a moment, or until a slot has something to say."""


class SlotLost(Exception):
    """What ran on a slot is gone, or can never run; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """A block that is measured nowhere, and why."""

    cause: Cause
    reason: str


@dataclass(slots=True)
class _Waiting:
    """A block to be measured, and what became of it so far."""

    job: BlockJob
    resource: str
    since_s: float  # when it was last seen that it could be measured somewhere
    lost_on: list[str] = field(default_factory=list)  # machines
    whys: list[str] = field(default_factory=list)
    cause: Cause = "crashed"


@dataclass(slots=True)
class _Place:
    """A slot of ours, and the block that it measures."""

    slot: Slot
    resource: str
    asked_s: float
    ready: bool = False
    block: _Waiting | None = None


class Dispatcher:
    """Measures blocks on a fleet, all slots at once; use `results` once."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        resource_of: Callable[[BlockJob], str],
        wait_s: float,
        tries: int = TRIES,
        say: Callable[[BlockJob, str, int], None] = lambda *_: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._resource_of = fleet, resource_of
        self._wait_s, self._tries, self._say, self._now = wait_s, tries, say, now
        self._waiting: list[_Waiting] = []
        self._places: list[_Place] = []
        self._machines: dict[str, frozenset[str]] = {}
        self._not_had: dict[tuple[str, str], list[str]] = {}  # why slots could not be had
        self._lost_starts: Counter[tuple[str, str]] = Counter()
        self._looked_s = float("-inf")

    def results(self, jobs: Sequence[BlockJob]) -> Iterator[tuple[BlockJob, BlockResult | GivenUp]]:
        """Yield what came of each block, in the order in which they come back."""
        begun_s, total = self._now(), len(jobs)
        self._waiting = [_Waiting(job, self._resource_of(job), begun_s) for job in jobs]
        done = 0
        try:
            while self._waiting or any(place.block for place in self._places):
                self._look_around()
                for job, outcome in list(self._outcomes()):
                    done += 1
                    yield job, outcome
                self._hand_out(done)
                if total > done:
                    self._fleet.pause([place.slot for place in self._places])
        finally:
            with ExitStack() as stack:  # each is left, whatever leaving another raises
                for place in self._places:
                    stack.callback(place.slot.leave)
            self._places = []

    def _outcomes(self) -> Iterator[tuple[BlockJob, BlockResult | GivenUp]]:
        yield from self._collected()
        yield from self._given_up()

    def _look_around(self) -> None:
        """Ask for slots where a machine has none of ours, for accelerators first."""
        if self._now() - self._looked_s < REFRESH_S:
            return
        self._looked_s, self._machines = self._now(), self._fleet.machines()
        for place in list(self._places):
            if place.slot.machine not in self._machines:
                self._lose(place, "the machine left the cluster")
        wanted = sorted({one.resource for one in self._waiting}, reverse=True)
        for machine, has in self._machines.items():
            if any(place.slot.machine == machine for place in self._places):
                continue
            for resource in wanted:
                if resource in has and self._lost_starts[machine, resource] < self._tries:
                    slots = self._fleet.slots(machine, resource)
                    self._places += [_Place(slot, resource, self._now()) for slot in slots]
                    break

    def _collected(self) -> Iterator[tuple[BlockJob, BlockResult]]:
        for place in list(self._places):
            try:
                if not place.ready:
                    place.ready = place.slot.taken()
                    self._drop_where_late(place)
                    if place.ready:
                        self._not_had.pop((place.slot.machine, place.resource), None)
                result = place.slot.result() if place.block is not None else None
            except SlotLost as lost:
                self._lose(place, str(lost))
                continue
            block = place.block
            if result is None or block is None:
                continue
            place.block = None
            if result.trouble:
                self._again(block, place.slot, result.why, busy=result.trouble == "busy")
                if result.trouble == "lost":
                    self._drop(place)
            else:
                yield block.job, result

    def _drop_where_late(self, place: _Place) -> None:
        """Give back a slot that the cluster does not let us have: others use what it needs."""
        if not place.ready and self._now() - place.asked_s > self._wait_s:
            self._not_got(place, f"was in use by others for {self._wait_s:g} s")
            self._drop(place)

    def _lose(self, place: _Place, why: str) -> None:
        if place.block is not None:
            self._again(place.block, place.slot, why, busy=False)
        elif not place.ready:
            self._not_got(place, why)
            self._lost_starts[place.slot.machine, place.resource] += 1
        self._drop(place)

    def _not_got(self, place: _Place, why: str) -> None:
        whys = self._not_had.setdefault((place.slot.machine, place.resource), [])
        whys.append(f"{place.slot.host}: {why}")

    def _again(self, block: _Waiting, slot: Slot, why: str, *, busy: bool) -> None:
        block.lost_on.append(slot.machine)
        block.whys.append(f"{slot.host}: {why}")
        block.cause = "unavailable" if busy else "crashed"
        block.since_s = self._now()
        self._waiting.append(block)

    def _drop(self, place: _Place) -> None:
        place.slot.leave()
        self._places.remove(place)
        self._looked_s = float("-inf")

    def _given_up(self) -> Iterator[tuple[BlockJob, GivenUp]]:
        for block in list(self._waiting):
            if len(block.lost_on) >= self._tries:
                times = counted(len(block.lost_on), "time")
                reason = f"begun {times}, the last on {block.whys[-1]}"
                yield self._give_up(block, GivenUp(cause=block.cause, reason=reason))
                continue
            if any(place.resource == block.resource and place.ready for place in self._places):
                block.since_s = self._now()
            elif self._now() - block.since_s > self._wait_s:
                reason = self._nowhere(block)
                yield self._give_up(block, GivenUp(cause="unavailable", reason=reason))

    def _give_up(self, block: _Waiting, why: GivenUp) -> tuple[BlockJob, GivenUp]:
        self._waiting.remove(block)
        return block.job, why

    def _nowhere(self, block: _Waiting) -> str:
        what = f"with a {block.resource}" if block.resource else "with a CPU"
        said = [whys[-1] for key, whys in self._not_had.items() if key[1] == block.resource]
        words = f"no machine of the cluster {what} could be had for {self._wait_s:g} s"
        return f"{words}: {'; '.join(dict.fromkeys([*said, *block.whys]))}".rstrip(": ")

    def _hand_out(self, done: int) -> None:
        """Give each free slot a block, one that was not lost on its machine where there is one."""
        for place in list(self._places):
            if not place.ready or place.block is not None:
                continue
            fitting = [one for one in self._waiting if one.resource == place.resource]
            if not fitting:  # its machine may serve blocks of another kind
                self._drop(place)
                continue
            block = next((one for one in fitting if self._may_go(one, place)), None)
            if block is not None:
                self._waiting.remove(block)
                place.block = block
                self._say(block.job, place.slot.host, done)
                place.slot.submit(block.job)

    def _may_go(self, block: _Waiting, place: _Place) -> bool:
        """Say whether a block may be begun on a slot: not where it was lost, if others are left.

        Others that could not be had are none: they might never be, and nobody would give it up.
        """
        others = {
            machine
            for machine, has in self._machines.items()
            if block.resource in has and (machine, block.resource) not in self._not_had
        }
        return place.slot.machine not in block.lost_on or others <= set(block.lost_on)
