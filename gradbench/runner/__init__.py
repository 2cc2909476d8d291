"""The experiment: check, isolate each block, gather exactly one outcome per cell and meter."""

import os
import pickle
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from types import TracebackType
from typing import Final, Self

import psutil

from .. import devices, environment, fingerprint
from ..errors import BadModel, DeviceUnavailable, StoreError, UnknownName
from ..matrix import Block, Cell, by_block, unique
from ..meters import METERS, Pass
from ..models import MODELS, Model
from ..plan import PROTOCOL, Plan
from ..records import (
    Breakdown,
    Cause,
    Ended,
    Environment,
    Measurement,
    Reading,
    Record,
    Skipped,
    Started,
)
from ..store import Run
from ..workloads import WORKLOADS
from .block import Spent, Trying, capture_environment, time_block
from .instructions import count_block
from .memory import memory_block, process_cells
from .nursery import Died, JobError, Kind, Nursery

DEFAULT_METERS: Final = tuple(meter.name for meter in METERS.values() if meter.default)
WATCH_S: Final = 0.3  # how long others are watched before a multi-threaded block
SPARE_CORES: Final = 0.25  # how much of a core they may take all the same
MAX_DEATHS: Final = 4  # of one block's processes, each leaving out the cell that was tried last

_JOBS: Final[Mapping[Pass, Callable[..., Iterator[object]]]] = {
    "time": time_block,
    "memory": memory_block,
    "process": process_cells,
}


@dataclass(frozen=True, slots=True)
class Progress:
    """What is running: said before each pass over a block."""

    block: Block
    doing: Pass
    done: int  # blocks
    total: int


Listener = Callable[[Progress], None]


