"""Two modes that do the same must read the same: where they do not, their figures say so."""

from collections.abc import Sequence
from dataclasses import replace

from ..experiment.matrix import EQUAL_MODES
from ..records.measurements import Measurement, Reading


def compared(readings: Sequence[Reading]) -> list[Reading]:
    """Return the readings of one block, with a note on bytes that differ between equal modes."""
    bytes_of = {
        (reading.cell.grad_mode, reading.meter): reading.values[0]
        for reading in readings
        if isinstance(reading, Measurement) and reading.exact and reading.unit == "bytes"
    }
    return [_noted(reading, bytes_of) for reading in readings]


def _noted(reading: Reading, bytes_of: dict[tuple[str, str], int]) -> Reading:
    mode, meter = reading.cell.grad_mode, reading.meter
    if mode not in EQUAL_MODES or not isinstance(reading, Measurement):
        return reading
    (equal,) = set(EQUAL_MODES) - {mode}
    own, other = bytes_of.get((mode, meter)), bytes_of.get((equal, meter))
    if own is None or other is None or own == other:
        return reading
    return replace(reading, notes={**reading.notes, "unlike_equal_mode": f"{equal}: {other:,} B"})
