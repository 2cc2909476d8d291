"""What a prediction says: plain results that predicting writes and analysis reads."""

from dataclasses import dataclass

from ..experiment.matrix import Cell
from .allocations import PeakBreakdown


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a warm step of a cell will need.

    ``unprobed`` names the operators whose inner needs are not counted, because they could not be
    run: the real peak may lie above by those.
    """

    cell: Cell
    breakdown: PeakBreakdown
    before_bytes: int
    unprobed: tuple[str, ...]
    seconds: float

    @property
    def peak_bytes(self) -> int:
        """Most bytes that will be live at once, what is there before the step included."""
        return self.breakdown.peak_bytes

    @property
    def transient_bytes(self) -> int:
        """The part of the peak that the step adds."""
        return self.peak_bytes - self.before_bytes


@dataclass(frozen=True, slots=True)
class Fit:
    """The largest batch that fits a budget; 0 if not even one sample does."""

    cell: Cell
    budget_bytes: int
    batch_size: int
    peak_bytes: int | None  # at that batch; None for none
    next_bytes: int | None  # one sample more; None where no batch was too large
