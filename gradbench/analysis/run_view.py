"""A run looked up by cell: its numbers, ratios and verdicts, and the words for them.

What the terminal and the page both show. Every estimate is worked out once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, TypeVar

from ..experiment.matrix import EQUAL_MODES, Block, Cell, by_block
from ..plurals import counted
from ..records import ranks
from ..records.measurements import NOTHING_TO_READ, Measurement, Outcome, Skipped
from ..records.predictions import marks
from ..records.run import Run
from ..stats import estimates
from ..stats.estimates import Estimate
from ..stats.verdicts import Verdict, classify
from ..store.comparability import machine_kind
from . import dataframes, format_units, prediction_errors

MEMORY: Final = "peak_transient"
"""The meter that memory ratios are taken of: what a step adds, parameters and batch left out."""
TIME: Final = "step_time"
LEFT: Final = "left_by_evaluation"
"""The meter that reads an evaluation alone: it has a number where the training after it fails."""

NAMES: Final = ("kept", "made", "changed")
"""Notes that name who is behind a figure's bytes."""

Key = TypeVar("Key")
Known = TypeVar("Known")


@dataclass(frozen=True, slots=True)
class Value:
    """A number or a reason in words; ``number`` is None where there is a reason.

    ``kind`` says how it should look: "", "reason", "reference", or a verdict.
    """

    text: str
    detail: str = ""
    number: float | None = None
    kind: str = ""


