"""Runs as pandas frames: every round, every outcome, and every mode against a reference."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from ..experiment.matrix import AXES, GRAD_MODES, Cell
from ..records.measurements import Measurement, Skipped
from ..records.run import Run
from ..stats import estimates, linear_scaling
from ..stats.estimates import Estimate

if TYPE_CHECKING:
    import pandas as pd  # imported where a frame is made: the page and the terminal make none

PERCENTILES: Final = (0.5, 0.9, 0.99)


def _runs(runs: Run | Iterable[Run]) -> list[Run]:
    return [runs] if isinstance(runs, Run) else list(runs)


def rounds(runs: Run | Iterable[Run]) -> "pd.DataFrame":
    """Return one row per run, cell, meter and round.

    Columns: ``run``, the axes, ``meter``, ``unit``, ``round``, ``value`` (per step, in unit),
    ``iterations`` (steps in the round's batch). Outcomes without a number are not here: see
    `summary`.
    """
    import pandas as pd

    parts = [
        pd.DataFrame(
            {
                "run": run.name,
                **outcome.cell.axes(),
                "meter": outcome.meter,
                "unit": outcome.unit,
                "round": np.arange(len(outcome.values)),
                "value": per_step(outcome),
                "iterations": np.broadcast_to(outcome.iterations, len(outcome.values)),
            }
        )
        for run in _runs(runs)
        for outcome in run.outcomes
        if isinstance(outcome, Measurement)
    ]
    columns = ["run", *AXES, "meter", "unit", "round", "value", "iterations"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def summary(runs: Run | Iterable[Run]) -> "pd.DataFrame":
    """Return one row per run, cell and figure: a number with its interval, or a reason.

    Columns: ``run``, the axes, ``meter``, ``unit``, ``value``, ``low``, ``high`` (per step),
    ``rounds``, ``exact``, ``samples_per_s``, ``samples_per_s_low`` and ``samples_per_s_high`` (of
    ``step_time``), ``cause``, ``reason``. The meter ``latency`` has a row for each percentile of
    `figures`. Where ``reason`` is not empty there is no number, and pandas shows NaN.
    """
    import pandas as pd

    rows = []
    for run in _runs(runs):
        for outcome in run.outcomes:
            key: dict[str, object] = {"run": run.name, **outcome.cell.axes()}
            if isinstance(outcome, Skipped):
                why = {"rounds": 0, "exact": False, "cause": outcome.cause}
                rows.append(key | {"meter": outcome.meter} | why | {"reason": outcome.reason})
                continue
            for name, figure in figures(outcome).items():
                row = key | {
                    "meter": name,
                    "unit": outcome.unit,
                    "value": figure.point,
                    "low": figure.low,
                    "high": figure.high,
                    "rounds": figure.rounds,
                    "exact": figure.exact,
                    "cause": "",
                    "reason": "",
                }
                if name == "step_time":
                    rate = throughput(outcome)
                    row |= {
                        "samples_per_s": rate.point,
                        "samples_per_s_low": rate.low,
                        "samples_per_s_high": rate.high,
                    }
                rows.append(row)
    columns = ["run", *AXES, "meter", "unit", "value", "low", "high", "rounds", "exact"]
    columns += ["samples_per_s", "samples_per_s_low", "samples_per_s_high", "cause", "reason"]
    return pd.DataFrame(rows, columns=columns)


def changes(
    runs: Run | Iterable[Run],
    *,
    reference: str = GRAD_MODES[0],
    meters: Sequence[str] | None = None,
) -> "pd.DataFrame":
    """Return each mode's ratio to the reference mode, block by block.

    Columns: ``run``, the axes (``grad_mode`` is the candidate), ``meter``, ``reference``,
    ``ratio``, ``low``, ``high``, ``rounds``, ``exact``, ``detectable`` (see
    `Estimate.detectable`). Below 1 is faster or smaller. Pairs with a side that was not measured,
    or that both are 0 bytes, have no row.
    """
    import pandas as pd

    rows = []
    for run in _runs(runs):
        measured = {(o.cell, o.meter): o for o in run.outcomes if isinstance(o, Measurement)}
        for (cell, meter), outcome in measured.items():
            other = measured.get((at(cell, reference), meter))
            if other is None or cell.grad_mode == reference or (meters and meter not in meters):
                continue
            change = ratio(outcome, other)
            if change is None:
                continue
            rows.append(
                {
                    "run": run.name,
                    **cell.axes(),
                    "meter": meter,
                    "reference": reference,
                    "ratio": change.point,
                    "low": change.low,
                    "high": change.high,
                    "rounds": change.rounds,
                    "exact": change.exact,
                    "detectable": change.detectable,
                }
            )
    columns = ["run", *AXES, "meter", "reference", "ratio", "low", "high", "rounds", "exact"]
    return pd.DataFrame(rows, columns=[*columns, "detectable"])


def breakdowns(runs: Run | Iterable[Run]) -> "pd.DataFrame":
    """Return one row per run, cell, moment and part of memory.

    Columns: ``run``, the axes, ``moment`` (``peak`` of a warm step, ``first peak`` of the very
    first one), ``part`` (one of `records.PARTS`), ``bytes``. The bytes of a moment add up to the
    peak that was measured.
    """
    import pandas as pd

    rows = [
        {"run": run.name, **cell.axes(), "moment": moment, "part": part, "bytes": nbytes}
        for run in _runs(runs)
        for cell, breakdown in run.breakdowns.items()
        for moment, parts in (("peak", breakdown.parts), ("first peak", breakdown.first_parts))
        for part, nbytes in parts.items()
    ]
    return pd.DataFrame(rows, columns=["run", *AXES, "moment", "part", "bytes"])


def scaling(
    runs: Run | Iterable[Run], *, meter: str = "peak_allocated", reference: str = GRAD_MODES[0]
) -> "pd.DataFrame":
    """Return the straight lines through peaks of cells that differ in one size only.

    Columns: ``run``, the axes (of the cell with the least of it), ``variable`` (``batch_size``,
    a size in the model's name, or a number of tokens), ``slope`` (bytes per sample, per layer,
    ...), ``intercept`` (bytes), ``max_error`` (largest relative one), ``exponent`` (slope in
    logarithms), ``points``, ``break_even``: how many times the reference mode's batch fits where
    memory is plenty (NaN where that is not asked: other variables, no reference).
    """
    import pandas as pd

    rows = []
    for run in _runs(runs):
        lines = linear_scaling.lines(peaks(run, meter))
        allowed = linear_scaling.break_even(lines, reference=reference)
        rows += [
            {
                "run": run.name,
                **line.cell.axes(),
                "variable": line.variable,
                "slope": line.slope,
                "intercept": line.intercept,
                "max_error": line.max_error,
                "exponent": line.exponent,
                "points": len(line.at),
                "break_even": allowed.get(line.cell) if line.variable == "batch_size" else None,
            }
            for line in lines
        ]
    columns = ["variable", "slope", "intercept", "max_error", "exponent", "points", "break_even"]
    return pd.DataFrame(rows, columns=["run", *AXES, *columns])


def peaks(run: Run, meter: str = "peak_allocated") -> dict[Cell, int]:
    """Return a meter's bytes by cell, where they were read and are above 0."""
    return {
        outcome.cell: outcome.values[0]
        for outcome in run.outcomes
        if isinstance(outcome, Measurement) and outcome.meter == meter and outcome.values[0] > 0
    }


def per_step(measurement: Measurement) -> estimates.Floats:
    """Return the rounds (rounds,) in the meter's unit per step."""
    return np.asarray(measurement.per_step(), dtype=np.float64)


def estimate(measurement: Measurement) -> Estimate:
    """Return a measurement's median with its interval; exact figures have no width."""
    if measurement.exact:
        return estimates.exact(float(per_step(measurement)[0]))
    return estimates.median(per_step(measurement))


def figures(measurement: Measurement) -> dict[str, Estimate]:
    """Return the figures that a measurement stands for: percentiles of ``latency``, else itself.

    A percentile of single calls has the interval of its order statistics; the 99th of fewer than
    a few hundred calls says little, and its ``confidence`` says so.
    """
    if measurement.meter != "latency":
        return {measurement.meter: estimate(measurement)}
    calls = per_step(measurement)
    return {f"latency_p{round(q * 100)}": estimates.quantile(calls, q=q) for q in PERCENTILES}


def throughput(measurement: Measurement) -> Estimate:
    """Return samples, or tokens, per second, with the interval of the step time it comes from."""
    step_ns = estimate(measurement)
    samples = measurement.samples * 1e9
    return Estimate(
        point=samples / step_ns.point,
        low=samples / step_ns.high,
        high=samples / step_ns.low,
        confidence=step_ns.confidence,
        rounds=step_ns.rounds,
    )


def ratio(candidate: Measurement, reference: Measurement) -> Estimate | None:
    """Return candidate / reference with its interval, or None if there is none: of 0 bytes."""
    if min(reference.values) <= 0 or min(candidate.values) < 0:
        return None
    if candidate.exact:
        return estimates.exact(float(per_step(candidate)[0] / per_step(reference)[0]))
    if min(candidate.values) == 0 or len(candidate.values) != len(reference.values):
        return None  # or rounds that are no pairs
    return estimates.paired_ratio(per_step(candidate), per_step(reference))


def at(cell: Cell, grad_mode: str) -> Cell:
    """Return the cell of the same block under another grad mode."""
    return replace(cell, grad_mode=grad_mode)
