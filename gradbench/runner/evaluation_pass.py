"""The evaluation pass, inside its process: what an evaluation leaves in the model for training."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Final

from ..devices import Unreadable
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..memory.left_behind import in_words, left_by
from ..workloads.grad_modes import MODES
from ..workloads.models import Model
from ..workloads.steps import Subject, evaluation
from .attempts import Message, Refusal, Stopwatch, Trying, guarded, settle
from .outcomes import Figure, outcome
from .visits import start

NAME: Final = "left_by_evaluation"

COMPILED: Final = "compiled code makes its tensors where nobody sees who made them"


def evaluation_block(
    cells: Sequence[Cell], model: Model, plan: Plan, wanted: Collection[str]
) -> Iterator[Message]:
    """Yield what the first evaluation of each cell leaves in the model as it was built."""
    watch, device = Stopwatch(), settle(cells[0])
    begun = start(cells[0], model, device, plan)
    yield watch.lap("build")
    for cell in cells:
        yield Trying(cell)
        subject = begun if isinstance(begun, Refusal) else begun.subject()
        figure = (
            subject
            if isinstance(subject, Refusal)
            else guarded(partial(_left, cell, subject), device)
        )
        yield from (outcome(cell, name, figure) for name in wanted)
    yield watch.lap("evaluations")


def _left(cell: Cell, subject: Subject) -> Figure | Unreadable:
    if cell.compile != "off":
        return Unreadable(COMPILED)
    left = left_by(evaluation(subject, MODES[cell.grad_mode]), subject.parts())
    notes = {"made": in_words(left.made), "changed": in_words(left.changed)}
    return Figure(left.nbytes, {what: words for what, words in notes.items() if words})
