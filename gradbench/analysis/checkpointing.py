"""What checkpointing saves and what it costs: cells with it beside the same cells without."""

from collections.abc import Iterator
from dataclasses import replace

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

    The two were not interleaved, so there is no interval; of two machines there is no ratio.
    """
    own, others = view.estimate(cell, meter), view.estimate(base, meter)
    elsewhere = view.machine(cell) != view.machine(base)
    if own is None or others is None or others.point <= 0 or elsewhere:
        return None
    return own.point / others.point


def sentences(view: View) -> list[str]:
    """Return for each checkpointed block what its cells save and cost, and what is computed again.

    Over the plain cells, where these were measured.
    """
    by_block: dict[Block, list[str]] = {}
    blocks: dict[Block, str] = {}
    for cell in view.cells:
        base = without(cell)
        changes = [] if cell == base else list(_changes(view, cell, base))
        if changes:
            by_block.setdefault(cell.block, []).append(f"{cell.grad_mode} {', '.join(changes)}")
            blocks.setdefault(cell.block, _blocks(view, cell))
    return [
        f"checkpointing, over the same cells without: {block}: {'; '.join(changes)}"
        f"{f'; computed again: {blocks[block]}' if blocks[block] else ''}"
        for block, changes in by_block.items()
    ]


def _changes(view: View, cell: Cell, base: Cell) -> Iterator[str]:
    for meter, what in ((MEMORY, "memory"), (TIME, "time")):
        factor = over(view, cell, base, meter)
        if factor is not None:
            yield f"{what} ×{format_units.factor(factor)}"


def _blocks(view: View, cell: Cell) -> str:
    notes = (view.measurement(cell, meter) for meter in (MEMORY, TIME))
    return next(
        (str(one.notes["checkpointed"]) for one in notes if one and "checkpointed" in one.notes), ""
    )
