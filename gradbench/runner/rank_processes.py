"""Starts the ranks of a distributed workload below a measuring process, and leads them.

Each rank does the whole job of the pass in a process of its own, below the one that has the pass's
time limit: what ends that one ends them all. This one, the leader, does no work of torch. It is
where ranks meet (see `ranks`), and makes one outcome of what they read.
"""

import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

from .. import devices, scratch, supervisor
from ..devices import Device
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..process_end import tail
from ..records.measurements import Breakdown, Measurement, Reading, Skipped
from ..workloads.distributed import process_group
from . import host_system, ranks
from .attempts import Message, Refusal, Spent, Trying, Unfinished, guarded, skip, survived
from .job_process import Message as Sent, WorkerDied, answers, cause_of_death, content
from .rank_outcomes import combined
from .ranks import FromRank, Meeting, Rank

WAIT_FOR_OTHERS_S: Final = 20.0
"""How long ranks that raised wait for one that did not: what it waits for will never come."""

WAIT_FOR_OTHERS: Final = 0.25
"""The same as a part of the time limit, where that is less."""

STDERR: Final = 2

Job = Callable[..., Iterator[Message]]


@dataclass(frozen=True, slots=True)
class _Task:
    """What every rank is to do: a pass over cells of one block."""

    job: Job
    cells: Sequence[Cell]
    model: bytes  # pickled
    plan: Plan
    meters: Sequence[str]

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self.cells[0].world_size


@dataclass(slots=True)
class _RankProcess:
    """One rank as its leader sees it."""

    process: BaseProcess
    connection: Connection
    meeting: Meeting | None = None  # where it waits
    done: bool = False


def in_ranks(
    job: Job, cells: Sequence[Cell], model: bytes, plan: Plan, meters: Sequence[str]
) -> Iterator[Message]:
    """Have ranks do a pass over cells of one block, each all of it; yield their common outcomes.

    Raise `WorkerDied` where one ends early, or raises where others go on.
    """
    task = _Task(job, cells, model, plan, meters)
    with scratch.folder() as folder:
        place = (folder / "ranks").as_uri()
        with _started(task, place) as members:
            yield from _Leader(task, members).messages()


@contextmanager
def _started(task: _Task, place: str) -> Iterator[list[_RankProcess]]:
    """Start the ranks; kill those that are left at the end."""
    forks = host_system.here().forks
    processes = get_context("fork") if forks else get_context("spawn")
    members: list[_RankProcess] = []
    try:
        for number in range(task.world_size):
            ours, theirs = processes.Pipe()
            kept = [ours, *(one.connection for one in members)] if forks else []
            process = processes.Process(
                target=_be_rank,
                args=(number, theirs, task, place, kept),
            )
            process.start()
            theirs.close()
            members.append(_RankProcess(process, ours))
        yield members
    finally:
        for member in members:
            member.process.kill()
        for member in members:
            member.process.join(supervisor.END_S)


