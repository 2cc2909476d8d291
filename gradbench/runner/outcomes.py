"""What a pass has read of a meter, as the outcome that is written down."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..devices import Unreadable
from ..experiment.matrix import Cell
from ..records.measurements import Fact, Measurement, Skipped
from .attempts import Refusal, skip
from .meters import METERS


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure in its meter's unit, and what is to be noted with it."""

    value: int
    notes: Mapping[str, Fact] = field(default_factory=dict)


def outcome(cell: Cell, meter: str, result: Figure | Unreadable | Refusal) -> Measurement | Skipped:
    """Return the outcome of a meter that reads one number, or has a reason in its place."""
    match result:
        case Refusal():
            return skip(cell, meter, result)
        case Unreadable():
            return skip(cell, meter, Refusal("unreadable", str(result)))
        case Figure():
            return Measurement(
                cell=cell,
                meter=meter,
                unit=METERS[meter].unit,
                values=(result.value,),
                iterations=1,
                exact=METERS[meter].exact,
                notes=result.notes,
            )
