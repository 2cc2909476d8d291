"""Bencher Metric Format: benchmark, then measure, then a value with its bounds."""

from collections.abc import Sequence
from typing import Final

from ..analysis import dataframes
from ..records.run import Run
from ..stats.estimates import Estimate
from .numbers import Exported, figures, json_text, with_number, without_number

FILE: Final = "bencher.json"
LATENCY: Final = "latency"
"""Bencher's own measure of time, in ns: what `step_time` goes under."""
THROUGHPUT: Final = "throughput"
"""Bencher's own measure of speed, in operations a second: samples a second."""


def export(runs: Sequence[Run]) -> Exported:
    """Return one run's file; raise `StoreError` for more than one, or without a number.

    Measures other than Bencher's own two are called as our meters are, with hyphens, as slugs
    are: ``peak-transient``. Bytes are whole bytes, times ns per step.
    """
    run = with_number(runs, "Bencher Metric Format")
    benches: dict[str, dict[str, dict[str, float]]] = {}
    for figure in figures(run):
        measures = benches.setdefault(str(figure.cell), {})
        name = LATENCY if figure.name == "step_time" else figure.name.replace("_", "-")
        measures[name] = _metric(figure.estimate)
        if figure.name == "step_time":
            measures[THROUGHPUT] = _metric(dataframes.throughput(figure.measurement))
    return Exported({FILE: json_text(benches)}, without_number(run))


def _metric(estimate: Estimate) -> dict[str, float]:
    if estimate.exact:
        return {"value": estimate.point}
    return {
        "value": estimate.point,
        "lower_value": estimate.low,
        "upper_value": estimate.high,
    }
