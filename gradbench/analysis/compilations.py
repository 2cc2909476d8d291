"""What torch.compile took and made in each mode, in words."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ..experiment.matrix import Block, Cell
from ..plurals import counted
from ..records.measurements import Fact
from . import format_units
from .run_view import Value, View

COMPILE_TIME: Final = "compile_time"


def value(view: View, cell: Cell) -> Value:
    """Return a cell's compile time, what was compiled in the detail."""
    took, measured = view.value(cell, COMPILE_TIME), view.measurement(cell, COMPILE_TIME)
    return took if measured is None else replace(took, detail=made(measured.notes))


def made(notes: Mapping[str, Fact]) -> str:
    """Return in words what was compiled: ``1 graph, 0 graph breaks, compiled again``."""
    graphs, breaks, again = (
        _count(notes, name) for name in ("graphs", "graph_breaks", "recompilations")
    )
    words = f"{counted(graphs, 'graph')}, {counted(breaks, 'graph break')}"
    if not again:
        return words if graphs else "nothing compiled again"
    return f"{words}, {counted(again, 'recompilation')}"


def _count(notes: Mapping[str, Fact], name: str) -> int:
    """Return a count that is noted; of what a file of others says instead, none."""
    count = notes.get(name, 0)
    return int(count) if isinstance(count, int | float) else 0


def sentences(view: View) -> list[str]:
    """Return for each compiled block what the first step of each mode took more than others."""
    by_block: dict[Block, list[str]] = {}
    for cell in view.cells:
        measured = view.measurement(cell, COMPILE_TIME)
        if measured is not None:
            took = format_units.duration(measured.values[0])
            figures = f"{cell.grad_mode} {took} ({made(measured.notes)})"
            by_block.setdefault(cell.block, []).append(figures)
    return [
        f"torch.compile, the first step less the typical one: {block}: {'; '.join(figures)}"
        for block, figures in by_block.items()
    ]
