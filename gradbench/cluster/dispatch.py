"""Hands jobs to machines: each where its device is, again elsewhere where it is lost, or never.

What a machine is, and how one is asked, is the cluster's matter (`Fleet`); when a job is given up
is decided here, by our own clock: a scheduler lets a task whose resource is gone wait for ever.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from ..plurals import counted
from ..records.measurements import Cause
from .jobs import Answer, Job

J = TypeVar("J", bound=Job)

TRIES: Final = 3
"""How often a job is begun before what became of it is its reason."""
REFRESH_S: Final = 2.0
"""Between two looks at which machines there are."""


class Slot(Protocol):
    """A place on a machine where one job is done at a time."""

    @property
    def machine(self) -> str:
        """The machine's name in the cluster."""

    @property
    def host(self) -> str:
        """The machine's name for people."""

    def taken(self) -> bool:
        """Whether the cluster has given it to us and jobs can come; raise `SlotLost`."""

    def submit(self, job: Job) -> None:
        """Have a job done."""

    def result(self) -> Answer | None:
        """Return what came of it, None while it is done; raise `SlotLost`."""

    def leave(self) -> None:
        """Give the place back, and end what it runs."""


class Fleet(Protocol):
    """The machines of a cluster."""

    def machines(self) -> dict[str, frozenset[str]]:
        """Return the machines that are alive, each with the resources that it has; "" is a CPU."""

    def slots(self, machine: str, resource: str) -> list[Slot]:
        """Ask for all places that a machine has for jobs that need the resource."""

    def pause(self, slots: Sequence[Slot]) -> None:
        """Wait a moment, or until a slot has something to say."""


