"""What a process of a comparison is asked about a cell, and which cells share an answer's fate."""

from collections.abc import Mapping, Sequence
from typing import Any

from .. import devices
from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource


def cell_request(cell: Cell, source: ModelSource | None, *, seed: int) -> dict[str, Any]:
    """Return what a process is asked that is to build a cell: axes, source, seed, environment."""
    default = Cell(model=cell.model, workload=cell.workload, grad_mode=cell.grad_mode).axes()
    required = ("model", "workload", "grad_mode")
    axes = {k: v for k, v in cell.axes().items() if k in required or v != default[k]}
    return {
        "cell": axes,
        "source": source.row() if source is not None else None,
        "seed": seed,
        "environment": dict(devices.find(cell.device).environment),
    }


def own_sources(
    cells: Sequence[Cell], sources: Mapping[str, ModelSource]
) -> dict[str, ModelSource]:
    """Return where the cells' models come from, of those that are not a library's."""
    models = dict.fromkeys(cell.model for cell in cells)
    return {name: sources[name] for name in models if name in sources and not sources[name].library}


def like(cell: Cell, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that hang where one does, most likely: those of its model and workload."""
    kind = cell.model, cell.workload
    return [one for one in cells if (one.model, one.workload) == kind]
