"""A clock that splits a call's host time by operator, autograd's part of each included.

torch's profiler stands where an operator is called, above autograd, and changes no path: a mode for
`__torch_function__` would have torch leave its fused paths, and one for `__torch_dispatch__` stands
below autograd. What it costs an operator is in every mode's times alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ..devices.trace import OperatorProfile
from ..records.explanation import OUTSIDE
from ..workloads.steps import Step


class OperatorClock:
    """Splits a call's host time by operator, that of operators inside one left out of its own."""

    def __init__(self) -> None:
        self._profile = OperatorProfile()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Profile one visit."""
        self._profile = OperatorProfile()
        with self._profile:
            yield

    def split(self, step: Step) -> Step:
        """Return the step; what no operator took of it is on the account of `OUTSIDE`."""

        def split() -> object:
            return self._profile.call(step)

        return split

    def taken(self) -> dict[str, int]:
        """Return the ns of the last visit, by operator."""
        return {name or OUTSIDE: own.own_ns for name, own in self._profile.own_times().items()}


def operator_calls(step: Step) -> dict[str, int]:
    """Return how often a step calls each operator, those that others call included."""
    with OperatorProfile() as profile:
        profile.call(step)
    return {name: own.calls for name, own in profile.own_times().items() if name}