class SlotLost(Exception):
    """What ran on a slot is gone, or can never run; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """A job that is done nowhere, and why."""

    cause: Cause
    reason: str


@dataclass(slots=True)
class _Waiting(Generic[J]):
    """A job to be done, and what became of it so far."""

    job: J
    resource: str
    since_s: float  # when it was last seen that it could be done somewhere
    lost_on: list[str] = field(default_factory=list)  # machines
    whys: list[str] = field(default_factory=list)
    cause: Cause = "crashed"


@dataclass(slots=True)
class _Place(Generic[J]):
    """A slot of ours, and the job that is done there."""

    slot: Slot
    resource: str
    asked_s: float
    ready: bool = False
    given: _Waiting[J] | None = None


class Dispatcher(Generic[J]):
    """Has jobs done on a fleet, on all slots at once; use `results` once."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        resource_of: Callable[[J], str],
        wait_s: float,
        tries: int = TRIES,
        say: Callable[[J, str, int], None] = lambda *_: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._resource_of = fleet, resource_of
        self._wait_s, self._tries, self._say, self._now = wait_s, tries, say, now
        self._waiting: list[_Waiting[J]] = []
        self._places: list[_Place[J]] = []
        self._machines: dict[str, frozenset[str]] = {}
        self._not_had: dict[tuple[str, str], list[str]] = {}  # why slots could not be had
        self._lost_starts: Counter[tuple[str, str]] = Counter()
        self._looked_s = float("-inf")

    @property
    def outstanding(self) -> int:
        """How many jobs wait or are done at this moment."""
        return len(self._waiting) + sum(place.given is not None for place in self._places)

    def add(self, jobs: Sequence[J]) -> None:
        """Have further jobs done; while results are taken, too."""
        now_s = self._now()
        self._waiting += [_Waiting(job, self._resource_of(job), now_s) for job in jobs]

    def results(
        self, jobs: Sequence[J], *, over: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[J, Answer | GivenUp], None, None]:
        """Yield what came of each job, in the order in which they come back.

        Once it is ``over``, what is not back is given up without a word.
        """
        self.add(jobs)
        ended = 0
        try:
            while self.outstanding and not over():
                self._look_around()
                for job, outcome in list(self._outcomes()):
                    ended += 1
                    yield job, outcome
                self._hand_out(ended)
                if self.outstanding:
                    self._fleet.pause([place.slot for place in self._places])
        finally:
            with ExitStack() as stack:  # each is left, whatever leaving another raises
                for place in self._places:
                    stack.callback(place.slot.leave)
            self._places = []

    def _outcomes(self) -> Iterator[tuple[J, Answer | GivenUp]]:
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

    def _collected(self) -> Iterator[tuple[J, Answer]]:
        for place in list(self._places):
            try:
                if not place.ready:
                    place.ready = place.slot.taken()
                    self._drop_where_late(place)
                    if place.ready:
                        self._not_had.pop((place.slot.machine, place.resource), None)
                result = place.slot.result() if place.given is not None else None
            except SlotLost as lost:
                self._lose(place, str(lost))
                continue
            given = place.given
            if result is None or given is None:
                continue
            place.given = None
            if result.trouble:
                self._again(given, place.slot, result.why, busy=result.trouble == "busy")
                if result.trouble == "lost":
                    self._drop(place)
            else:
                yield given.job, result

    def _drop_where_late(self, place: _Place[J]) -> None:
        """Give back a slot that the cluster does not let us have: others use what it needs."""
        if not place.ready and self._now() - place.asked_s > self._wait_s:
            self._not_got(place, f"was in use by others for {self._wait_s:g} s")
            self._drop(place)

    def _lose(self, place: _Place[J], why: str) -> None:
        if place.given is not None:
            self._again(place.given, place.slot, why, busy=False)
        elif not place.ready:
            self._not_got(place, why)
            self._lost_starts[place.slot.machine, place.resource] += 1
        self._drop(place)

    def _not_got(self, place: _Place[J], why: str) -> None:
        whys = self._not_had.setdefault((place.slot.machine, place.resource), [])
        whys.append(f"{place.slot.host}: {why}")

    def _again(self, given: _Waiting[J], slot: Slot, why: str, *, busy: bool) -> None:
        given.lost_on.append(slot.machine)
        given.whys.append(f"{slot.host}: {why}")
        given.cause = "unavailable" if busy else "crashed"
        given.since_s = self._now()
        self._waiting.append(given)

    def _drop(self, place: _Place[J]) -> None:
        place.slot.leave()
        self._places.remove(place)
        self._looked_s = float("-inf")

    def _given_up(self) -> Iterator[tuple[J, GivenUp]]:
        for one in list(self._waiting):
            if len(one.lost_on) >= self._tries:
                times = counted(len(one.lost_on), "time")
                reason = f"begun {times}, the last on {one.whys[-1]}"
                yield self._give_up(one, GivenUp(cause=one.cause, reason=reason))
                continue
            if any(place.resource == one.resource and place.ready for place in self._places):
                one.since_s = self._now()
            elif self._now() - one.since_s > self._wait_s:
                reason = self._nowhere(one)
                yield self._give_up(one, GivenUp(cause="unavailable", reason=reason))

    def _give_up(self, one: _Waiting[J], why: GivenUp) -> tuple[J, GivenUp]:
        self._waiting.remove(one)
        return one.job, why

    def _nowhere(self, one: _Waiting[J]) -> str:
        what = f"with a {one.resource}" if one.resource else "with a CPU"
        said = [whys[-1] for key, whys in self._not_had.items() if key[1] == one.resource]
        words = f"no machine of the cluster {what} could be had for {self._wait_s:g} s"
        return f"{words}: {'; '.join(dict.fromkeys([*said, *one.whys]))}".rstrip(": ")

    def _hand_out(self, done: int) -> None:
        """Give each free slot a job, one that was not lost on its machine where there is one."""
        for place in list(self._places):
            if not place.ready or place.given is not None:
                continue
            fitting = [each for each in self._waiting if each.resource == place.resource]
            if not fitting:  # its machine may serve jobs of another kind
                self._drop(place)
                continue
            one = next((each for each in fitting if self._may_go(each, place)), None)
            if one is not None:
                self._waiting.remove(one)
                place.given = one
                self._say(one.job, place.slot.host, done)
                place.slot.submit(one.job)

    def _may_go(self, one: _Waiting[J], place: _Place[J]) -> bool:
        """Say whether a job may be begun on a slot: not where it was lost, if others are left.

        Others that could not be had are none: they might never be, and nobody would give it up.
        """
        others = {
            machine
            for machine, has in self._machines.items()
            if one.resource in has and (machine, one.resource) not in self._not_had
        }
        return place.slot.machine not in one.lost_on or others <= set(one.lost_on)
