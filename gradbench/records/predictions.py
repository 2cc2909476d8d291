"""What a prediction says: plain results that predicting writes and analysis reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ..experiment.matrix import Cell
from .allocations import PeakBreakdown
from .measurements import PARTS, Fact

LARGEST_BATCH: Final = 2**24
"""Where a search for the largest batch ends: none above it is asked for."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a warm step of a cell will need.

    The breakdown is of what tensors ask for. ``allocated_bytes`` is what the allocator hands out
    for them and for libraries' workspaces, ``reserved_bytes`` what it takes from the driver.
    ``unprobed`` names the operators whose inner needs are not counted, because they could not be
    run: the real peak may lie above by those. ``run_otherwise`` names those that the CPU ran and
    the device has others for.

    Where a step does not run on fake tensors, it was run for real at the batch sizes
    ``measured_at``, because of ``why_measured``, and each allocation carried on in a straight line.
    At the batch size ``checked_at`` a step was run for real and peaked as predicted, to the byte.
    """

    cell: Cell
    breakdown: PeakBreakdown
    before_bytes: int
    unprobed: tuple[str, ...]
    seconds: float
    allocated_bytes: int = 0  # most at once
    reserved_bytes: int = 0
    context_bytes: int = 0
    run_otherwise: tuple[str, ...] = ()
    measured_at: tuple[int, ...] = ()
    why_measured: str = ""
    checked_at: int | None = None

    @property
    def peak_bytes(self) -> int:
        """Most bytes that will be live at once, what is there before the step included."""
        return self.breakdown.peak_bytes

    @property
    def process_bytes(self) -> int:
        """What the process will hold on the device: all that is reserved, and what is beside it."""
        return self.reserved_bytes + self.context_bytes

    @property
    def transient_bytes(self) -> int:
        """The part of the peak that the step adds."""
        return self.peak_bytes - self.before_bytes

    @property
    def how(self) -> str:
        """Where the figures are from if not from fake tensors: ``measured at batches 2 and 4``."""
        return measured_at_batches(self.measured_at)


def in_a_line(
    low: Prediction, high: Prediction, at: Callable[[int, int], int]
) -> Prediction | None:
    """Return two predictions carried on to the batch where ``at`` leads: peaks and parts alone.

    None where one would be less than nothing.
    """
    parts = {part: at(low.breakdown.parts[part], high.breakdown.parts[part]) for part in PARTS}
    carried = replace(
        high,
        breakdown=replace(high.breakdown, parts=parts, ops={}, timeline={}, phases=(), left=()),
        before_bytes=at(low.before_bytes, high.before_bytes),
        allocated_bytes=at(low.allocated_bytes, high.allocated_bytes),
        reserved_bytes=at(low.reserved_bytes, high.reserved_bytes),
    )
    falls = min(*parts.values(), carried.transient_bytes, carried.reserved_bytes) < 0
    return None if falls else carried


def measured_at_batches(batches: tuple[int, ...]) -> str:
    """Return at which batch sizes figures were measured, "" for none."""
    if not batches:
        return ""
    several = "es" if len(batches) > 1 else ""
    return f"measured at batch{several} {' and '.join(map(str, batches))}"


MEASURED_AT: Final = "measured_at_batches"
WHY_MEASURED: Final = "why_measured"
NOT_COUNTED: Final = "not_counted_inside"
"""Names of the notes on a measurement that is a prediction."""


def notes(prediction: Prediction) -> dict[str, Fact]:
    """Return what is to be noted of a predicted peak, for `marks` to say."""
    facts: dict[str, Fact] = {}
    if prediction.unprobed:
        facts[NOT_COUNTED] = ", ".join(prediction.unprobed)
    if prediction.measured_at:
        facts[MEASURED_AT] = ", ".join(map(str, prediction.measured_at))
        facts[WHY_MEASURED] = prediction.why_measured
    return facts


def marks(noted: Mapping[str, Fact]) -> list[str]:
    """Return in words what the notes of a predicted peak say of it; [] where it is exact."""
    words = []
    if MEASURED_AT in noted:
        batches = tuple(int(batch) for batch in str(noted[MEASURED_AT]).split(","))
        why = f": {noted[WHY_MEASURED]}" if WHY_MEASURED in noted else ""
        words.append(f"{measured_at_batches(batches)}, not predicted{why}")
    if NOT_COUNTED in noted:
        words.append(f"not counted, what these need inside: {noted[NOT_COUNTED]}")
    return words


STEP_FAILS: Final = "its step fails: "
"""How a reason begins that a model's own error is."""
BUILD_FAILS: Final = "it cannot be built: "
"""The same of an error of its factory."""


@dataclass(frozen=True, slots=True)
class NoPrediction:
    """Why a cell has none; ``frames`` are the user's own of a traceback, where they raised."""

    reason: str
    frames: str = ""


def batch_in_words(batch: int, *, ended: bool) -> str:
    """Return the largest batch that fits; ``ended``: the search did so, not the memory."""
    return f"{batch:,}{' or more' if ended else ''}"


@dataclass(frozen=True, slots=True)
class Fit:
    """The largest batch that fits a budget; 0 if not even the smallest that works does.

    Peaks are of the process: ``reserve_bytes`` of them for context and kernels.
    """

    cell: Cell
    budget_bytes: int
    batch_size: int
    peak_bytes: int | None  # at that batch; None for none
    next_bytes: int | None  # of the next batch up; None where `LARGEST_BATCH` fits
    reserve_bytes: int = 0
    unprobed: tuple[str, ...] = ()
    run_otherwise: tuple[str, ...] = ()
    measured_at: tuple[int, ...] = ()
    why_measured: str = ""
    checked_at: int | None = None

    @property
    def size(self) -> str:
        """The batch size in words."""
        return batch_in_words(self.batch_size, ended=self.next_bytes is None)

    def times(self, other: "Fit") -> float | None:
        """Return how many times another's batch it is; None unless the memory ended both."""
        if not other.batch_size or None in (self.next_bytes, other.next_bytes):
            return None
        return self.batch_size / other.batch_size

    @property
    def how(self) -> str:
        """Where the figures are from if not from fake tensors: ``measured at batches 2 and 4``."""
        return measured_at_batches(self.measured_at)
