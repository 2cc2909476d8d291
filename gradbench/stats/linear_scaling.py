"""Peaks over a size that varies: straight lines, and what they allow within a budget. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ..experiment import model_names
from ..experiment.matrix import AXES, LENGTHS, OF_TOKENS, Cell

VARIABLES: Final[Mapping[str, str]] = {
    "batch_size": "sample",
    "depth": "layer",
    "width": "channel",
    "resolution": "pixel of side",
    "prompt": "token of the prompt",
    "new_tokens": "new token",
}
"""Sizes along which peaks are followed, and what one of each is called."""


ROUNDING: Final = 1e-9
"""Rise over all points, relative to the peak, below which there is none."""

CURVED: Final = 0.05
"""Relative distance of a point from its line from which on the line is not believed."""


@dataclass(frozen=True, slots=True)
class Line:
    """Peak bytes of cells that differ in one variable only, and the straight line through them.

    ``slope`` is in bytes per unit of the variable: per sample for ``batch_size``, per layer for
    ``depth``. ``intercept`` is what the line says of none: for ``batch_size`` what is there for
    the model alone. ``max_error`` is the largest relative distance of a point from it: where that
    is large the peak is not linear in the variable, as in width, whose parameters grow with its
    square; then look at ``exponent``, the slope in logarithms.
    """

    cell: Cell  # the one with the least of the variable
    variable: str
    at: tuple[int, ...]
    peaks: tuple[int, ...]
    slope: float
    intercept: float
    max_error: float
    exponent: float

    @property
    def curved(self) -> bool:
        """Whether an exponent says more: parameters grow with the square of a width."""
        return self.max_error > CURVED or self.variable in ("width", "resolution")

    def peak(self, value: int) -> int:
        """Return the bytes that the line says of a value."""
        return round(self.slope * value + self.intercept)

    def distance(self, points: Mapping[int, float]) -> float:
        """Return the largest relative distance of points, variable's value -> bytes, from it."""
        return max(
            abs(self.slope * at + self.intercept - peak) / peak for at, peak in points.items()
        )


def largest_two(cell: Cell, variable: str, points: Mapping[int, int]) -> Line:
    """Return the line through the peaks of the two largest values, which say how it goes on.

    Peaks rise in straight pieces: what a small batch needs beside its samples says little of a
    large one. Raise ValueError for less than two points.
    """
    return fit(cell, variable, {at: points[at] for at in sorted(points)[-2:]})


def fit(cell: Cell, variable: str, points: Mapping[int, int]) -> Line:
    """Return the least-squares line through ``points``, variable value -> bytes.

    Distances count relative to the peak, for points span decades. Raise ValueError for less than
    two points.
    """
    if len(points) < 2:
        raise ValueError("a line needs two points")
    at = sorted(points)
    x = np.array(at, dtype=np.float64)  # (points,)
    y = np.array([points[value] for value in at], dtype=np.float64)  # (points,)
    middle = float(np.average(x, weights=1 / y**2))
    slope, level = np.polyfit(x - middle, y, 1, w=1 / y)  # apart from the middle: well conditioned
    intercept = level - slope * middle
    if len(at) == 2:  # then the line goes through both, and need not be rounded
        slope = (y[1] - y[0]) / (x[1] - x[0])
        intercept = y[1] - slope * x[1]
    if abs(slope) * (x[-1] - x[0]) < ROUNDING * y.max():
        slope, intercept = 0.0, float(np.sum(1 / y) / np.sum(1 / y**2))
    max_error = float(np.max(np.abs(slope * x + intercept - y) / y))
    exponent = float(np.polyfit(np.log(x), np.log(y), 1)[0])
    peaks = tuple(points[value] for value in at)
    return Line(
        cell, variable, tuple(at), peaks, float(slope), float(intercept), max_error, exponent
    )


def lines(peaks: Mapping[Cell, int]) -> list[Line]:
    """Return a line for every set of cells that differ in one variable only, over two values up.

    ``peaks`` are bytes by cell; one that is not above 0, as no step has and a file of others may
    say, is on no line: distances count relative to the peak.
    """
    fitted = []
    for variable in VARIABLES:
        groups: dict[Cell, dict[int, int]] = {}
        least: dict[Cell, Cell] = {}
        for cell, nbytes in sorted(peaks.items(), key=lambda item: value(item[0], variable) or 0):
            at = value(cell, variable)
            if at is None or nbytes <= 0:
                continue
            rest = apart_from(cell, variable)
            groups.setdefault(rest, {})[at] = nbytes
            least.setdefault(rest, cell)
        fitted += [
            fit(least[rest], variable, points) for rest, points in groups.items() if len(points) > 1
        ]
    return fitted


def break_even(lines: Iterable[Line], *, reference: str) -> dict[Cell, float]:
    """Return how many times the reference mode's batch a mode allows in the limit of large budgets.

    That is the ratio of the two slopes, bytes per sample; by the cell of each line over
    ``batch_size`` whose block has one of the reference mode too.
    """
    over_batch = [line for line in lines if line.variable == "batch_size" and line.slope > 0]
    of_reference = {
        apart_from(line.cell, "batch_size").block: line.slope
        for line in over_batch
        if line.cell.grad_mode == reference
    }
    return {
        line.cell: of_reference[block] / line.slope
        for line in over_batch
        if (block := apart_from(line.cell, "batch_size").block) in of_reference
    }


def value(cell: Cell, variable: str) -> int | None:
    """Return the variable's value in a cell, or None where its name or workload gives none."""
    if variable in LENGTHS:
        length: int = getattr(cell, variable)
        return length if cell.workload in OF_TOKENS else None
    if variable == "batch_size":
        return cell.batch_size
    sized = model_names.parse(cell.model)
    return (getattr(sized, variable) or None) if sized is not None else None


def apart_from(cell: Cell, variable: str) -> Cell:
    """Return what cells that differ in a variable only share, in a cell's form."""
    if variable == "batch_size":
        return replace(cell, batch_size=1)
    if variable in LENGTHS:
        return replace(cell, **{variable: AXES[variable].default})  # type: ignore[arg-type] # an axis by its name
    sized = model_names.parse(cell.model)
    assert sized is not None
    others: Sequence[str] = [
        f"{name[0]}{getattr(sized, name)}" for name in model_names.VARIABLES if name != variable
    ]
    return replace(cell, model="_".join([sized.family, *others]))
