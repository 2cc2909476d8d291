"""A run as flat figures, each with its cell's key: what an index, a pack and a history share."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..analysis import dataframes
from ..errors import GradbenchError, StoreError
from ..experiment.matrix import AXES, GRAD_MODES, Cell
from ..records.measurements import Fact, Measurement, Skipped, Unit
from ..records.run import Run
from ..store.comparability import Kind, agreeing, identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a run's figures come from: which code, when, on what machine.

    ``commit`` is empty where none was recorded.
    """

    run: str
    started: str  # UTC, ISO 8601
    commit: str
    dirty: bool
    facts: Mapping[str, Fact]

    def machine(self, device: str) -> str:
        """Return what is equal for runs whose times on a device may stand in one series."""
        return identity(self.facts, _agreeing("series", device))

    def build(self, device: str, unit: str) -> str:
        """Return what is equal for runs whose exact figures in a unit may be compared."""
        kind: Kind = "instructions" if unit == "instructions" else "exact"
        return identity(self.facts, _agreeing(kind, device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of one cell with its interval, or why there is none.

    ``ratio`` is the figure over that of ``reference``, the first grad mode of the same block that
    was measured, in the same rounds of the same process: the machine's speed cancels. It is None
    for the reference itself and where the reference is 0. ``measurement`` has the raw rounds; of
    several figures from one measurement the first has it.
    """

    cell: Cell
    meter: str
    unit: Unit | None
    exact: bool
    value: float | None
    low: float | None
    high: float | None
    rounds: int
    reference: str
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    cause: str = ""
    reason: str = ""
    measurement: Measurement | None = None


@cache
def _agreeing(kind: Kind, device: str) -> tuple[str, ...]:
    return agreeing(kind, [device])  # the same for each of thousands of runs


def origin(run: Run) -> Origin:
    """Return where a run's figures come from."""
    return origin_of(run.name, run.header.started_at, run.environment.facts)


def origin_of(run: str, started: str, facts: Mapping[str, Fact]) -> Origin:
    """Return the same from a run's name, its start and the facts of its environment."""
    commit = str(facts.get("git_commit", ""))
    known = commit and not commit.startswith("unknown")
    return Origin(
        run=run,
        started=started,
        commit=commit if known else "",
        dirty=facts.get("git_dirty") is not False,
        facts=facts,
    )


def figures(run: Run) -> Iterator[Figure]:
    """Yield a figure for each outcome, of ``latency`` one a percentile."""
    measured = {(o.cell, o.meter): o for o in run.outcomes if isinstance(o, Measurement)}
    for outcome in run.outcomes:
        if isinstance(outcome, Skipped):
            yield _absent(outcome)
        else:
            yield from _present(outcome, _reference(outcome, measured))


def key(cell: Cell) -> str:
    """Return a cell's axes by name as JSON, those at their declared default left out.

    So a cell keeps its key when an axis is added, and `cell_of` gives it back.
    """
    return json.dumps(
        {axis: value for axis, value in cell.axes().items() if value != AXES[axis].default},
        separators=(",", ":"),
    )


def cell_of(text: str) -> Cell:
    """Return the cell of a `key`; raise `StoreError` for one that this gradbench does not know."""
    try:
        axes: dict[str, Any] = json.loads(text)
        unknown = sorted(axes.keys() - set(AXES))
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{text!r} is the key of no cell: {error}") from error
    if unknown:
        raise StoreError(f"axes unknown to this gradbench, {', '.join(unknown)}: upgrade")
    try:
        return Cell(**axes)
    except TypeError as error:
        raise StoreError(f"{text!r} is the key of no cell: {error}") from error
    except GradbenchError as error:
        raise StoreError(f"{error}; or upgrade") from error


def _reference(
    outcome: Measurement, measured: Mapping[tuple[Cell, str], Measurement]
) -> Measurement | None:
    sides = (
        measured.get((dataframes.at(outcome.cell, mode), outcome.meter)) for mode in GRAD_MODES
    )
    first = next((side for side in sides if side is not None), None)
    return None if first is outcome else first


def _present(outcome: Measurement, reference: Measurement | None) -> Iterator[Figure]:
    over = (
        dataframes.ratio(outcome, reference) if reference and outcome.meter != "latency" else None
    )
    for number, (name, estimate) in enumerate(dataframes.figures(outcome).items()):
        yield Figure(
            cell=outcome.cell,
            meter=name,
            unit=outcome.unit,
            exact=outcome.exact,
            value=estimate.point,
            low=estimate.low,
            high=estimate.high,
            rounds=estimate.rounds,
            reference=reference.cell.grad_mode if over and reference else "",
            ratio=over.point if over else None,
            ratio_low=over.low if over else None,
            ratio_high=over.high if over else None,
            measurement=outcome if number == 0 else None,
        )


def _absent(outcome: Skipped) -> Figure:
    return Figure(
        cell=outcome.cell,
        meter=outcome.meter,
        unit=None,
        exact=False,
        value=None,
        low=None,
        high=None,
        rounds=0,
        reference="",
        ratio=None,
        ratio_low=None,
        ratio_high=None,
        cause=outcome.cause,
        reason=outcome.reason,
    )
