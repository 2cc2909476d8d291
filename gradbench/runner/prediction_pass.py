"""The prediction pass, inside its process: each cell's peak, by a step on fake tensors."""

import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Final

from ..devices import Unreadable
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..memory.predict import (
    CannotTrain,
    EndsItsProcess,
    Predictor,
    TookTooLong,
    Unpredictable,
)
from ..records import predictions
from ..workloads.models import Model
from . import host_system
from .attempts import Message, Refusal, Stopwatch, Trying, guarded, settle
from .outcomes import Figure, outcome

NAME: Final = "predicted_peak"

SHARE: Final = 0.9
"""Of a process's time limit: what its predictions may take, so that none is lost with another."""

SHORTEST_S: Final = 1.0
"""What each prediction may take even then."""


def predict_block(
    cells: Sequence[Cell], model: Model, plan: Plan, _wanted: Collection[str]
) -> Iterator[Message]:
    """Yield the predicted peaks of a block's cells, which share what is learned of kernels."""
    watch, device = Stopwatch(), settle(cells[0])
    predictor = Predictor(cells[0].device, forks=host_system.here().forks)
    ends_s = time.monotonic() + SHARE * plan.limit_s
    for place, cell in enumerate(cells):
        yield Trying(cell)
        left_s = max(ends_s - time.monotonic(), SHORTEST_S)
        predictor.limit_s = left_s / (len(cells) - place)
        prediction = guarded(partial(_predicted, predictor, cell, model, plan), device)
        yield outcome(cell, NAME, prediction)
    yield watch.lap("predictions")


def _predicted(
    predictor: Predictor, cell: Cell, model: Model, plan: Plan
) -> Figure | Unreadable | Refusal:
    try:
        prediction = predictor.predict(cell, model, seed=plan.seed)
    except CannotTrain as words:
        return Refusal("cannot_train", str(words))
    except EndsItsProcess as how:
        return Refusal("crashed", str(how))
    except TookTooLong as how:
        return Refusal("timed_out", str(how))
    except Unpredictable as reason:
        return Unreadable(str(reason))
    return Figure(prediction.peak_bytes, predictions.notes(prediction))
