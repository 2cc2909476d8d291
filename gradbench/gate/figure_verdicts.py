"""What was decided about one figure of one cell, and on what grounds."""

from dataclasses import dataclass

from ..experiment.matrix import Cell
from ..stats.estimates import Estimate
from ..stats.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureVerdict:
    """One row of a verdict table.

    ``change`` is the ratio candidate / baseline, None where there is none (a side that could not
    be measured, or a baseline of 0). ``baseline`` and ``candidate`` are in ``unit``, as recorded:
    nanoseconds, bytes, or ``ratio`` where two modes of one run are what is held together; None
    where a side has no number. ``reason`` says in words why the verdict is what it is.
    """

    cell: Cell
    meter: str
    verdict: Verdict
    change: Estimate | None
    baseline: float | None
    candidate: float | None
    unit: str
    reason: str
