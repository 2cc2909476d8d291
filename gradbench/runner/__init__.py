"""The experiment: check, isolate each block, gather exactly one outcome per cell and meter."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

from ..errors import StoreError
from ..experiment.matrix import Cell, by_block
from ..experiment.plan import PROTOCOL, Plan
from ..records.measurements import Record, Started
from ..records.run import Run
from ..store.comparability import agreeing, mismatch
from ..workloads.models import MODELS, Model, sources_of
from .block_runner import (
    BlockRunner,
    Listener as Listener,
    OneAfterAnother,
    Progress as Progress,
)
from .preflight import DEFAULT_METERS, check, on_each_device
from .side_by_side import here


def run(
    cells: Iterable[Cell],
    *,
    plan: Plan | None = None,
    models: Mapping[str, Model] = MODELS,
    meters: Sequence[str] = DEFAULT_METERS,
    progress: Listener | None = None,
    resumed: Run | None = None,
    shard: str = "",
    places: Mapping[str, str] | None = None,
    side_by_side: bool = True,
) -> Iterator[Record]:
    """Measure cells block by block; yield the records as they come.

    ``resumed`` is a run that was cut short: what it has already read is left out, and records that
    it opened with are not repeated; raise `StoreError` if it was measured elsewhere. ``shard`` and
    ``places`` are written down as they are (see `Started`). Blocks of several GPUs, which
    ``cuda:all`` are, run at once, one on each, unless ``side_by_side`` is False.

    Everything is checked before the first record: unknown names raise `UnknownName`, and a
    model that cannot be sent to another process `BadModel`. Cells that this machine cannot
    run, and steps that raise, crash or hang, come out as `Skipped`; nothing stops the run.
    """
    plan = plan or Plan()
    header = started(
        on_each_device(cells), plan=plan, meters=meters, models=models, shard=shard, places=places
    )
    check(header.cells, models, meters)
    done = resumed.done if resumed is not None else frozenset()
    runner: BlockRunner = (
        here(header.cells, plan=plan, models=models, meters=meters)
        if side_by_side
        else OneAfterAnother(plan=plan, models=models, meters=meters)
    )
    with runner:
        yield from opening(runner, header, resumed=resumed)
        yield from runner.measure(by_block(header.cells), done=done, progress=progress)
        yield runner.ended()


_ELSEWHERE: Final = {
    True: "it was measured on one machine, so leave out --on",
    False: "it was measured on a cluster, so add --on ray, and the address",
}


def opening(
    runner: BlockRunner, header: Started, *, resumed: Run | None = None
) -> Iterator[Record]:
    """Yield the records before the first outcome; of a resumed run, the environment alone.

    Raise `StoreError` if what is resumed was measured elsewhere.
    """
    if resumed is None:
        yield header
    here = runner.environment([cell.device for cell in header.cells])
    if resumed is not None and resumed.environments:
        if ("" in resumed.environments) is (here is None):
            raise StoreError(f"run {resumed.name!r} cannot go on here: {_ELSEWHERE[here is None]}")
        names = agreeing("timed", (cell.device for cell in header.cells))
        if here and (moved := mismatch(resumed.environment.facts, here.facts, names)):
            raise StoreError(f"run {resumed.name!r} cannot go on here: {moved}")
    if here is not None:
        yield here


def started(
    cells: Sequence[Cell],
    *,
    plan: Plan,
    meters: Sequence[str],
    models: Mapping[str, Model] = MODELS,
    shard: str = "",
    places: Mapping[str, str] | None = None,
) -> Started:
    """Return the record that opens a run; see `Started` for its fields."""
    return Started(
        protocol=PROTOCOL,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(sys.argv),
        cells=tuple(cells),
        meters=tuple(meters),
        plan=asdict(plan),
        sources=sources_of(cells, models),
        shard=shard,
        places=dict(places or {}),
    )
