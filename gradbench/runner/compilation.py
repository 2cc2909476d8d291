"""What torch.compile does for the modes of a block: graphs, graph breaks, recompilations."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from .. import scratch
from ..experiment.matrix import Cell
from ..records.measurements import Fact

NOTHING_COMPILED: Final = "nothing is compiled: compile=off"
CACHE: Final = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True, slots=True)
class Compilations:
    """What the compiler has done in this process, by its own counters."""

    functions: int = 0  # compiled, or compiled again
    graphs: int = 0
    graph_breaks: int = 0

    @classmethod
    def so_far(cls) -> "Compilations":
        """Return what it has done; nothing where nobody has asked it for anything."""
        utils: Any = sys.modules.get("torch._dynamo.utils")
        if utils is None:
            return cls()
        counters = utils.counters  # torch has no public name for them
        return cls(
            counters["frames"]["ok"],
            counters["stats"]["unique_graphs"],
            sum(counters["graph_break"].values()),
        )

    def since(self, earlier: "Compilations") -> "Compilations":
        """Return what was done since then."""
        return Compilations(
            self.functions - earlier.functions,
            self.graphs - earlier.graphs,
            self.graph_breaks - earlier.graph_breaks,
        )

    def notes(self, *, first: bool) -> dict[str, Fact]:
        """Return what is to be noted of a mode; what the ``first`` compiles is no recompilation."""
        return {
            "graphs": self.graphs,
            "graph_breaks": self.graph_breaks,
            "recompilations": 0 if first else self.functions,
        }


NOTHING: Final = Compilations()


@contextmanager
def nothing_cached(cells: Sequence[Cell]) -> Iterator[None]:
    """Give the compiler an empty folder for its cache, or a second run would seem to be quicker."""
    if all(cell.compile == "off" for cell in cells):
        yield
        return
    before = os.environ.get(CACHE)
    with scratch.folder() as folder:
        os.environ[CACHE] = str(folder)
        try:
            yield
        finally:
            os.environ.pop(CACHE)
            if before is not None:
                os.environ[CACHE] = before
