"""The largest batches of a model that fit a memory, looked for beside what is counted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from .. import devices
from ..errors import GradbenchError
from ..experiment.matrix import GRAD_MODES, Cell
from ..experiment.plan import Plan
from ..memory.child_process import Children, Died
from ..memory.predict import Predictor
from ..records.advice import LargestBatch
from ..runner import host_system
from ..workloads.models import Model

LIKELY: Final = "inference_mode"
"""The mode that is most often the best: its batch is looked for before it is known which is."""

SEARCHES: Final = 3
"""Limits of a process's time that the searches may take together."""

Purpose = tuple[str, Cell]


@dataclass(frozen=True, slots=True)
class Batches:
    """The largest batches of a model: one a purpose, training last, and of training with less."""

    purposes: tuple[LargestBatch, ...]
    checkpointed: LargestBatch


Fits = Callable[[str], Batches]
"""Waits for the largest batches; it is called with the best mode for inference."""


@contextmanager
def largest_batches(cell: Cell, model: Model, memory_bytes: int, *, plan: Plan) -> Iterator[Fits]:
    """Look for the largest batches that fit while what is inside runs; yield what waits for them.

    They are for inference in the best mode, inference with grad on, and training, as it is and
    with blocks computed again. Where tensors lie in the memory of a device of its own, of which
    others need a part, the search waits, too.
    """
    device, forks = devices.find(cell.device), host_system.here().forks
    children = Children(device=device, forks=forks, limit_s=SEARCHES * plan.limit_s)
    search = partial(_found, model, memory_bytes, plan, forks)
    training = replace(cell, grad_mode=GRAD_MODES[0], workload="training")
    purposes = [
        _inference(cell, LIKELY),
        ("inference, grad left on", replace(cell, grad_mode=GRAD_MODES[0])),
        ("training", training),
        ("training, checkpointed", replace(training, checkpointing="blocks")),
    ]
    with ExitStack() as stack:
        likely = partial(search, purposes)
        result = (
            stack.enter_context(children.beside(likely))
            if device.tensors_from_malloc
            else partial(children.run, likely)
        )

        def fits(best: str) -> Batches:
            found = _or_reasons(result, purposes)
            if best != LIKELY:
                first = [_inference(cell, best)]
                found[:1] = _or_reasons(partial(children.run, partial(search, first)), first)
            return Batches(tuple(found[:-1]), found[-1])

        yield fits


def _inference(cell: Cell, mode: str) -> Purpose:
    return f"inference, {mode}", replace(cell, grad_mode=mode)


def _found(
    model: Model,
    memory_bytes: int,
    plan: Plan,
    forks: bool,  # by place, for a partial
    purposes: Sequence[Purpose],
    _say: Callable[[int], None],
) -> list[LargestBatch]:
    """Return the largest batch for each purpose, or why there is none."""
    predictor = Predictor(purposes[0][1].device, limit_s=plan.limit_s, forks=forks, checks=True)
    found = []
    for purpose, cell in purposes:
        try:
            fit = predictor.largest(cell, model, memory_bytes, seed=plan.seed)
        except GradbenchError as reason:
            found.append(LargestBatch(purpose=purpose, cell=cell, reason=str(reason)))
        else:
            found.append(LargestBatch(purpose=purpose, cell=cell, fit=fit))
    return found


def _or_reasons(
    result: Callable[[], list[LargestBatch]], purposes: Sequence[Purpose]
) -> list[LargestBatch]:
    """Return what a search found, or how its process ended for each purpose."""
    try:
        return result()
    except Died as how:
        reason = f"the process that looked for it was {how}"
        return [LargestBatch(purpose=one, cell=cell, reason=reason) for one, cell in purposes]