class Bench:
    """Measures blocks, one at a time; use it as a context manager.

    The measuring processes' parents start at once, beside whatever the caller does next.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        models: Mapping[str, Model] = MODELS,
        meters: Sequence[str] = DEFAULT_METERS,
    ) -> None:
        if not sys.platform.startswith("linux"):
            raise DeviceUnavailable(f"gradbench measures on Linux, and this is {sys.platform}")
        self._plan, self._models, self._meters = plan, models, tuple(meters)
        self._nurseries: dict[Kind, Nursery] = {}
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def __enter__(self) -> Self:
        kinds: set[Kind] = {_kind(METERS[name].read_in, malloc="pinned") for name in self._meters}
        for kind in kinds:
            self._nurseries[kind] = Nursery(kind)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for nursery in self._nurseries.values():
            nursery.close()

    def environment(self, device_names: Iterable[str]) -> Environment:
        """Return the facts, captured in a process that then ends."""
        (captured,) = next(iter(self._nurseries.values())).run(
            capture_environment, sorted(set(device_names)), limit_s=self._plan.limit_s
        )
        assert isinstance(captured, Environment)
        return captured

    def measure(
        self,
        cells: Sequence[Cell],
        *,
        done: Collection[tuple[Cell, str]] = (),
        say: Callable[[Pass], None] = lambda _: None,
    ) -> Iterator[list[Reading]]:
        """Yield, pass by pass, one outcome for each cell of one block and each meter.

        A meter that is ``done`` for all of the cells is left out; one that is done for some is
        read again for all, or its rounds would not be pairs.
        """
        wanted: dict[Pass, list[str]] = {}
        for name in self._meters:
            if not all((cell, name) in done for cell in cells):
                wanted.setdefault(METERS[name].read_in, []).append(name)
        why_not = {cell: obstacle(cell, self._models) for cell in cells}
        possible = [cell for cell in cells if why_not[cell] is None]
        for doing, names in wanted.items():
            say(doing)
            outcomes = self._read(possible, doing, names) if possible else []
            outcomes += [
                Skipped(cell=cell, meter=name, cause=refusal[0], reason=refusal[1])
                for cell, refusal in why_not.items()
                if refusal is not None
                for name in names
            ]
            yield outcomes

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
        device = devices.find(cells[0].device)
        crowded = _crowded(cells[0].threads) if doing == "time" else None
        if crowded is not None:
            return _skip_all(cells, names, "unavailable", crowded)
        if doing == "process" and device.start == "fork":
            return [
                outcome
                for cell in cells
                for outcome in self._survive([cell], doing, names, fresh=False)
            ]
        return self._survive(cells, doing, names, fresh=device.start == "spawn")

    def _survive(
        self, cells: Sequence[Cell], doing: Pass, names: Sequence[str], *, fresh: bool
    ) -> list[Reading]:
        """Run a pass; when its process dies, leave out the cell it died on and run it again."""
        left = list(cells)
        outcomes: list[Reading] = []
        for _ in range(MAX_DEATHS):
            found: list[Reading] = []
            trying: Cell | None = None
            measured = False
            try:
                for message in self._stream(left, doing, names, fresh=fresh):
                    match message:
                        case Trying(cell):
                            trying = cell
                        case Spent(phase, seconds):
                            measured = phase != "build"
                            self._add(phase, seconds)
                        case Measurement() | Breakdown() | Skipped():
                            found.append(message)
            except JobError as bug:
                return outcomes + _complete(found, left, names, "failed", f"gradbench: {bug}")
            except Died as death:
                if trying is None or measured or death.cause == "timed_out" or len(left) == 1:
                    return outcomes + _complete(found, left, names, death.cause, str(death))
                why = f"the process was {death} while this mode was tried"
                outcomes += _skip_all([trying], names, death.cause, why)
                left.remove(trying)
            else:
                return outcomes + _complete(found, left, names, "failed", "no outcome was sent")
        return outcomes + _skip_all(left, names, "crashed", "the block's other cells kept dying")

    def _stream(
        self, cells: Sequence[Cell], doing: Pass, names: Sequence[str], *, fresh: bool
    ) -> Iterator[object]:
        model = portable(cells[0].model, self._models[cells[0].model])
        if doing == "instructions":  # valgrind wants a process from its first instruction on
            yield from count_block(cells, model, self._plan)
            return
        kind = _kind(doing, malloc=cells[0].malloc)
        asked = time.perf_counter()
        nursery = self._nursery(kind, fresh=fresh)
        try:
            messages = nursery.run(
                _with_model,
                _JOBS[doing],
                list(cells),
                model,
                self._plan,
                tuple(names),
                limit_s=self._plan.limit_s,
            )
            started = False
            for message in messages:
                if not started and isinstance(message, Spent):
                    started = True
                    self._add("process starts", time.perf_counter() - asked - message.seconds)
                yield message
        finally:
            if fresh:
                nursery.close()

    def _nursery(self, kind: Kind, *, fresh: bool) -> Nursery:
        if fresh:
            return Nursery(kind)
        nursery = self._nurseries.get(kind)
        if nursery is None or not nursery.alive:
            if nursery is not None:
                nursery.close()
            nursery = self._nurseries[kind] = Nursery(kind)
        return nursery


def run(
    cells: Iterable[Cell],
    *,
    plan: Plan | None = None,
    models: Mapping[str, Model] = MODELS,
    meters: Sequence[str] = DEFAULT_METERS,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    progress: Listener | None = None,
    resumed: Run | None = None,
    shard: str = "",
    places: Mapping[str, str] | None = None,
) -> Iterator[Record]:
    """Measure cells block by block; yield the records as they come.

    ``inputs`` gives the shapes (B excluded) of models named by import path, so that the run can
    be resumed from its own file. ``resumed`` is a run that was cut short: what it has already
    read is left out, and records that it opened with are not repeated; raise `StoreError` if it
    was measured elsewhere. ``shard`` and ``places`` are written down as they are (see `Started`).

    Everything is checked before the first record: unknown names raise `UnknownName`, and a
    model that cannot be sent to another process `BadModel`. Cells that this machine cannot
    run, and steps that raise, crash or hang, come out as `Skipped`; nothing stops the run.
    """
    plan = plan or Plan()
    cells = unique(cells)
    check(cells, models, meters)
    blocks = by_block(cells)
    done = resumed.done if resumed is not None else frozenset()
    with Bench(plan=plan, models=models, meters=meters) as bench:
        if resumed is None:
            yield started(
                cells, plan=plan, meters=meters, inputs=inputs or {}, shard=shard, places=places
            )
        here = bench.environment(cell.device for cell in cells)
        if resumed is not None and resumed.environment.facts:
            moved = fingerprint.mismatch(resumed.environment.facts, here.facts)
            if moved is not None:
                raise StoreError(f"run {resumed.name!r} cannot go on here: {moved}")
        yield here
        for index, (block, members) in enumerate(blocks.items()):

            def say(doing: Pass, block: Block = block, index: int = index) -> None:
                if progress is not None:
                    progress(Progress(block, doing, index, len(blocks)))

            for outcomes in bench.measure(members, done=done, say=say):
                yield from outcomes
        yield bench.ended()


def started(
    cells: Sequence[Cell],
    *,
    plan: Plan,
    meters: Sequence[str],
    inputs: Mapping[str, tuple[int, ...]],
    shard: str = "",
    places: Mapping[str, str] | None = None,
) -> Started:
    """Return the record that opens a run; see `Started` for its fields."""
    return Started(
        protocol=PROTOCOL,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(sys.argv),
        cells=tuple(cells),
        meters=tuple(meters),
        plan=asdict(plan),
        inputs=dict(inputs),
        shard=shard,
        places=dict(places or {}),
    )


def check(
    cells: Iterable[Cell],
    models: Mapping[str, Model] = MODELS,
    meters: Sequence[str] = DEFAULT_METERS,
) -> None:
    """Raise for the first name that no catalogue knows, or a model that cannot be sent on."""
    for name in meters:
        if name not in METERS:
            raise UnknownName("meter", name, METERS)
    for cell in cells:
        if cell.model not in models:
            raise UnknownName("model", cell.model, models)
        devices.find(cell.device)
        portable(cell.model, models[cell.model])


def obstacle(cell: Cell, models: Mapping[str, Model] = MODELS) -> tuple[Cause, str] | None:
    """Return why a cell cannot run here, as far as can be told without running it."""
    device, model, cores = devices.find(cell.device), models[cell.model], _cores()
    try:
        device.check()
    except DeviceUnavailable as reason:
        return "unavailable", str(reason)
    if cell.threads > cores:
        return "unavailable", f"{cell.threads} threads, but this process may use {cores} cores"
    inside = WORKLOADS[cell.workload].mode_inside
    dimensions = _dimensions(model)
    contradictions = (
        (
            cell.l2 not in device.l2,
            f"{cell.device} has no cache that a step could be kept from: l2=hot",
        ),
        (
            inside and cell.entry == "per_call",
            f"{cell.workload} enters its mode in each step as it is: entry=held",
        ),
        (
            cell.optimizer != "sgd" and not WORKLOADS[cell.workload].optimizes,
            f"{cell.workload} makes no optimizer step: optimizer=sgd",
        ),
        (
            cell.memory_format == "channels_last" and dimensions != 4,
            f"channels_last needs images (B, C, H, W): {cell.model} takes {dimensions}-dimensional "
            "input",
        ),
        (
            WORKLOADS[cell.workload].splits_head and model.head is None,
            f"{cell.workload} trains a head, and {cell.model} names none",
        ),
    )
    return next((("impossible", why) for holds, why in contradictions if holds), None)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _kind(doing: Pass, *, malloc: str) -> Kind:
    if doing != "time":
        return "memory"
    return "time" if malloc == "pinned" else "system"


@cache
def _dimensions(model: Model) -> int:
    return model.batch(1)[0].dim()


def portable(name: str, model: Model) -> bytes:
    """Return the model pickled for another process; raise `BadModel` when that cannot be.

    What lives in a module travels by its name; a lambda, a closure or anything of a script's or
    notebook's own travels by value, with cloudpickle.
    """
    with suppress(pickle.PicklingError, AttributeError, TypeError):
        by_name = pickle.dumps(model)
        if b"__main__" not in by_name:
            return by_name
    try:
        import cloudpickle

        return bytes(cloudpickle.dumps(model))
    except ImportError:
        raise BadModel(
            f"model {name!r} is not in an importable module: put it in one, or install cloudpickle"
        ) from None
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BadModel(f"model {name!r} cannot be sent to another process: {error}") from error


def _with_model(
    job: Callable[..., Iterator[object]],
    cells: Sequence[Cell],
    model: bytes,
    plan: Plan,
    wanted: Sequence[str],
) -> Iterator[object]:
    yield from job(cells, pickle.loads(model), plan, wanted)


def _crowded(threads: int) -> str | None:
    if threads == 1:
        return None
    cores = _cores()
    busy = environment.busy_cores(WATCH_S)
    if busy + threads <= cores + SPARE_CORES:
        return None
    return (
        f"{threads} threads on {cores} cores of which others keep {busy:.1f} busy: "
        "times would measure the scheduler; free the machine or lower threads"
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
    found: list[Reading], cells: Iterable[Cell], names: Sequence[str], cause: Cause, why: str
) -> list[Reading]:
    """Give every cell and meter without an outcome the reason why."""
    have = {(outcome.cell, outcome.meter) for outcome in found}
    missing = [(cell, name) for cell in cells for name in names if (cell, name) not in have]
    return found + [
        Skipped(cell=cell, meter=name, cause=cause, reason=why) for cell, name in missing
    ]


__all__ = ["Bench", "Progress", "check", "obstacle", "portable", "run", "started"]