class View:
    """One run, indexed. Reading from it never changes what it says."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.blocks: Mapping[Block, list[Cell]] = by_block(run.header.cells)
        self._outcomes: dict[Cell, dict[str, Outcome]] = {c: {} for c in run.header.cells}
        for outcome in run.outcomes:
            self._outcomes.setdefault(outcome.cell, {})[outcome.meter] = outcome
        self._estimates: dict[tuple[Cell, str], Estimate | None] = {}
        self._changes: dict[tuple[Cell, str, str], Estimate | None] = {}
        self._controls: dict[Block, Estimate | None] = {}

    @classmethod
    def of(cls, run: "Run | View") -> "View":
        """Return the view of a run, or the view itself."""
        return run if isinstance(run, View) else cls(run)

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells, those of a block together."""
        return [cell for members in self.blocks.values() for cell in members]

    @cached_property
    def numbers(self) -> Mapping[Cell, int]:
        """A number for each cell, by which a page refers to it."""
        return {cell: number for number, cell in enumerate(self.cells)}

    @cached_property
    def kinds(self) -> Mapping[str, list[Cell]]:
        """The cells by kind of machine, in words; one, without words, of a run on one machine."""
        if len(self.run.environments) < 2:
            return {"": self.cells}
        grouped: dict[str, list[Cell]] = {}
        for cell in self.cells:
            grouped.setdefault(self._kind(cell), []).append(cell)
        return grouped

    def machine(self, cell: Cell) -> str:
        """Return the machine that a cell was timed on, or read on at all; "" of a run on one."""
        if len(self.run.environments) < 2:
            return ""
        outcomes = self.outcomes(cell)
        timed = [outcomes[TIME]] if TIME in outcomes else []
        return next((o.machine for o in [*timed, *outcomes.values()] if o.machine), "")

    def _kind(self, cell: Cell) -> str:
        environment = self.run.environments.get(self.machine(cell))
        facts = environment.facts if environment is not None else None
        return machine_kind(facts, [cell.device]) if facts else "measured on no machine"

    @cached_property
    def prediction_errors(self) -> Mapping[Cell, float]:
        """How far each predicted peak lies from the measured one beside it."""
        return prediction_errors.errors(self.run)

    def outcomes(self, cell: Cell) -> Mapping[str, Outcome]:
        """Return what came of a cell, by meter."""
        return self._outcomes.get(cell, {})

    def measurement(self, cell: Cell, meter: str) -> Measurement | None:
        """Return what a meter read, or None where it read nothing: not even one round."""
        outcome = self.outcomes(cell).get(meter)
        return outcome if isinstance(outcome, Measurement) and outcome.values else None

    def estimate(self, cell: Cell, meter: str) -> Estimate | None:
        """Return a meter's median per step with its interval, or None."""
        return _once(self._estimates, (cell, meter), lambda: self._estimate(cell, meter))

    def _estimate(self, cell: Cell, meter: str) -> Estimate | None:
        measured = self.measurement(cell, meter)
        return dataframes.estimate(measured) if measured else None

    def change(self, cell: Cell, meter: str, reference: str) -> Estimate | None:
        """Return the ratio of a cell to its block's ``reference`` mode, or None.

        The reference itself has no change.
        """
        key = (cell, meter, reference)
        return _once(self._changes, key, lambda: self._change(cell, meter, reference))

    def _change(self, cell: Cell, meter: str, reference: str) -> Estimate | None:
        if cell.grad_mode == reference:
            return None
        measured = self.measurement(cell, meter)
        base = self.measurement(dataframes.at(cell, reference), meter) if measured else None
        if measured is None or base is None or (len(measured.values) != len(base.values)):
            return None
        return dataframes.ratio(measured, base)

    def control(self, cell: Cell) -> Estimate | None:
        """Return the A/A control of a cell's block, ``global_off`` / ``no_grad``, truly 1.

        Both set the same flag. None where a side was not timed, or where steps enter their mode
        themselves: entering ``no_grad`` costs a microsecond or two more than calling
        ``set_grad_enabled``.
        """
        return _once(self._controls, cell.block, lambda: self._control(cell))

    def _control(self, cell: Cell) -> Estimate | None:
        if not cell.holds_mode:
            return None
        return self.change(dataframes.at(cell, EQUAL_MODES[0]), TIME, EQUAL_MODES[1])

    def floor(self, cell: Cell, meter: str = TIME) -> float:
        """Return the relative effect that equal arms may show here: 0 of an exact figure."""
        measured = self.measurement(cell, meter)
        if measured is not None and measured.exact:
            return 0.0
        control = self.control(cell) if measured is None or measured.unit == "ns" else None
        return estimates.noise_floor(control) if control else estimates.MIN_DETECTABLE_EFFECT

    def verdict(self, cell: Cell, meter: str, reference: str) -> Verdict | None:
        """Return what the change says, or None where there is none."""
        change = self.change(cell, meter, reference)
        return classify(change, floor=self.floor(cell, meter)) if change else None

    def stopped(self, cell: Cell) -> Skipped | None:
        """Return why no step of a cell has a number, or None if one has or nothing was tried."""
        tried = [
            outcome
            for meter, outcome in self.outcomes(cell).items()
            if meter != LEFT
            and not (isinstance(outcome, Skipped) and outcome.cause in NOTHING_TO_READ)
        ]
        reasons = [outcome for outcome in tried if isinstance(outcome, Skipped)]
        return reasons[0] if reasons and len(reasons) == len(tried) else None

    def missing(self, meter: str) -> str:
        """Return in words why a meter has no outcome: nobody asked for it, or it was not reached.

        One that is not here, as on a device of others, has an outcome that says so.
        """
        return "not measured" if meter in self.run.header.meters else "not asked for"

    def value(self, cell: Cell, meter: str) -> Value:
        """Return a meter's number, its spread in the detail, or why there is none."""
        outcome = self.outcomes(cell).get(meter)
        if outcome is None:
            return Value(self.missing(meter), kind="reason")
        value = outcome_value(outcome, self.estimate(cell, meter))
        off = self.prediction_errors.get(cell) if meter == "predicted_peak" else None
        if not off:
            return value
        words = f"error {prediction_errors.in_words(off)}"
        detail = f"{value.detail}; {words}, held against the measured peak"
        return replace(value, text=f"{value.text}, {words}", detail=detail)

    def ratio(self, cell: Cell, meter: str, reference: str) -> Value:
        """Return the ratio to the reference mode with its interval, and its verdict as kind."""
        change, verdict = (
            self.change(cell, meter, reference),
            self.verdict(cell, meter, reference),
        )
        if cell.grad_mode == reference and self.measurement(cell, meter) is not None:
            return Value("1", "the reference", 1.0, "reference")
        if change is None or verdict is None:
            both = self.measurement(cell, meter) and self.measurement(
                dataframes.at(cell, reference), meter
            )
            return Value("", "the reference is 0 bytes: there is no ratio" if both else "")
        if change.exact:
            return Value(format_units.factor(change.point), "exact", change.point, verdict)
        text = (
            f"{format_units.factor(change.point)} {format_units.interval(change.low, change.high)}"
        )
        pairs = counted(change.rounds, "pair")
        detail = f"{pairs}; a change of {change.detectable:.1%} would have been seen"
        return Value(text, detail, change.point, verdict)

    def throughput(self, cell: Cell) -> Value:
        """Return samples per second; nothing where no step was timed."""
        measured = self.measurement(cell, TIME)
        if measured is None:
            return Value("")
        rate = dataframes.throughput(measured)
        detail = f"{format_units.rate(rate.low)} to {format_units.rate(rate.high)}"
        return Value(format_units.rate(rate.point), detail, rate.point)

    def tail(self, cell: Cell) -> Value:
        """Return the 99th percentile of single calls, the others in the detail."""
        measured = self.measurement(cell, "latency")
        if measured is None:
            return self.value(cell, "latency")
        figures = dataframes.figures(measured)
        percentiles = ", ".join(
            f"{name.removeprefix('latency_')} {format_units.duration(figure.point)} "
            f"({format_units.duration(figure.low)} to {format_units.duration(figure.high)})"
            for name, figure in figures.items()
        )
        last = figures["latency_p99"].point
        return Value(
            format_units.duration(last),
            f"{counted(len(measured.values), 'single call')}: {percentiles}",
            last,
        )


def outcome_value(outcome: Outcome | None, figure: Estimate | None) -> Value:
    """Return an outcome's number, of which ``figure`` is the estimate, or why there is none."""
    if outcome is None:
        return Value("not measured", kind="reason")
    if isinstance(outcome, Skipped):
        return Value(spaced(outcome.cause), outcome.reason, kind="reason")
    if figure is None:
        return Value("no rounds", "the run was cut before the first", kind="reason")
    text = format_units.quantity(figure.point, outcome.unit)
    if figure.exact or figure.rounds == 1:
        named = [str(outcome.notes[name]) for name in NAMES if name in outcome.notes]
        words = (
            f"{figure.point:,.0f} {outcome.unit}",
            *ranks.in_words(outcome.notes),
            *marks(outcome.notes),
            *named,
        )
        detail = "; ".join(words)
        return Value(text, detail, figure.point)
    low, high = (format_units.quantity(end, outcome.unit) for end in (figure.low, figure.high))
    return Value(text, f"{low} to {high} in {counted(figure.rounds, 'round')}", figure.point)


def spaced(name: str) -> str:
    """Return a name of ours as words: ``out of memory``."""
    return name.replace("_", " ")


def _once(known: dict[Key, Known], key: Key, work: Callable[[], Known]) -> Known:
    if key not in known:
        known[key] = work()
    return known[key]
