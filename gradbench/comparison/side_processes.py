"""Starts a comparison's processes, each with a layout of its own, and words their questions."""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource
from ..workloads.steps import WORKLOADS
from .cell_requests import cell_request, own_sources
from .checkouts import SIDES, Version
from .process import LiveProcess
from .replicate_effort import Replication


class SideProcesses:
    """Starts processes of a base and a candidate; draws their layouts and the order of turns."""

    def __init__(
        self,
        base: Version,
        candidate: Version,
        *,
        replication: Replication,
        sources: Mapping[str, ModelSource],
        seed: int,
        rng: random.Random,
    ) -> None:
        self.versions, self.replication = (base, candidate), replication
        self._sources, self._seed, self._rng = sources, seed, rng

    @contextlib.contextmanager
    def started(
        self, versions: Sequence[Version], cells: Sequence[Cell], **how: Any
    ) -> Iterator[LiveProcess]:
        """Start a process of the versions that has imported the cells' models.

        ``how`` is what `process` takes. Raise `Failed` or `Lost` where it cannot.
        """
        with self.process(versions, cells, **how) as process:
            process.hear()
            for source in self.own_sources(cells).values():
                process.imported(source.build)
            yield process

    def process(
        self,
        versions: Sequence[Version],
        cells: Sequence[Cell],
        *,
        order: Sequence[int] = (0,),
        layout: Mapping[str, str] | None = None,
        limit_s: float | None = None,
        under: Callable[[Sequence[str]], Sequence[str]] = list,
    ) -> LiveProcess:
        """Return a process of the versions that is to step the cells.

        Without a ``layout`` it has one of its own. ``limit_s`` is for any one answer; ``order`` and
        ``under`` are those of `LiveProcess`.
        """
        return LiveProcess(
            versions,
            order=order,
            training=any(WORKLOADS[cell.workload].optimizes for cell in cells),
            limit_s=self.replication.limit_s if limit_s is None else limit_s,
            randomized_layout=self.randomized_layout() if layout is None else layout,
            under=under,
        )

    def own_sources(self, cells: Sequence[Cell]) -> dict[str, ModelSource]:
        """Return where the cells' models come from, of those that are not a library's."""
        return own_sources(cells, self._sources)

    def asked(self, cell: Cell) -> dict[str, Any]:
        """Return the question about a cell that a process is asked."""
        how = self.replication
        return {
            **cell_request(cell, self._sources.get(cell.model), seed=self._seed),
            "warm_up_s": how.warm_up_s,
            "layout": self._rng.randrange(2**32),
            "share": how.share,
            "cell_s": how.cell_s,
            "least_rounds": how.least_rounds,
        }

    def randomized_layout(self) -> dict[str, str]:
        """Return variables that move where things lie in a process, another way for each.

        The size of the environment and the order of sets and dictionaries can make equal code
        differ by more than a regression does (Mytkowicz et al. 2009, Producing Wrong Data Without
        Doing Anything Obviously Wrong!). Two trees never lie alike; drawn anew for every process,
        that is noise, which shows in the interval, and not bias, which does not.
        """
        return {
            "PYTHONHASHSEED": str(self._rng.randrange(1, 2**32)),
            "GRADBENCH_PADDING": "x" * self._rng.randrange(4096),
        }

    def shuffled(self) -> list[int]:
        """Return the sides' numbers in a random order."""
        return self._rng.sample(range(len(SIDES)), len(SIDES))
