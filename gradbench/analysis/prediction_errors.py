"""How far predicted peaks lie from those that the same run measured, which check them."""

from collections.abc import Mapping

from ..experiment.matrix import Cell
from ..records import ranks
from ..records.measurements import Measurement
from ..records.run import Run


def errors(run: Run) -> dict[Cell, float]:
    """Return the relative error of each prediction beside which a peak was measured; 0 if exact.

    Of several ranks, that of the first was predicted.
    """
    predicted, measured = _peaks(run, "predicted_peak"), _measured(run)
    return {
        cell: nbytes / measured[cell] - 1
        for cell, nbytes in predicted.items()
        if measured.get(cell)
    }


def unchecked(run: Run) -> list[Cell]:
    """Return the cells that have a predicted peak and no measured one."""
    measured = _measured(run)
    return [cell for cell in _peaks(run, "predicted_peak") if cell not in measured]


def in_words(error: float) -> str:
    """Return a relative error, from twice on as a factor."""
    return f"{error:+.2%}" if error < 1 else f"×{1 + error:.3g}"


def _measured(run: Run) -> Mapping[Cell, float]:
    """Return what tensors asked for at most; on the CPU that is what was allocated."""
    return _peaks(run, "peak_allocated") | _peaks(run, "peak_requested")


def _peaks(run: Run, meter: str) -> dict[Cell, float]:
    return {
        outcome.cell: ranks.of_first(outcome.notes) or outcome.values[0]
        for outcome in run.outcomes
        if isinstance(outcome, Measurement) and outcome.meter == meter
    }
