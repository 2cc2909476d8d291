"""The experiment: check, isolate each block, gather exactly one outcome per cell and meter."""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ..errors import StoreError
from ..experiment.matrix import Block, Cell, by_block, unique
from ..experiment.plan import PROTOCOL, Plan
from ..records.measurements import Reading, Record, Started
from ..records.run import Run
from ..store.comparability import agreeing, mismatch
from ..workloads.models import MODELS, Model
from .bench import Bench
from .passes import PASSES
from .preflight import DEFAULT_METERS, check


@dataclass(frozen=True, slots=True)
class Progress:
    """What is running: said before each pass over a block."""

    block: Block
    doing: str  # the name of a pass
    done: int  # blocks
    total: int


Listener = Callable[[Progress], None]


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
) -> Iterator[Record]:
    """Measure cells block by block; yield the records as they come.

    ``resumed`` is a run that was cut short: what it has already read is left out, and records that
    it opened with are not repeated; raise `StoreError` if it was measured elsewhere. ``shard`` and
    ``places`` are written down as they are (see `Started`).

    Everything is checked before the first record: unknown names raise `UnknownName`, and a
    model that cannot be sent to another process `BadModel`. Cells that this machine cannot
    run, and steps that raise, crash or hang, come out as `Skipped`; nothing stops the run.
    """
    plan = plan or Plan()
    header = started(
        unique(cells), plan=plan, meters=meters, models=models, shard=shard, places=places
    )
    check(header.cells, models, meters)
    done = resumed.done if resumed is not None else frozenset()
    with Bench(plan=plan, models=models, meters=meters) as bench:
        yield from opening(bench, header, resumed=resumed)
        yield from block_by_block(bench, by_block(header.cells), done=done, progress=progress)
        yield bench.ended()


def opening(bench: Bench, header: Started, *, resumed: Run | None = None) -> Iterator[Record]:
    """Yield the records before the first outcome; of a resumed run, the environment alone.

    Raise `StoreError` if what is resumed was measured elsewhere.
    """
    if resumed is None:
        yield header
    here = bench.environment(cell.device for cell in header.cells)
    if resumed is not None and resumed.environment.facts:
        names = agreeing("timed", (cell.device for cell in header.cells))
        if moved := mismatch(resumed.environment.facts, here.facts, names):
            raise StoreError(f"run {resumed.name!r} cannot go on here: {moved}")
    yield here


def block_by_block(
    bench: Bench,
    blocks: Mapping[Block, Sequence[Cell]],
    *,
    done: Collection[tuple[Cell, str]] = (),
    passes: Collection[str] = PASSES,
    progress: Listener | None = None,
) -> Iterator[Reading]:
    """Yield the outcomes of one block after the other; see `Bench.measure` for the rest."""
    for index, (block, members) in enumerate(blocks.items()):

        def say(doing: str, block: Block = block, index: int = index) -> None:
            if progress is not None:
                progress(Progress(block, doing, index, len(blocks)))

        for outcomes in bench.measure(members, done=done, passes=passes, say=say):
            yield from outcomes


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
    names = dict.fromkeys(cell.model for cell in cells)
    sources = {name: models[name].source for name in names if name in models}
    return Started(
        protocol=PROTOCOL,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(sys.argv),
        cells=tuple(cells),
        meters=tuple(meters),
        plan=asdict(plan),
        sources={name: source for name, source in sources.items() if source is not None},
        shard=shard,
        places=dict(places or {}),
    )
