"""pyperf's JSON: every benchmark one process with its raw values."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..analysis import dataframes
from ..records.measurements import Fact, Measurement
from ..records.run import Run
from .numbers import Exported, json_text, with_number, without_number

FILE: Final = "pyperf.json"
UNITS: Final[Mapping[str, tuple[str, float]]] = {
    "ns": ("second", 1e-9),
    "bytes": ("byte", 1),
    "instructions": ("integer", 1),
}
"""The record's unit -> pyperf's, and what one of ours is in it. pyperf has none for energy."""
FACTS: Final[Mapping[str, str]] = {
    "hostname": "host",
    "cpu_model_name": "cpu",
    "cpu_count": "cores",
    "platform": "os",
    "python_version": "python",
    "torch": "torch",
    "gradbench_protocol": "protocol",
    "commit": "git_commit",
}
"""pyperf's name of a fact -> ours."""


def export(runs: Sequence[Run]) -> Exported:
    """Return one run's file; raise `StoreError` for more than one, or without a number.

    All rounds go over, per step, as the values of one process; ``latency`` as single calls.
    pyperf refuses values that are not above 0, and units that it does not know.
    """
    run = with_number(runs, "pyperf")
    benchmarks, left_out = [], without_number(run)
    for outcome in run.outcomes:
        if not isinstance(outcome, Measurement):
            continue
        if outcome.unit not in UNITS:
            left_out.append(f"{outcome.cell} {outcome.meter}: pyperf has no unit {outcome.unit}")
        elif min(outcome.values) <= 0:
            left_out.append(f"{outcome.cell} {outcome.meter}: pyperf takes no 0 {outcome.unit}")
        else:
            benchmarks.append(_benchmark(outcome))
    suite = {"version": "1.0", "metadata": _facts(run), "benchmarks": benchmarks}
    return Exported({FILE: json_text(suite, indent=None)}, left_out)


def _benchmark(measurement: Measurement) -> dict[str, Any]:
    unit, scale = UNITS[measurement.unit]
    metadata: dict[str, Any] = {"name": f"{measurement.cell} {measurement.meter}", "unit": unit}
    if isinstance(measurement.iterations, int):
        metadata["loops"] = measurement.iterations
    values: list[float] = [value * scale for value in dataframes.per_step(measurement).tolist()]
    if unit != "second":
        values = [round(value) for value in values]
    return {"metadata": metadata, "runs": [{"values": values}]}


def _facts(run: Run) -> dict[str, Fact]:
    """Return the facts that pyperf can show: on one line, not empty, numbers or text."""
    facts = run.environment.facts
    translated = {key: str(facts[name]) for key, name in FACTS.items() if name in facts}
    metadata: dict[str, Fact] = {k: " ".join(v.split()) for k, v in translated.items() if v.strip()}
    return metadata
