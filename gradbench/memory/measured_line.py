"""Peaks measured at small batches and carried on in a line, for steps that no fake tensors run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .. import devices
from ..experiment.matrix import Cell
from ..records.allocations import Mark, PeakBreakdown, attribute_peak
from ..workloads.arms import build, make_arm, steps
from ..workloads.models import Model
from .step_phases import Marks


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """A warm step's peak at one batch size, by part, and what was there before."""

    parts: Mapping[str, int]
    before_bytes: int
    phase: str


@dataclass(frozen=True, slots=True)
class MeasuredLine:
    """One point, or two and the line through them."""

    batches: tuple[int, ...]
    points: tuple[MeasuredPoint, ...]

    @property
    def phase(self) -> str:
        """The phase of the peak, at the largest batch."""
        return self.points[-1].phase

    def at(self, batch: int) -> tuple[dict[str, int], int]:
        """Return the parts of the peak at a batch, and what is there before, as the line has it."""
        first, last = self.points[0], self.points[-1]
        width = max(1, self.batches[-1] - self.batches[0])

        def carried(low: int, high: int) -> int:
            return max(0, low + (high - low) * (batch - self.batches[0]) // width)

        parts = {part: carried(first.parts[part], last.parts[part]) for part in first.parts}
        return parts, carried(first.before_bytes, last.before_bytes)


def measured_point(
    cell: Cell, model: Model, seed: int, _say: Callable[[int], None]
) -> MeasuredPoint:
    """Build the cell for real, step twice, and return what a third step's peak is made of."""
    device = devices.find(cell.device)
    model.load()
    ledger = device.ledger()
    subject, _ = ledger.observe(lambda: build(cell, model, seed=seed))
    marks = Marks(address=lambda storage: storage.data_ptr())
    around = marks.around(subject)
    arm, _ = ledger.observe(lambda: make_arm(cell, around))

    def warm(_: Callable[[Mark], None]) -> None:
        with marks.telling(lambda _: None, around.parameters()):
            steps(arm, 2)

    ledger.trace(warm)
    ledger.observe(around.clear_gradients)
    resident = marks.resident(around)

    def reported(mark: Callable[[Mark], None]) -> None:
        with marks.telling(mark, around.parameters()):
            steps(arm, 1)

    _, window, traced = ledger.trace(reported)
    before_bytes = max(window.before_bytes, sum(block.nbytes for block in resident.values()))
    peak: PeakBreakdown = attribute_peak(
        traced.entries(device.place), resident=resident, before_bytes=before_bytes
    )
    return MeasuredPoint(dict(peak.parts), before_bytes, peak.phase)
