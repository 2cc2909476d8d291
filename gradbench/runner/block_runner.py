"""Who measures the blocks of a run, and where: here, one after the other, or otherwise."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from ..experiment.matrix import Block, Cell
from ..experiment.plan import Plan
from ..records.measurements import Ended, Environment, Reading
from ..workloads.models import MODELS, Model
from . import bench
from .fork_server import MallocProfile
from .passes import PASSES, Job
from .preflight import DEFAULT_METERS


@dataclass(frozen=True, slots=True)
class Progress:
    """What is running: said before each pass over a block."""

    block: Block
    doing: str  # the name of a pass
    done: int  # blocks that have ended
    total: int
    begun: int  # blocks that have begun, this one included


Listener = Callable[[Progress], None]


class BlockRunner(Protocol):
    """Measures blocks, each where and when it chooses; use it as a context manager.

    Left in whatever way, it has ended everything that it had started.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def environment(self, device_names: Iterable[str]) -> Environment | None:
        """Return the facts of where blocks are measured; raise `GradbenchError` without them.

        None where each machine has its own.
        """

    def measure(
        self,
        blocks: Mapping[Block, Sequence[Cell]],
        *,
        done: Collection[tuple[Cell, str]] = (),
        passes: Collection[str] = PASSES,
        progress: Listener | None = None,
    ) -> Iterator[Environment | Reading]:
        """Yield one outcome for each cell and meter, of whichever block has the next one.

        See `Bench.measure` for what is left out. The outcomes of one pass over a block come
        together. Where blocks are measured on further machines, each one's environment comes
        before its first outcome.
        """

    def ended(self) -> Ended:
        """Return where the wall time went since this was made."""


class OneAfterAnother:
    """Measures blocks on this machine in the order in which they are given."""

    def __init__(
        self,
        *,
        plan: Plan,
        models: Mapping[str, Model] = MODELS,
        meters: Sequence[str] = DEFAULT_METERS,
        memory_profile: MallocProfile = "memory",
    ) -> None:
        self._bench = bench.Bench(
            plan=plan, models=models, meters=meters, memory_profile=memory_profile
        )

    def __enter__(self) -> Self:
        self._bench.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bench.__exit__(*error)

    def environment(self, device_names: Iterable[str]) -> Environment:
        """Return the facts of this machine and of the devices named."""
        return self._bench.environment(device_names)

    def measure(
        self,
        blocks: Mapping[Block, Sequence[Cell]],
        *,
        done: Collection[tuple[Cell, str]] = (),
        passes: Collection[str] = PASSES,
        progress: Listener | None = None,
    ) -> Iterator[Reading]:
        """Yield the outcomes of one block after the other."""
        for index, (block, members) in enumerate(blocks.items()):

            def say(doing: str, block: Block = block, index: int = index) -> None:
                if progress is not None:
                    progress(Progress(block, doing, index, len(blocks), index + 1))

            for outcomes in self._bench.measure(members, done=done, passes=passes, say=say):
                yield from outcomes

    def ask(self, job: Job, cell: Cell) -> list[object]:
        """Return what a job says of a cell's model, which no meter reads and no record keeps."""
        return list(self._bench.ask(job, cell))

    def ended(self) -> Ended:
        """Return where the wall time went since this was made."""
        return self._bench.ended()
