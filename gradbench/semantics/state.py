"""The two-bit machine: what a mode does to the state, and a state to an operation; no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Final

from ..records.semantics import Outcome, Row

BYTES: Final = 16
"""Of each input: four float32."""


@dataclass(frozen=True, slots=True)
class State:
    """The two bits that a thread has."""

    grad: bool = True
    inference: bool = False

    @property
    def records(self) -> bool:
        """Whether autograd records operations on what requires grad."""
        return self.grad and not self.inference


@dataclass(frozen=True, slots=True)
class Rule:
    """What entering a construct sets; None leaves a bit as it is."""

    grad: bool | None = None
    inference: bool | None = None


RULES: Final[Mapping[str, Rule]] = {
    "none": Rule(),
    "no_grad": Rule(grad=False),
    "enable_grad": Rule(grad=True),
    "set_grad_enabled(True)": Rule(grad=True),
    "set_grad_enabled(False)": Rule(grad=False),
    "inference_mode(True)": Rule(grad=False, inference=True),
    "inference_mode(False)": Rule(grad=True, inference=False),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """An input, as operations tell inputs apart."""

    requires_grad: bool
    inference: bool = False
    grad_fn: str = ""

    @property
    def is_leaf(self) -> bool:
        """Whether nothing recorded made it."""
        return not self.grad_fn


INPUTS: Final[Mapping[str, Kind]] = {
    "leaf": Kind(requires_grad=True),
    "non-leaf": Kind(requires_grad=True, grad_fn="MulBackward0"),
    "plain": Kind(requires_grad=False),
    "inference": Kind(requires_grad=False, inference=True),
    "inference leaf": Kind(requires_grad=True, inference=True),
}
OPERATIONS: Final = ("square", "times weight", "view", "in-place", "factory")

LEAF_CHANGED: Final = "a leaf Variable that requires grad is being used in an in-place operation"
INFERENCE_CHANGED: Final = "Inplace update to inference tensor outside InferenceMode is not allowed"
INFERENCE_SAVED: Final = "Inference tensors cannot be saved for backward"


def enter(state: State, construct: str, rules: Mapping[str, Rule] = RULES) -> State:
    """Return the state inside a construct."""
    rule = rules[construct]
    return State(
        state.grad if rule.grad is None else rule.grad,
        state.inference if rule.inference is None else rule.inference,
    )


def combinations(
    rules: Mapping[str, Rule] = RULES,
) -> Iterator[tuple[bool, str, str, str]]:
    """Yield every (ambient, outer, inner, input) of the truth table, 490 in all."""
    yield from product((True, False), rules, rules, INPUTS)


def predict(
    ambient: bool,  # a value of the table, not an option
    outer: str,
    inner: str,
    given: str,
    rules: Mapping[str, Rule] = RULES,
) -> Row:
    """Return the row that the machine derives for a combination."""
    state = enter(enter(State(ambient), outer, rules), inner, rules)
    kind = INPUTS[given]
    return Row(
        ambient,
        outer,
        inner,
        given,
        state.grad,
        state.inference,
        restored=True,
        restored_after_error=True,
        outcomes={
            "square": square(state, kind),
            "times weight": times_weight(state, kind),
            "view": view(state, kind),
            "in-place": in_place(state, kind),
            "factory": factory(state),
        },
    )


def square(state: State, kind: Kind) -> Outcome:
    """A function of the input alone that must keep it for backward.

    Inference tensors never reach autograd on their own: nothing is recorded of them, also where
    they say that they require grad.
    """
    if state.records and kind.requires_grad and not kind.inference:
        return _recorded("PowBackward0", saved=1)
    return _detached(state)


def times_weight(state: State, kind: Kind) -> Outcome:
    """The input times an ordinary leaf that requires grad: the weight's gradient needs the input.

    Of the weight nothing need be kept unless the input requires grad too.
    """
    if not state.records:
        return _detached(state)
    if kind.inference:
        return Outcome(INFERENCE_SAVED)
    return _recorded("MulBackward0", saved=2 if kind.requires_grad else 1)


def view(state: State, kind: Kind) -> Outcome:
    """A view is what its base is: it keeps the base's inference mark and its requires_grad."""
    if kind.inference:
        return Outcome(inference=True, version=None)
    if state.records and kind.requires_grad:
        return _recorded("ViewBackward0")
    return Outcome(requires_grad=kind.requires_grad)


def in_place(state: State, kind: Kind) -> Outcome:
    """Add one to the input in place."""
    leaf = kind.requires_grad and kind.is_leaf
    if kind.inference and not state.inference:
        return Outcome(LEAF_CHANGED if state.grad and leaf else INFERENCE_CHANGED)
    if state.records and leaf:
        return Outcome(LEAF_CHANGED)
    grad_fn = "AddBackward0" if state.records and kind.requires_grad else kind.grad_fn
    return Outcome(
        requires_grad=kind.requires_grad,
        is_leaf=not grad_fn,
        grad_fn=grad_fn,
        inference=kind.inference,
        version=None if kind.inference else 1,
    )


def factory(state: State) -> Outcome:
    """A tensor made with ``requires_grad=True``: it does, in every state."""
    return Outcome(
        requires_grad=True,
        inference=state.inference,
        version=None if state.inference else 0,
    )


def disagreements(rows: Sequence[Row], rules: Mapping[str, Rule] = RULES) -> list[str]:
    """Return in words where rows that were seen are not what the machine derives."""
    disagreeing = []
    for row in rows:
        expected = predict(row.ambient, row.outer, row.inner, row.input, rules)
        where = f"set_grad_enabled({row.ambient}) > {row.outer} > {row.inner}, {row.input}"
        disagreeing += [
            f"{where}: {field.name} is {getattr(row, field.name)}, "
            f"not {getattr(expected, field.name)}"
            for field in fields(row)
            if field.name != "outcomes"
            and getattr(row, field.name) != getattr(expected, field.name)
        ]
        disagreeing += [
            f"{where}: {operation} gave {row.outcomes.get(operation)}, not {outcome}"
            for operation, outcome in expected.outcomes.items()
            if row.outcomes.get(operation) != outcome
        ]
    return disagreeing


def _recorded(grad_fn: str, *, saved: int = 0) -> Outcome:
    return Outcome(
        requires_grad=True,
        is_leaf=False,
        grad_fn=grad_fn,
        saved=saved,
        saved_bytes=saved * BYTES,
    )


def _detached(state: State) -> Outcome:
    return Outcome(inference=state.inference, version=None if state.inference else 0)
