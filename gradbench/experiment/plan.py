"""How hard to measure: budgets, precision and limits, apart from what is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Self

from ..errors import BadSetting, Impossible
from ..printable import brief
from .axis import MOST

PROTOCOL: Final = 2
"""Version of the way of measuring; results of different protocols are never compared."""

FEWEST_ROUNDS: Final = 6
"""Of these a median's interval carries 95%; the least and the most of five rounds carry 94%."""

MOST_S: Final = 1e7
"""Nearly four months: more than any clock has to wait for, infinity above all."""

PROTOCOLS: Final[Mapping[str, str]] = {
    "1": "modes shared one module's state and random numbers",
    "2": "each mode steps the module in a state of its own, and hooks change no peak",
}
"""What changed with each protocol, in words, for a reader of two that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stop a block's timing on precision or on budget, never on significance.

    Precision is the relative half-width of the 95% interval of every mode's ratio to the
    block's first mode: ``precision_short`` for steps under 1 ms, ``precision_long`` above.
    """

    budget_s: float = 5.0  # timing of one block, all modes together
    precision_short: float = 0.0025
    precision_long: float = 0.005
    min_rounds: int = 12
    max_rounds: int = 4000
    warmup_s: float = 0.2  # at least; warm-up ends when times are steady or at five times this
    limit_s: float = 300.0  # wall clock of one process, then it is killed and its cells skipped
    seed: int = 0

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Self:
        """Return the plan that a run was made by; raise `Impossible` for one that none can be."""
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise Impossible(
                f"the run's plan has {unknown[0]!r}, unknown to this gradbench: upgrade"
            )
        try:
            return cls(**values)  # type: ignore[arg-type] # numbers by name, checked below
        except BadSetting as error:  # which no option has said
            raise Impossible(f"the run's plan is damaged: {error}") from None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BadSetting(field.name, f"must be a number, not {brief(value)}")
            if isinstance(value, int) and abs(value) > MOST:
                raise BadSetting(field.name, "must be a number of 64 bits")
            if field.name != "seed" and not value > 0:
                raise BadSetting(field.name, f"must be above 0, not {brief(value)}")
            if field.name.endswith("_s") and value > MOST_S:
                raise BadSetting(field.name, f"must be at most {MOST_S:g} s, not {brief(value)}")
            if field.type is int and not isinstance(value, int):
                raise BadSetting(field.name, f"must be a whole number, not {brief(value)}")
        if self.min_rounds > self.max_rounds:
            raise Impossible(
                f"min_rounds {self.min_rounds} exceeds max_rounds {self.max_rounds}: lower one"
            )
