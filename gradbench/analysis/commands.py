"""The commands that measure a cell again."""

import shlex
from collections.abc import Mapping
from functools import cache
from typing import Final

from ..experiment import model_names
from ..experiment.matrix import AXES, GRAD_MODES, Cell
from ..experiment.presets import PRESETS
from ..records.measurements import Started

_PLAN: Final[Mapping[str, str]] = {"budget_s": "--budget", "limit_s": "--limit", "seed": "--seed"}


def again(cell: Cell, started: Started) -> str | None:
    """Return the command line that measures the block of a cell again, in all modes of the run.

    The modes of a block take turns: a mode alone would have no ratio. None where the model was
    given in Python and has no name that a command line knows.
    """
    source = started.sources.get(cell.model)
    sized = model_names.parse(cell.model) is not None
    if (
        source is None
        and not sized
        and all(cell.model != known.model for cells in _presets().values() for known in cells)
    ):
        return None
    modes = [c.grad_mode for c in started.cells if c.block == cell.block]
    words = ["gradbench", "run"]
    for axis, value in cell.axes().items():
        option = AXES[axis].option
        if axis == "grad_mode":
            words += [] if sorted(modes) == sorted(GRAD_MODES) else [option, ",".join(modes)]
        elif axis == "model" and source is not None:
            words += source.arguments(cell.model)
        elif axis in ("model", "workload", "device", "batch_size") or value != AXES[axis].default:
            words += [option, str(value)]
    for name, option in _PLAN.items():
        planned = started.plan.get(name)
        if planned is not None and planned != getattr(PRESETS["quick"].plan, name):
            words += [option, f"{planned:g}"]
    if "instructions" in started.meters:
        words += ["--meter", ",".join(started.meters)]
    return shlex.join(words)


def through_pytest(cell: Cell) -> str | None:
    """Return the pytest command of a cell, or None where no preset holds it."""
    on_cpu = Cell(**{**cell.axes(), "device": "cpu"})  # type: ignore[arg-type] # its own axes
    for name, cells in _presets().items():
        if on_cpu in cells:
            words = ["pytest", "--benchmark-only"]
            words += [f"--gradbench-preset={name}"] if name != "quick" else []
            words += [f"--gradbench-device={cell.device}"] if cell.device != "cpu" else []
            test = f"benchmarks/test_grad_modes.py::test_{cell.workload}[{cell.id}]"
            return shlex.join([*words, test])
    return None


@cache
def _presets() -> Mapping[str, frozenset[Cell]]:
    return {name: frozenset(preset) for name, preset in PRESETS.items()}
