"""The truth table by execution: every combination is entered, every operation run."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from ..memory.saved_tensors import SavedTensors
from ..records.semantics import Outcome, Row, Transition
from .proof import bits, first_sentence, in_a_thread
from .state import BYTES, INPUTS, OPERATIONS, combinations

if TYPE_CHECKING:
    import pandas as pd

Context = Callable[[], AbstractContextManager[object]]

CONSTRUCTS: Final[Mapping[str, Context]] = {
    "none": nullcontext,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "set_grad_enabled(True)": partial(torch.set_grad_enabled, True),
    "set_grad_enabled(False)": partial(torch.set_grad_enabled, False),
    "inference_mode(True)": partial(torch.inference_mode, True),
    "inference_mode(False)": partial(torch.inference_mode, False),
}
SIZE: Final = BYTES // 4


def truth_table() -> "pd.DataFrame":
    """Return what this torch does in every combination, one row each, 490 in all.

    Columns: ``ambient`` (the argument of ``set_grad_enabled`` called as a function), ``outer``,
    ``inner``, ``input``; ``grad_enabled``, ``inference_mode_enabled``, ``restored``,
    ``restored_after_error``; then for each of the operations square, times_weight, view, in_place
    and factory: ``_error`` (the first sentence, or ""), ``_requires_grad``, ``_is_leaf``,
    ``_grad_fn``, ``_inference``, ``_saved``, ``_saved_bytes``, ``_version`` (missing where the
    result is an inference tensor). It is executed anew at each call, in under a second, and the
    caller's grad mode is left alone.
    """
    import pandas as pd

    return pd.DataFrame([flat(row) for row in rows()])


def flat(row: Row) -> dict[str, object]:
    """Return a row as the frame's columns."""
    columns: dict[str, object] = {
        "ambient": row.ambient,
        "outer": row.outer,
        "inner": row.inner,
        "input": row.input,
        "grad_enabled": row.grad,
        "inference_mode_enabled": row.inference,
        "restored": row.restored,
        "restored_after_error": row.restored_after_error,
    }
    for operation, outcome in row.outcomes.items():
        name = operation.replace(" ", "_").replace("-", "_")
        columns |= {
            f"{name}_{field}": getattr(outcome, field) for field in outcome.__dataclass_fields__
        }
    return columns


def rows() -> list[Row]:
    """Execute every combination; a thread of its own keeps the caller's state out and intact."""
    return in_a_thread(lambda: [execute(*combination) for combination in combinations()])


def transitions() -> list[Transition]:
    """Enter every construct from each of the four states."""
    return in_a_thread(
        lambda: [
            _transition(grad, inference, construct)
            for grad in (True, False)
            for inference in (False, True)
            for construct in CONSTRUCTS
            if construct != "none"
        ]
    )


def execute(ambient: bool, outer: str, inner: str, given: str) -> Row:
    """Return what is seen in one combination. It changes this thread's grad mode."""
    torch.set_grad_enabled(ambient)
    outcomes = {}
    for operation in OPERATIONS:
        subject = make(given)
        with CONSTRUCTS[outer](), CONSTRUCTS[inner]():
            grad, inference = bits()
            outcomes[operation] = _outcome(operation, subject)
        torch.set_grad_enabled(ambient)
    return Row(
        ambient,
        outer,
        inner,
        given,
        grad,
        inference,
        _restored(ambient, outer, inner),
        _restored(ambient, outer, inner, ZeroDivisionError()),
        outcomes,
    )


def make(given: str) -> Tensor:
    """Return a fresh input of a kind, made with grad on whatever the state is."""
    kind = INPUTS[given]
    with torch.inference_mode(kind.inference):  # False: grad on, no inference
        made = torch.ones(SIZE, requires_grad=kind.requires_grad)
        return made * 1 if kind.grad_fn else made


def _outcome(operation: str, subject: Tensor) -> Outcome:
    with SavedTensors() as saved:
        try:
            result = _RUN[operation](subject)
        except RuntimeError as error:
            return Outcome(first_sentence(error))
    return Outcome(
        requires_grad=result.requires_grad,
        is_leaf=result.is_leaf,
        grad_fn=result.grad_fn.name() if result.grad_fn is not None else "",
        inference=result.is_inference(),
        saved=len(saved.saved),
        saved_bytes=saved.nbytes,
        version=None if result.is_inference() else result._version,
    )


def _times_weight(subject: Tensor) -> Tensor:
    return subject * _weight()


def _weight() -> Tensor:
    with torch.inference_mode(False):
        return torch.ones(SIZE, requires_grad=True)


_RUN: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "square": torch.square,
    "times weight": _times_weight,
    "view": lambda subject: subject.view(2, -1),
    "in-place": lambda subject: subject.add_(1),
    "factory": lambda _: torch.ones(SIZE, requires_grad=True),
}


def _restored(ambient: bool, outer: str, inner: str, error: Exception | None = None) -> bool:
    torch.set_grad_enabled(ambient)
    before = bits()
    restored = []
    try:
        with CONSTRUCTS[outer]():
            between = bits()
            try:
                with CONSTRUCTS[inner]():
                    if error is not None:
                        raise error
            finally:
                restored.append(bits() == between)
    except ZeroDivisionError:
        pass
    return all([*restored, bits() == before])


def _transition(grad: bool, inference: bool, construct: str) -> Transition:
    with torch.inference_mode(inference), torch.set_grad_enabled(grad):
        before = bits()
        with CONSTRUCTS[construct]():
            return Transition(before, construct, bits())
