"""A run while it is measured: written down record by record, sealed, and shown on a page."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from . import runner
from .devices import nothing
from .errors import ClusterLost, GradbenchError, StoreError
from .experiment.matrix import Block, by_block
from .experiment.plan import Plan
from .records import selfcheck
from .records.measurements import Environment, Reading, Started
from .records.run import Run
from .records.semantics import Behaviour
from .runner import preflight
from .runner.block_runner import BlockRunner, OneAfterAnother
from .runner.passes import PASSES
from .store.jsonl import Writer, load
from .workloads.models import MODELS, Model


class Recording:
    """Measures the blocks of a header, in any order; use it as a context manager.

    It writes the header and the environment when it is entered, every outcome the moment it is
    there, and the seal when it is finished. Left before that, in whatever way, it leaves a part
    that can be resumed: ``resumed`` is then the run that was cut short, and what that has read is
    not measured again. One that is refused before anything is measured, or interrupted before
    anything is written, leaves nothing.
    ``measured_by`` says who measures the blocks: without it, they are measured here, one after the
    other. ``meanwhile`` is called while that loads.
    """

    def __init__(
        self,
        writer: Writer,
        header: Started,
        *,
        models: Mapping[str, Model] = MODELS,
        resumed: Run | None = None,
        measured_by: BlockRunner | None = None,
        meanwhile: Callable[[], object] = nothing,
    ) -> None:
        self._measured_by, self._meanwhile = measured_by, meanwhile
        self.header, self.blocks = header, by_block(header.cells)
        self.path = writer.path
        self._writer, self._models, self._resumed = writer, models, resumed
        self._done = set(resumed.done) if resumed is not None else set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self._leave_nothing_refused)
            stack.enter_context(self._writer)
            header = self.header
            preflight.check(header.cells, self._models, header.meters)
            plan = Plan.of(header.plan)
            self._runner: BlockRunner = stack.enter_context(
                self._measured_by
                or OneAfterAnother(plan=plan, models=self._models, meters=header.meters)
            )
            self._meanwhile()
            for record in runner.opening(self._runner, header, resumed=self._resumed):
                self._writer.write(record)
                if isinstance(record, Environment):
                    self.environment = record
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _leave_nothing_refused(
        self, _kind: object, error: BaseException | None, _trace: object
    ) -> None:
        """Remove a file without any outcome, unless it is said how to go on with that.

        An empty one, as of a run that was interrupted before its header, can never be gone on with.
        """
        goes_on = self._resumed is not None or isinstance(error, StoreError | ClusterLost)
        is_refused = isinstance(error, GradbenchError) and not goes_on and not self._done
        if is_refused or (error is not None and self._writer.is_empty):
            self._writer.discard()

    def measure(
        self,
        *blocks: Block,
        passes: Collection[str] = PASSES,
        progress: runner.Listener | None = None,
    ) -> Iterator[Reading]:
        """Measure these blocks, or all, and yield each outcome when it is written.

        In the ``passes`` named alone, if some are: what they leave out can be measured later.
        """
        chosen = {block: self.blocks[block] for block in blocks or self.blocks}
        done = frozenset(self._done)
        for record in self._runner.measure(chosen, done=done, passes=passes, progress=progress):
            self._writer.write(record)
            if not isinstance(record, Environment):
                self._done.add((record.cell, record.meter))
                yield record

    def finish(self) -> Run:
        """Seal the run if it has every outcome; return it as it can be loaded."""
        if all((c, m) in self._done for c in self.header.cells for m in self.header.meters):
            self._writer.write(self._runner.ended())
            self.path = self._writer.seal()
        return load(self.path)


def write_page(run: Run, results: Path, reports: Path, *, semantics: Behaviour | None) -> Path:
    """Write a run's page, with what a self-check found on this machine; return its path.

    What self-checks found is in the folder of ``results``.
    """
    from .report import write  # draws and judges: what measures goes without

    checks = selfcheck.load_all(results)
    return write([run], reports / f"{run.name}.html", checks=checks, semantics=semantics)
