"""The verdict on a deterministic metric: it is judged as it is, less what a rule allows."""

from ..analysis import format_units
from ..experiment.matrix import Cell
from ..records.measurements import Unit
from ..stats import estimates, verdicts
from .figure_verdicts import FigureVerdict
from .rules import Rule


def judged(
    cell: Cell, meter: str, unit: Unit, *, baseline: float, candidate: float, rule: Rule
) -> FigureVerdict:
    """Return the verdict on a cell's figure, read on both sides, by its rule."""
    allowed = rule.tolerance * abs(baseline)
    if unit == "bytes":
        allowed = max(allowed, float(rule.tolerance_bytes))
    return FigureVerdict(
        cell=cell,
        meter=meter,
        verdict=verdicts.of_exact(
            baseline, candidate, allowed=allowed, higher_is_better=rule.better == "higher"
        ),
        change=estimates.exact(candidate / baseline) if baseline > 0 else None,
        baseline=baseline,
        candidate=candidate,
        unit=unit,
        reason=_in_words(candidate - baseline, allowed, unit),
    )


def _in_words(difference: float, allowed: float, unit: Unit) -> str:
    if difference == 0:
        return "equal"
    if unit == "ppt":
        more = format_units.relative(abs(difference))
        nearer = "farther from" if difference > 0 else "nearer to"
        return f"the output is {more} {nearer} global_on's than before"
    words = f"{difference:+,.0f} {'B' if unit == 'bytes' else unit}"
    return f"{words}, {allowed:,.0f} allowed"
