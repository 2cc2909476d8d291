"""Two runs held together: what changed cell by cell, and how their environments differ."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..analysis import format_units
from ..analysis.run_view import MEMORY, TIME, View
from ..experiment.matrix import Cell
from ..records.measurements import Fact
from ..records.run import Run
from ..stats.estimates import Estimate
from ..stats.verdicts import Verdict, judge

METERS: Final = (TIME, MEMORY, "saved_for_backward", "peak_allocated")
DRIFT: Final = 0.05
"""Times of one process each differ by this much between runs that are equal (the same code on the
same machine): no smaller difference is told from luck."""
MANY: Final = 400  # rows


@dataclass(frozen=True, slots=True)
class Difference:
    """One meter of one cell in both runs."""

    cell: Cell
    meter: str
    before: str
    after: str
    change: Estimate
    verdict: Verdict

    @property
    def ratio(self) -> str:
        """The ratio with its interval."""
        words = format_units.factor(self.change.point)
        exact = self.change.low == self.change.high
        return (
            words
            if exact
            else f"{words} {format_units.interval(self.change.low, self.change.high)}"
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """The last run against the first."""

    baseline: str
    candidate: str
    differences: Sequence[Difference]  # better and worse, the largest first
    counts: Mapping[str, Mapping[Verdict, int]]  # by meter
    left_out: int
    lost: Sequence[str]  # cells that only the baseline measured
    gained: Sequence[str]
    protocols: str  # why the two may not be compared at all, or ""


def compare(baseline: View, candidate: View) -> Comparison:
    """Return the changes from one run to another.

    Times carry both runs' intervals and a floor of `DRIFT`; what repeats to the byte has neither.
    """
    versions = [view.run.header.protocol for view in (baseline, candidate)]
    found = [] if versions[0] != versions[1] else list(_differences(baseline, candidate))
    told = [d for d in found if d.verdict in (Verdict.BETTER, Verdict.WORSE)]
    told.sort(key=lambda d: (d.verdict != Verdict.WORSE, -abs(d.change.point - 1)))
    before = {str(c) for c in baseline.cells if baseline.outcomes(c)}
    after = {str(c) for c in candidate.cells if candidate.outcomes(c)}
    return Comparison(
        baseline=baseline.run.name,
        candidate=candidate.run.name,
        differences=told[:MANY],
        counts={
            meter: counts
            for meter in METERS
            if (counts := Counter(d.verdict for d in found if d.meter == meter))
        },
        left_out=max(0, len(told) - MANY),
        lost=sorted(before - after),
        gained=sorted(after - before),
        protocols=""
        if versions[0] == versions[1]
        else f"protocol {versions[0]} and protocol {versions[1]} measure differently",
    )


def _differences(baseline: View, candidate: View) -> Iterator[Difference]:
    for cell in candidate.cells:
        for meter in METERS:
            before, after = baseline.estimate(cell, meter), candidate.estimate(cell, meter)
            measured = candidate.measurement(cell, meter)
            if before is None or after is None or measured is None or before.low <= 0:
                continue
            change = Estimate(
                point=after.point / before.point,
                low=after.low / before.high,
                high=after.high / before.low,
                confidence=min(before.confidence, after.confidence),
                rounds=min(before.rounds, after.rounds),
                exact=before.exact and after.exact,
            )
            floor = 0.0 if change.exact else max(DRIFT, candidate.floor(cell), baseline.floor(cell))
            yield Difference(
                cell=cell,
                meter=meter,
                before=format_units.quantity(before.point, measured.unit),
                after=format_units.quantity(after.point, measured.unit),
                change=change,
                verdict=judge(change, floor=floor),
            )


def environments(runs: Sequence[Run]) -> dict[str, list[Fact]]:
    """Return the facts that are not the same in all runs, a value a run."""
    facts = [facts_of(run) for run in runs]
    names = dict.fromkeys(name for each in facts for name in each)
    rows = {name: [each.get(name, "not recorded") for each in facts] for name in names}
    return {name: row for name, row in rows.items() if len(set(map(str, row))) > 1}


def facts_of(run: Run) -> dict[str, Fact]:
    """Return a run's environment, what was read after it included."""
    facts: dict[str, Fact] = {**run.environment.facts}
    if run.ended is not None:
        facts["load_after"] = run.ended.load_after
    return facts