@dataclass(slots=True)
class _Leader:
    """Hears the ranks, lets them meet, and passes their common outcomes on."""

    task: _Task
    members: list[_RankProcess]
    _readings: dict[tuple[Cell, str], dict[int, Reading]] = field(default_factory=dict)
    _gives_up_at: float | None = None

    def messages(self) -> Iterator[Message]:
        """Yield progress of the first rank, and outcomes of all."""
        while not all(member.done for member in self.members):
            for number in self._heard():
                yield from self._of(number)
            self._hold_together()
            self._let_go_on()

    def _heard(self) -> list[int]:
        """Wait until a rank says something or ends, at most as long as for others; return which."""
        left_s = None if self._gives_up_at is None else self._gives_up_at - time.monotonic()
        listening = {
            member.connection: number
            for number, member in enumerate(self.members)
            if not member.done
        }
        ready = wait(list(listening), timeout=None if left_s is None else max(0.0, left_s))
        if not ready:
            raise WorkerDied("crashed", self._without(self._refusing()))
        return [listening[one] for one in ready if isinstance(one, Connection)]

    def _of(self, number: int) -> Iterator[Message]:
        """Yield what follows from what one rank says."""
        member = self.members[number]
        try:
            kind, said = member.connection.recv()
        except (EOFError, OSError):
            raise WorkerDied(*self._end_of(number)) from None
        if kind == "meeting":
            member.meeting = said
            if said.refused and self._gives_up_at is None:
                self._gives_up_at = time.monotonic() + self._wait_for_others_s()
            return
        message: Any = _content(said, number)
        if said[0] != "item":
            member.done = True
        elif isinstance(message, Measurement | Breakdown | Skipped):
            yield from self._common(message, number)
        elif number == 0 and isinstance(message, Trying | Spent | Unfinished):
            yield message

    def _common(self, reading: Reading, number: int) -> Iterator[Message]:
        """Yield one outcome once every rank has its own."""
        key = reading.cell, reading.meter
        there = self._readings.setdefault(key, {})
        there[number] = reading
        if len(there) == len(self.members):
            del self._readings[key]
            yield combined([there[rank] for rank in range(len(self.members))])

    def _hold_together(self) -> None:
        """Raise `WorkerDied` where ranks wait at different places, or one has ended already."""
        places = {member.meeting.at for member in self.members if member.meeting is not None}
        ended = any(member.done for member in self.members)
        if len(places) > 1 or (places and ended):
            refusing = self._refusing()
            where = " and ".join(sorted(places)) + (" and the end" if ended else "")
            why = (
                self._without(refusing)
                if refusing
                else f"ended, for its ranks went different ways: {where}"
            )
            raise WorkerDied("crashed", why)

    def _let_go_on(self) -> None:
        """Tell what each has said, once all have met; raise `WorkerDied` where they part."""
        meetings = [member.meeting for member in self.members if member.meeting is not None]
        if not meetings or len(meetings) < len(self.members):
            return
        refusing = self._refusing()
        if 0 < len(refusing) < len(self.members):
            raise WorkerDied("crashed", self._without(refusing))
        self._gives_up_at = None
        said = [meeting.value for meeting in meetings]
        for member in self.members:
            member.meeting = None
            member.connection.send(said)

    def _refusing(self) -> Mapping[int, str]:
        """Return the ranks that wait since they raised, and why."""
        return {
            number: member.meeting.refused
            for number, member in enumerate(self.members)
            if member.meeting is not None and member.meeting.refused
        }

    def _without(self, refusing: Mapping[int, str]) -> str:
        number, why = next(iter(refusing.items()))
        return f"ended, for rank {number} could not go on where others did: {why}"

    def _end_of(self, number: int) -> tuple[Any, str]:
        """Return how a rank has ended that had more to do, as a cause and in words."""
        process = self.members[number].process
        process.join(supervisor.END_S)
        code = process.exitcode
        if code is None:
            return "crashed", f"ended, for rank {number} closed the pipe to its leader"
        cause, how = cause_of_death(code, tail(STDERR))
        return cause, f"ended, for rank {number} was {how}"

    def _wait_for_others_s(self) -> float:
        return min(WAIT_FOR_OTHERS_S, WAIT_FOR_OTHERS * self.task.plan.limit_s)


def _content(said: Sent, number: int) -> object:
    """Return a message's content; raise what it reports, with the rank that does."""
    try:
        return content(said)
    except WorkerDied as death:
        raise WorkerDied(death.cause, f"ended, for rank {number} was {death}") from death


def _be_rank(
    number: int, leader: Connection, task: _Task, place: str, others: Sequence[Connection]
) -> None:
    """Do the task as one rank, in a process of its own, which is to end with its leader."""
    parent = parent_process()
    if host_system.here().forks and parent is not None and parent.pid is not None:
        supervisor.end_with_parent(parent.pid)
    for other in others:
        other.close()
    ranks.join(Rank(number, task.world_size, leader))
    for said in answers(pickle.dumps((_as_rank, (number, task, place)))):
        sent: FromRank = ("message", said)
        leader.send(sent)
    leader.close()


def _as_rank(number: int, task: _Task, place: str) -> Iterator[Message]:
    """Yield what the job says of its cells, which are each rank's on a device of its own."""
    given = {_on_device_of(cell, number): cell for cell in task.cells}
    cells = list(given)
    device = devices.find(cells[0].device)
    os.environ.update(device.environment)
    os.environ.update(_as_torchrun_sets(number, task.world_size))
    with ExitStack() as group:
        joined = guarded(partial(_join, group, task, number, device, place), device)
        if isinstance(joined, Refusal):
            yield from (skip(cell, name, joined) for cell in task.cells for name in task.meters)
            return
        messages = task.job(cells, pickle.loads(task.model), task.plan, task.meters)
        for message in survived(messages, cells, task.meters):
            yield _for(given, message)


def _join(group: ExitStack, task: _Task, number: int, device: Device, place: str) -> None:
    """Be a rank of a process group until that is left, on a device of its own.

    The device first: of a process that uses none yet torch would start the one that has the rank's
    number.
    """
    device.prepare()
    group.enter_context(
        process_group(
            device.collectives,
            rank=number,
            world_size=task.world_size,
            limit_s=task.plan.limit_s,
            family=device.name.partition(":")[0],
            meeting_place=place,
        )
    )


def _as_torchrun_sets(number: int, world_size: int) -> dict[str, str]:
    """Return the variables by which a model may ask which rank it is in."""
    rank, size = str(number), str(world_size)
    return {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}


def _on_device_of(cell: Cell, number: int) -> Cell:
    return replace(cell, device=devices.find(cell.device).of_rank(number))


def _for(given: Mapping[Cell, Cell], message: Message) -> Message:
    """Return a message about a cell as it was given: without the rank's own device."""
    match message:
        case Trying(cell):
            return Trying(given[cell])
        case Unfinished(measurement):
            return Unfinished(replace(measurement, cell=given[measurement.cell]))
        case Measurement() | Breakdown() | Skipped():
            return replace(message, cell=given[message.cell])
    return message
