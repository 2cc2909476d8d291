"""Runs each pass over a block in processes of its own: one outcome per cell and meter."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Final, Self

import psutil

from .. import devices, host_locks
from ..errors import GradbenchError
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..plurals import counted
from ..records.measurements import (
    Breakdown,
    Cause,
    Ended,
    Environment,
    Measurement,
    Reading,
    Skipped,
)
from ..workloads.models import MODELS, Model
from ..workloads.steps import WORKLOADS
from . import environment, equal_modes, held_alone, host_system, processes
from .attempts import (
    DeviceSite,
    Spent,
    Trying,
    Unfinished,
    capture_environment,
    find_site,
)
from .fork_server import JobError, MallocProfile, WorkerDied
from .meters import METERS
from .passes import PASSES, Job, Pass, Task, asked
from .preflight import DEFAULT_METERS, obstacle, portable
from .processes import Processes

WATCH_S: Final = 0.3  # how long others are watched before a multi-threaded block


SPARE_CORES: Final = 0.25  # how much of a core they may take all the same


FACTS_S: Final = 120.0
"""How long the machine's facts may take: a driver may have to load."""


MAX_DEATHS: Final = 4  # of one block's processes, each leaving out the cell that was tried last


class Bench:
    """Measures blocks, one at a time; use it as a context manager.

    The measuring processes' parents start at once, beside whatever the caller does next. Where
    no meter reads the memory of a process, but that of tensors alone, ``memory_profile`` may be
    another kind's: one parent less starts. A pass waits ``wait_s`` for a device, or cores, that
    another run holds, and then raises `host_locks.Held`. With ``has_cores`` whoever uses this
    holds the cores already.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        models: Mapping[str, Model] = MODELS,
        meters: Sequence[str] = DEFAULT_METERS,
        memory_profile: MallocProfile = "memory",
        wait_s: float = float("inf"),
        has_cores: bool = False,
    ) -> None:
        self._plan, self._models, self._meters = plan, models, tuple(meters)
        self._memory_profile, self._wait_s, self._has_cores = memory_profile, wait_s, has_cores
        self._servers: dict[MallocProfile, Processes] = {}
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._imported: set[tuple[Processes, str]] = set()
        self._sites: dict[str, DeviceSite] = {}
        self._over = False

    def __enter__(self) -> Self:
        for reading in dict.fromkeys(METERS[name].read_in for name in self._meters):
            if PASSES[reading].forked:
                self._server(PASSES[reading].malloc["pinned"])
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for server in list(self._servers.values()):
            server.close()

    def end(self) -> None:
        """End what runs, for good: another thread that measures with this hears so.

        What that thread reads from is closed only when this is left, after the thread.
        """
        self._over = True
        for server in list(self._servers.values()):
            server.end()

    def environment(self, device_names: Iterable[str]) -> Environment:
        """Return the facts, captured in a process that then ends.

        One that dies is tried once more, and then without the devices, whose driver may be why.
        Raise `GradbenchError` where even that dies: figures are worth nothing without them.
        """
        wanted = sorted(set(device_names))
        deaths: list[str] = []
        for names in (wanted, wanted, ["cpu"]):
            try:
                facts = self._captured(names).facts
            except WorkerDied as death:
                deaths.append(str(death))
            except JobError as bug:
                deaths.append(bug.line)
            else:
                lost = {name: f"unavailable: {deaths[0]}" for name in wanted if name not in names}
                return Environment(facts={**facts, **lost})
        raise GradbenchError(
            "the facts of this machine cannot be read, so nothing was measured; the process "
            f"that reads them ended so: {deaths[-1]}"
        )

    def _captured(self, device_names: Sequence[str]) -> Environment:
        reading = PASSES[METERS[self._meters[0]].read_in]
        limit_s = max(self._plan.limit_s, FACTS_S)  # a limit on models is none on us
        (captured,) = self._server(reading.malloc["pinned"]).run(
            capture_environment, device_names, limit_s=limit_s
        )
        assert isinstance(captured, Environment)
        return captured

    def measure(
        self,
        cells: Sequence[Cell],
        *,
        done: Collection[tuple[Cell, str]] = (),
        passes: Collection[str] = PASSES,
        say: Callable[[str], None] = lambda _: None,
    ) -> Iterator[list[Reading]]:
        """Yield, pass by pass, one outcome for each cell of one block and each meter.

        A meter that is ``done`` for all of the cells is left out; one that is done for some is
        read again for all, or its rounds would not be pairs. Only the ``passes`` named are made.
        """
        wanted: dict[str, list[str]] = {}
        for name in self._meters:
            reading = METERS[name].read_in
            if reading in passes and not all((cell, name) in done for cell in cells):
                wanted.setdefault(reading, []).append(name)
        why_not = {cell: obstacle(cell, self._models) for cell in cells}
        possible = [cell for cell in cells if why_not[cell] is None]
        for doing, names in wanted.items():
            about = [name for name in names if METERS[name].about_workload(cells[0].workload)]
            outcomes: list[Reading] = []
            if about and possible:
                timed = PASSES[doing].needs_idle_cores
                with self._alone(possible[0], say, timed=timed):
                    say(doing)  # only now: until then it may be waiting
                    outcomes += equal_modes.compared(self._read(possible, PASSES[doing], about))
            elif about:
                say(doing)
            for name in (name for name in names if name not in about):
                only = f"it is a figure of {' and '.join(METERS[name].workloads)} alone"
                outcomes += _skip_all(possible, [name], "not_applicable", only)
            outcomes += [
                Skipped(cell=cell, meter=name, cause=refusal[0], reason=refusal[1])
                for cell, refusal in why_not.items()
                if refusal is not None
                for name in names
            ]
            yield outcomes

    def site(self, device_name: str) -> DeviceSite:
        """Return where a device is on this host; one that does not say has its name alone."""
        if device_name not in self._sites:
            self._sites[device_name] = DeviceSite(device_name, None)
            profile = PASSES[METERS[self._meters[0]].read_in].malloc["pinned"]
            with suppress(WorkerDied, JobError):
                server = self._server(profile)
                (self._sites[device_name],) = server.run(find_site, device_name, limit_s=FACTS_S)
        return self._sites[device_name]

    def _alone(
        self, cell: Cell, say: Callable[[str], None], *, timed: bool
    ) -> AbstractContextManager[None]:
        """Return what keeps other processes of this host off what the cell is measured on.

        Its devices in every pass, and the cores of a step on the CPU while it is timed: bytes are
        the same whatever runs beside it.
        """
        on_cores = not devices.find(cell.device).exclusive
        if on_cores and (self._has_cores or not timed):
            return nullcontext()
        return host_locks.holding(
            held_alone.lock_names([cell], lambda name: self.site(name).lock_name),
            wait_s=self._wait_s,
            waiting=partial(say, host_locks.WAITING),
            given_up=lambda: self._over,
        )

    def ask(self, job: Job, cell: Cell) -> Iterator[object]:
        """Yield what a job says of a cell's model that is no reading, in a process of its own.

        Where that process dies, what it had said by then is all.
        """
        model = portable(cell.model, self._models[cell.model])
        server = self._server(PASSES["memory"].malloc[cell.malloc])
        with suppress(WorkerDied):
            yield from server.run(asked, job, cell, model, self._plan, limit_s=self._plan.limit_s)

    @property
    def seconds(self) -> dict[str, float]:
        """What each phase has taken so far."""
        return dict(self._seconds)

    def ended(self) -> Ended:
        """Return where the wall time went since this bench was made."""
        total = time.perf_counter() - self._began
        accounted = sum(self._seconds.values())
        return Ended(
            seconds={
                **{phase: round(spent, 3) for phase, spent in self._seconds.items()},
                "harness": round(total - accounted, 3),
            },
            load_after=round(psutil.getloadavg()[0], 2),
        )

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + max(0.0, seconds)

    def _read(self, cells: list[Cell], doing: Pass, names: Sequence[str]) -> list[Reading]:
        crowded = _crowded(cells[0]) if doing.needs_idle_cores else None
        if crowded is not None:
            return _skip_all(cells, names, "unavailable", crowded)
        processes = [[cell] for cell in cells] if doing.one_process_per_cell else [cells]
        return [outcome for group in processes for outcome in self._survive(group, doing, names)]

    def _survive(self, cells: Sequence[Cell], doing: Pass, names: Sequence[str]) -> list[Reading]:
        """Run a pass; when its process dies, leave out the cell it died on and run it again."""
        left = list(cells)
        outcomes: list[Reading] = []
        for _ in range(MAX_DEATHS):
            readings: list[Reading] = []
            unfinished: dict[tuple[Cell, str], Reading] = {}
            trying: Cell | None = None
            measured = False
            try:
                for message in self._stream(left, doing, names):
                    match message:
                        case Trying(cell):
                            trying = cell
                        case Spent(phase, seconds):
                            measured = phase != "build"
                            self._add(phase, seconds)
                        case Unfinished(measurement):
                            unfinished[measurement.cell, measurement.meter] = measurement
                        case Measurement() | Breakdown() | Skipped():
                            readings.append(message)
            except JobError as bug:
                why = f"gradbench: {bug.line}"
                return outcomes + _complete(readings, left, names, "failed", why)
            except WorkerDied as death:
                if trying is None or measured or death.cause == "timed_out" or len(left) == 1:
                    given = {(reading.cell, reading.meter) for reading in readings}
                    readings += [one for key, one in unfinished.items() if key not in given]
                    return outcomes + _complete(readings, left, names, death.cause, str(death))
                why = f"the process was {death} while this mode was tried"
                outcomes += _skip_all([trying], names, death.cause, why)
                left.remove(trying)
            else:
                return outcomes + _complete(readings, left, names, "failed", "no outcome was sent")
        return outcomes + _skip_all(left, names, "crashed", "the block's other cells kept dying")

    def _stream(self, cells: Sequence[Cell], doing: Pass, names: Sequence[str]) -> Iterator[object]:
        model = portable(cells[0].model, self._models[cells[0].model])
        task = Task(list(cells), model, self._plan, tuple(names))
        began = time.perf_counter()
        started = False
        imports = *self._models[cells[0].model].imports, *WORKLOADS[cells[0].workload].imports
        server = partial(self._loaded_server, imports)
        for message in doing.start(task, server):
            if not started and isinstance(message, Spent):
                started = True
                self._add("process starts", time.perf_counter() - began - message.seconds)
            yield message

    def _loaded_server(self, modules: Sequence[str], profile: MallocProfile) -> Processes:
        server = self._server(profile)
        missing = [name for name in modules if (server, name) not in self._imported]
        if missing:
            server.preload(missing)
            self._imported |= {(server, name) for name in missing}
        return server

    def _server(self, profile: MallocProfile) -> Processes:
        profile = self._memory_profile if profile == "memory" else profile
        server = self._servers.get(profile)
        if self._over:
            raise WorkerDied("crashed", "ended with the run that it was part of")
        if server is None or not server.alive:
            if server is not None:
                server.close()
            server = self._servers[profile] = processes.start(profile)
        return server


def _crowded(cell: Cell) -> str | None:
    threads = cell.threads * cell.world_size
    if threads == 1:
        return None
    cores = len(host_system.usable_cores())
    busy = environment.busy_cores(WATCH_S)
    if busy + threads <= cores + SPARE_CORES:
        return None
    each = counted(cell.threads, "thread")
    who = each if cell.world_size == 1 else f"{cell.world_size} ranks of {each} each"
    return (
        f"{who} on {counted(cores, 'core')} of which others keep "
        f"{busy:.1f} busy: times would measure the scheduler; free the machine or lower threads"
    )


def _skip_all(
    cells: Iterable[Cell], names: Iterable[str], cause: Cause, reason: str
) -> list[Reading]:
    names = list(names)
    return [
        Skipped(cell=cell, meter=name, cause=cause, reason=reason)
        for cell in cells
        for name in names
    ]


def _complete(
    readings: list[Reading], cells: Iterable[Cell], names: Sequence[str], cause: Cause, why: str
) -> list[Reading]:
    """Give every cell and meter without an outcome the reason why."""
    have = {(outcome.cell, outcome.meter) for outcome in readings}
    missing = [(cell, name) for cell in cells for name in names if (cell, name) not in have]
    return readings + [
        Skipped(cell=cell, meter=name, cause=cause, reason=why) for cell, name in missing
    ]
