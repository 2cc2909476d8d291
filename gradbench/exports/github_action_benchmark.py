"""github-action-benchmark's custom tools: a file of what should be small, one of what should not.

The action reads one direction a file, takes null for 0 and has no word for "could not": so a
figure is either a finite number here, or not here.
"""

from collections.abc import Sequence
from typing import Any, Final

from ..analysis import dataframes, format_units
from ..plurals import counted
from ..printable import printable
from ..records.run import Run
from ..stats.estimates import Estimate
from .numbers import Exported, Figure, figures, json_text, with_number, without_number

SMALLER: Final = "smaller_is_better.json"
"""For ``tool: customSmallerIsBetter``: times, bytes, energy, instructions."""
BIGGER: Final = "bigger_is_better.json"
"""For ``tool: customBiggerIsBetter``: samples per second."""


def export(runs: Sequence[Run]) -> Exported:
    """Return both files of one run; raise `StoreError` for more than one, or without a number.

    A run without step times has no second file: the action refuses an empty one.
    """
    run = with_number(runs, "github-action-benchmark")
    smaller, bigger = [], []
    for figure in figures(run):
        smaller.append(_entry(figure.label, figure.unit, figure.estimate, _extra(run, figure)))
        if figure.name == "step_time":
            rate = dataframes.throughput(figure.measurement)
            label = f"{figure.cell} throughput"
            bigger.append(_entry(label, "samples/s", rate, _extra(run, figure)))
    files = {SMALLER: json_text(smaller)}
    if bigger:
        files[BIGGER] = json_text(bigger)
    return Exported(files, without_number(run))


def _entry(name: str, unit: str, estimate: Estimate, extra: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "unit": unit, "value": estimate.point, "extra": extra}
    if not estimate.exact:
        # The action draws one figure for both sides: the wider one promises nothing.
        half = max(estimate.high - estimate.point, estimate.point - estimate.low)
        entry["range"] = f"± {half:.6g}"
    return entry


def _extra(run: Run, figure: Figure) -> str:
    facts = run.environment.facts
    estimate = figure.estimate
    if estimate.exact:
        how = "exact: repeats to the byte"
    elif estimate.rounds == 1:
        how = "one reading"
    else:
        how = f"median of {counted(estimate.rounds, 'round')}"
        if figure.name.startswith("latency_p"):
            how = f"percentile of {counted(estimate.rounds, 'single call')}"
    torch = printable(str(facts.get("torch")))
    return f"{how}\n{format_units.quantity(estimate.point, figure.unit)}\ntorch {torch}"
