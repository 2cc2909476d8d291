"""What checkpointing saves and what it costs: cells with it beside the same cells without."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..experiment.matrix import Block, Cell
from . import format_units
from .run_view import MEMORY, TIME, View


def without(cell: Cell) -> Cell:
    """Return the same cell where everything is kept for backward."""
    return replace(cell, checkpointing="off")


def panels(view: View) -> dict[Block, list[Cell]]:
    """Return the run's blocks, each with the cells that differ from its own in checkpointing alone.

    A checkpointed block whose plain one the run has not is a block by itself.
    """
    joined: dict[Block, list[Cell]] = {}
    for block, cells in view.blocks.items():
        plain = without(cells[0]).block
        joined.setdefault(plain if plain in view.blocks else block, []).extend(cells)
    return joined


def over(view: View, cell: Cell, base: Cell, meter: str) -> float | None:
    """Return a cell's median over that of another block's, or None where either is missing or 0.

    The two were not interleaved, so there is no interval.
    """
    ours, others = view.estimate(cell, meter), view.estimate(base, meter)
    if ours is None or others is None or others.point <= 0:
        return None
    return ours.point / others.point


@dataclass(frozen=True, slots=True)
class Trade:
    """A checkpointed cell and its plain one: medians, and the first over the second."""

    cell: Cell
    memory: str
    time: str
    blocks: str  # what is computed again, in words


def trades(view: View) -> Iterator[Trade]:
    """Yield what each checkpointed cell saves and costs, where both cells were measured."""
    for cell in view.cells:
        base = without(cell)
        if cell == base or base not in view.numbers:
            continue
        memory, time = (_instead(view, cell, base, meter) for meter in (MEMORY, TIME))
        if memory or time:
            yield Trade(cell, memory, time, _blocks(view, cell))


def sentences(view: View) -> list[str]:
    """Return a sentence for each trade."""
    return [
        f"checkpointing: {trade.cell} {' and '.join(filter(None, said))}"
        + (f"; computed again: {trade.blocks}" if trade.blocks else "")
        for trade in trades(view)
        for said in [
            (trade.memory and f"adds {trade.memory}", trade.time and f"takes {trade.time}"),
        ]
    ]


def _instead(view: View, cell: Cell, base: Cell, meter: str) -> str:
    factor = over(view, cell, base, meter)
    if factor is None:
        return ""
    ours, others = view.value(cell, meter).text, view.value(base, meter).text
    return f"{ours} instead of {others} (×{format_units.factor(factor)})"


def _blocks(view: View, cell: Cell) -> str:
    for meter in (MEMORY, TIME):
        measured = view.measurement(cell, meter)
        if measured is not None and "checkpointed" in measured.notes:
            return str(measured.notes["checkpointed"])
    return ""
