"""Two runs held against each other: the gate's verdicts, and how the environments differ."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..analysis import format_units
from ..experiment.matrix import Cell
from ..gate.decide import decide
from ..gate.figure_verdicts import FigureVerdict
from ..gate.result import GateResult
from ..gate.result_text import not_compared_lines, quantity
from ..gate.rules import Rules
from ..records.measurements import Fact
from ..records.run import Run
from ..stats.verdicts import Verdict

MANY: Final = 400  # rows


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of one cell in both runs, with the gate's verdict and its reason."""

    cell: Cell
    figure: str
    before: str
    after: str
    ratio: str  # with its interval; "" where a side has no number
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The last run against the first."""

    baseline: str
    candidate: str
    differences: Sequence[Difference]  # better and worse, the largest first
    counts: Mapping[str, Mapping[Verdict, int]]  # by figure
    left_out: int
    lost: Sequence[str]  # cells that only the baseline measured
    gained: Sequence[str]
    not_compared: Sequence[str]  # of cells that both have, what has no verdict, and why


def compare(baseline: Run, candidate: Run, *, by: Rules | None = None) -> Comparison:
    """Return the changes from one run to another, as `decide` judges them.

    ``by`` are the gate's rules; without them its defaults.
    """
    result = decide([baseline], [candidate], by=by)
    changed = [v for v in result.figure_verdicts if v.verdict in (Verdict.BETTER, Verdict.WORSE)]
    changed.sort(key=_rank)
    before, after = (
        {str(outcome.cell) for outcome in run.outcomes} for run in (baseline, candidate)
    )
    return Comparison(
        baseline=baseline.name,
        candidate=candidate.name,
        differences=[_difference(figure_verdict) for figure_verdict in changed[:MANY]],
        counts=_counts(result),
        left_out=max(0, len(changed) - MANY),
        lost=sorted(before - after),
        gained=sorted(after - before),
        not_compared=not_compared_lines(
            each for each in result.not_compared if str(each.cell) in before & after
        ),
    )


def _rank(figure_verdict: FigureVerdict) -> tuple[bool, float]:
    """Worse comes before better, what one side cannot measure first, then the largest change."""
    size = (
        abs(figure_verdict.change.point - 1) if figure_verdict.change is not None else float("inf")
    )
    return figure_verdict.verdict is not Verdict.WORSE, -size


def _difference(figure_verdict: FigureVerdict) -> Difference:
    ratio = ""
    if figure_verdict.change is not None:
        ratio = format_units.factor(figure_verdict.change.point)
        if not figure_verdict.change.exact:
            ratio += (
                f" {format_units.interval(figure_verdict.change.low, figure_verdict.change.high)}"
            )
    return Difference(
        cell=figure_verdict.cell,
        figure=figure_verdict.meter,
        before=quantity(figure_verdict.baseline, figure_verdict.unit),
        after=quantity(figure_verdict.candidate, figure_verdict.unit),
        ratio=ratio,
        verdict=figure_verdict.verdict,
        reason=figure_verdict.reason,
    )


def _counts(result: GateResult) -> dict[str, Counter[Verdict]]:
    counts: dict[str, Counter[Verdict]] = {}
    for figure_verdict in result.figure_verdicts:
        counts.setdefault(figure_verdict.meter, Counter())[figure_verdict.verdict] += 1
    return counts


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


def machines(run: Run) -> dict[str, dict[str, Fact]]:
    """Return of each machine of a run the facts that are not the same on all; {} of one machine."""
    if len(run.environments) < 2:
        return {}
    common = run.environment.facts
    return {
        name: {fact: value for fact, value in one.facts.items() if common.get(fact) != value}
        for name, one in run.environments.items()
    }
