"""Runs held against a baseline: a verdict for every cell and figure, and an exit status.

Three kinds of figure, three ways to judge. What repeats (bytes) is judged as it is. What is noisy
(times, and the ratios of two modes within a run) is judged by tests whose p-values are adjusted
for how many of them the table holds. What was read under other circumstances is not judged, and
the reason is said.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ..analysis.run_view import View
from ..experiment.matrix import EQUAL_MODES, Cell
from ..plurals import counted
from ..process_end import says_memory_ran_out, says_others_ended
from ..records.measurements import Cause, Fact, Measurement, Outcome, Skipped
from ..records.run import Run
from ..stats import estimates
from ..stats.estimates import CONFIDENCE, MIN_DETECTABLE_EFFECT, Estimate, Floats
from ..stats.log_t_test import mean_log, t_below, t_quantile
from ..stats.verdicts import Verdict, percent
from ..store.comparability import Kind, difference
from . import exact_figures, rules
from .figure_verdicts import FigureVerdict
from .result import GateResult, NotCompared, Why
from .rules import Rule, Rules

FAILURES: Final[tuple[Cause, ...]] = (
    "cannot_train",
    "out_of_memory",
    "crashed",
    "timed_out",
    "failed",
)
"""Causes that the measured code answers for; for the others the machine does, or the axes."""

KILLED: Final[tuple[Cause, ...]] = ("out_of_memory", "crashed")
"""Causes of a process that ended, of which others may have ended one."""

LOW: Final = 0.1  # the quantile of a run's rounds that stands for it: noise only ever adds time
LATENCIES: Final = {"latency_p50": 0.5, "latency_p90": 0.9, "latency_p99": 0.99}
CLOCKS: Final = ("step_time", "host_time", "device_time")
"""Meters whose ratio between two modes of a run is judged as well."""

ONE_MEASUREMENT: Final = "both sides are one measurement"
MANY: Final = 10  # modules that a breakdown names at most

_Machine = tuple[int, str]


def decide(
    baselines: Sequence[Run], candidates: Sequence[Run], *, by: Rules | None = None
) -> GateResult:
    """Hold the candidates against the baselines, figure by figure.

    Several runs of a side are one sample of its noisy figures. Of a deterministic metric, the
    newest baseline that it may be compared with counts, and the worst of the candidates.
    """
    return _Gate(_Side(baselines), _Side(candidates), by or Rules()).decide()


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one run has for one cell and meter."""

    run: Run
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Number:
    """A reading that is a number."""

    run: Run
    measured: Measurement

    @property
    def machine(self) -> _Machine:
        """Which machine it is from, of which run."""
        return id(self.run), self.measured.machine

    @property
    def facts(self) -> Mapping[str, Fact]:
        """What is known of that machine."""
        return self.run.facts_of(self.measured)


class _Side:
    """The runs of one side, oldest first, by cell and meter."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = sorted(runs, key=lambda run: run.header.started_at)
        self.readings: dict[tuple[Cell, str], list[_Reading]] = {}
        for run in self.runs:
            for outcome in run.outcomes:
                key = (outcome.cell, outcome.meter)
                self.readings.setdefault(key, []).append(_Reading(run, outcome))

    def numbers(self, cell: Cell, meter: str) -> list[_Number]:
        return [
            _Number(reading.run, reading.outcome)
            for reading in self.readings.get((cell, meter), ())
            if isinstance(reading.outcome, Measurement) and reading.outcome.values
        ]

    def reasons(self, cell: Cell, meter: str) -> list[Skipped]:
        outcomes = (reading.outcome for reading in self.readings.get((cell, meter), ()))
        return [outcome for outcome in outcomes if isinstance(outcome, Skipped)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Test:
    """A noisy figure with its change, not yet judged: that takes all tests of the table."""

    cell: Cell
    meter: str
    unit: str
    baseline: float
    candidate: float
    change: Estimate
    p_value: float  # of the change being no larger than what equal arms show
    rule: Rule


class _Gate:
    """One table in the making."""

    def __init__(self, before: _Side, now: _Side, by: Rules) -> None:
        self._before, self._now, self._by = before, now, by
        self._differences: dict[tuple[_Machine, _Machine, Kind, str], str] = {}
        self._views = {id(run): View(run) for run in (*before.runs, *now.runs)}

    def decide(self) -> GateResult:
        judged: list[FigureVerdict] = []
        tests: list[_Test] = []
        not_compared: list[NotCompared] = []
        keys = dict.fromkeys([*self._now.readings, *self._before.readings])
        for cell, meter in keys:
            for result in self._figure(cell, meter):
                match result:
                    case FigureVerdict():
                        judged.append(result)
                    case _Test():
                        tests.append(result)
                    case NotCompared():
                        not_compared.append(result)
        judged += figure_verdicts_of(tests, self._by)
        order = {cell: number for number, cell in enumerate(dict.fromkeys(c for c, _ in keys))}
        return GateResult(
            figure_verdicts=tuple(
                sorted(judged, key=lambda figure_verdict: order[figure_verdict.cell])
            ),
            not_compared=tuple(not_compared),
            measured=sum(bool(self._now.numbers(*key)) for key in self._now.readings),
        )

    def _figure(self, cell: Cell, meter: str) -> Iterator[FigureVerdict | _Test | NotCompared]:
        baseline, candidate = self._before.numbers(cell, meter), self._now.numbers(cell, meter)
        if not baseline and not candidate and self._not_applicable(cell, meter):
            return
        if not baseline or not candidate:
            if self._by.rule(cell, meter, rules.EXACT).judge:
                yield self._without_numbers(cell, meter, baseline, candidate)
            return
        yield from self._with_numbers(cell, meter, baseline, candidate)
        if meter in CLOCKS:
            yield from self._ratio(cell, meter)

    def _not_applicable(self, cell: Cell, meter: str) -> bool:
        """Return whether there is no such figure, whatever else older runs say of it."""
        reasons = self._before.reasons(cell, meter)[-1:] + self._now.reasons(cell, meter)[-1:]
        return any(one.cause == "not_applicable" for one in reasons)

    def _without_numbers(
        self, cell: Cell, meter: str, baseline: Sequence[_Number], candidate: Sequence[_Number]
    ) -> FigureVerdict | NotCompared:
        before, now = self._before.reasons(cell, meter), self._now.reasons(cell, meter)
        if baseline and now and now[-1].cause in FAILURES:
            return _not_measured_now(baseline[-1].measured, now[-1])
        if candidate and before and before[-1].cause in FAILURES:
            return _measured_now(before[-1], candidate[-1].measured)
        if not baseline and not before:
            why: Why = "new"
            reason = "not in the baseline"
        elif not candidate and not now:
            why, reason = "gone", "not in the candidate"
        else:
            why = "not measured" if baseline else "new" if candidate else "no number"
            reason = _words((now or before)[-1])
        return NotCompared(cell=cell, meter=meter, why=why, reason=reason)

    def _with_numbers(
        self, cell: Cell, meter: str, baseline: Sequence[_Number], candidate: Sequence[_Number]
    ) -> Iterator[FigureVerdict | _Test | NotCompared]:
        newest = candidate[-1].measured
        kind = _kind(newest)
        fit, why_not = self._fitting(baseline, candidate[-1], kind, cell.device)
        if not fit:
            yield NotCompared(cell=cell, meter=meter, why="not comparable", reason=why_not)
            return
        candidate, _ = self._fitting(candidate, candidate[-1], kind, cell.device)
        if newest.unit == "bytes" or newest.exact:
            default = rules.EXACT if newest.exact else rules.COARSE
            rule = self._by.rule(cell, meter, default)
            if rule.judge:
                yield _counted(fit[-1], candidate, rule)
            return
        quantiles = LATENCIES if meter == "latency" else {meter: LOW}
        for name, quantile in quantiles.items():
            rule = self._by.rule(cell, name, rules.TIMED)
            if rule.judge:
                sides = [
                    [_level(number.measured, quantile) for number in side]
                    for side in (fit, candidate)
                ]
                floor = MIN_DETECTABLE_EFFECT
                yield _test_or_reason(cell, name, newest.unit, *sides, rule=rule, floor=floor)

    def _ratio(self, cell: Cell, meter: str) -> Iterator[FigureVerdict | _Test | NotCompared]:
        """Yield the change of the mode's ratio to the reference mode, where both were timed."""
        reference = self._by.reference
        name = f"{meter}/{reference}"
        rule = self._by.rule(cell, name, self._by.ratio)
        control = cell.holds_mode and {cell.grad_mode, reference} == set(EQUAL_MODES)
        if cell.grad_mode == reference or control or not rule.judge:
            return
        baseline, candidate = (
            self._paired(side, cell, meter) for side in (self._before, self._now)
        )
        if not baseline or not candidate:
            return
        latest = candidate[-1][0]
        fit = [r for r in baseline if not self._difference(r[0], latest, "ratio", cell.device)]
        if not fit:
            why_not = self._difference(baseline[-1][0], latest, "ratio", cell.device)
            yield NotCompared(cell=cell, meter=name, why="not comparable", reason=why_not)
            return
        candidate = [
            r for r in candidate if not self._difference(r[0], latest, "ratio", cell.device)
        ]
        floor = max(self._views[id(one.run)].floor(cell) for one in (fit[-1][0], latest))
        sides = ([ratio for _, ratio in side] for side in (fit, candidate))
        yield _test_or_reason(cell, name, "ratio", *sides, rule=rule, floor=floor)

    def _paired(self, side: _Side, cell: Cell, meter: str) -> list[tuple[_Number, Estimate]]:
        """Return each run's ratio of the mode to the reference mode."""
        ratios = (
            (number, self._views[id(number.run)].change(cell, meter, self._by.reference))
            for number in side.numbers(cell, meter)
        )
        return [(number, ratio) for number, ratio in ratios if ratio is not None]

    def _fitting(
        self, baseline: Sequence[_Number], now: _Number, kind: Kind, device: str
    ) -> tuple[list[_Number], str]:
        """Return the baselines that may be compared with a number, or why the newest may not."""
        fit = [n for n in baseline if not self._difference(n, now, kind, device)]
        return fit, "" if fit else self._difference(baseline[-1], now, kind, device)

    def _difference(self, before: _Number, now: _Number, kind: Kind, device: str) -> str:
        key = (before.machine, now.machine, kind, device)
        if key not in self._differences:
            self._differences[key] = difference(before.facts, now.facts, kind=kind, device=device)
        return self._differences[key]


def figure_verdicts_of(tests: Sequence[_Test], by: Rules) -> list[FigureVerdict]:
    """Return the verdicts of all noisy figures of a table, p-values adjusted for their number."""
    adjust = estimates.holm if by.correction == "holm" else estimates.benjamini_hochberg
    p_values = adjust(np.array([test.p_value for test in tests], dtype=np.float64))
    kind = ", FDR" if by.correction == "fdr" else ""
    how = f"p {{p:.2g}} (corrected for {counted(len(tests), 'test')}{kind})"
    return [
        _verdict(test, clear=bool(p <= by.alpha), chance=how.format(p=p))
        for test, p in zip(tests, p_values, strict=True)
    ]


def _verdict(test: _Test, *, clear: bool, chance: str) -> FigureVerdict:
    change, rule = test.change, test.rule
    margin = max(rule.tolerance, MIN_DETECTABLE_EFFECT)
    least, most = 1 / (1 + margin), 1 + margin
    if clear and not least <= change.point <= most:
        worse = (change.point > 1) == (rule.better == "lower")
        verdict = Verdict.WORSE if worse else Verdict.BETTER
        reason = f"{percent(change.point)}, tolerance {margin:.1%}; {chance}"
    elif least <= change.low and change.high <= most:
        verdict = Verdict.SAME
        reason = ONE_MEASUREMENT if change.exact else f"within {margin:.1%}"
    else:
        verdict = Verdict.INCONCLUSIVE
        reason = f"may lie beyond the tolerance of {margin:.1%}; {chance}"
    return FigureVerdict(
        cell=test.cell,
        meter=test.meter,
        verdict=verdict,
        change=change,
        baseline=test.baseline,
        candidate=test.candidate,
        unit=test.unit,
        reason=reason,
    )


def _counted(base: _Number, candidate: Sequence[_Number], rule: Rule) -> FigureVerdict:
    """Judge a deterministic metric: the worst of the candidate's against the baseline's."""
    sign = 1 if rule.better == "lower" else -1
    worst = max(candidate, key=lambda number: sign * number.measured.per_step()[0])
    measured = worst.measured
    found = exact_figures.judged(
        measured.cell,
        measured.meter,
        measured.unit,
        baseline=base.measured.per_step()[0],
        candidate=measured.per_step()[0],
        rule=rule,
    )
    if found.verdict is Verdict.SAME:
        return found
    return replace(found, reason=found.reason + _modules(base.run, worst.run, measured))


def _modules(before: Run, now: Run, measured: Measurement) -> str:
    """Name the modules that save other bytes than before, where both runs have broken it down."""
    if measured.meter != "saved_for_backward" and not measured.meter.startswith("peak_"):
        return ""
    baseline, candidate = (run.breakdowns.get(measured.cell) for run in (before, now))
    if baseline is None or candidate is None:
        return ""
    least = min(baseline.modules.values()) if len(baseline.modules) >= MANY else 0
    moved = {
        module: candidate.modules.get(module, 0) - baseline.modules.get(module, least)
        for module in {**candidate.modules, **baseline.modules}
        if module in candidate.modules or len(candidate.modules) < MANY
    }
    named = sorted((m for m in moved if moved[m]), key=lambda m: -abs(moved[m]))
    named_changes = [f"{module} {moved[module]:+,} B" for module in named[:3]]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"; saved by module: {', '.join(named_changes)}{more}" if named_changes else ""


def _broken(
    baseline: Measurement | None, candidate: Measurement | None, verdict: Verdict, reason: str
) -> FigureVerdict:
    """Return the verdict on a figure that one side has and the other cannot have."""
    measured = baseline or candidate
    assert measured is not None
    before, now = (
        float(np.median(side.per_step())) if side else None for side in (baseline, candidate)
    )
    return FigureVerdict(
        cell=measured.cell,
        meter=measured.meter,
        verdict=verdict,
        change=None,
        baseline=before,
        candidate=now,
        unit=measured.unit,
        reason=reason,
    )


def _test_or_reason(
    cell: Cell,
    meter: str,
    unit: str,
    baseline: Sequence[Estimate],
    candidate: Sequence[Estimate],
    *,
    rule: Rule,
    floor: float,
) -> _Test | FigureVerdict:
    """Return the test of a noisy figure; inconclusive with the reason where there can be none."""
    why_not = _no_test("baseline", baseline) or _no_test("candidate", candidate)
    if not why_not:
        return _test(cell, meter, unit, baseline, candidate, rule=rule, floor=floor)
    return FigureVerdict(
        cell=cell,
        meter=meter,
        verdict=Verdict.INCONCLUSIVE,
        change=None,
        baseline=baseline[-1].point,
        candidate=candidate[-1].point,
        unit=unit,
        reason=why_not,
    )


def _no_test(side: str, levels: Sequence[Estimate]) -> str:
    """Return why a side's runs cannot be tested, or ``""``: a log of 0, one value by itself."""
    if min(level.low for level in levels) <= 0:
        return f"the {side} has a round of 0, to which there is no ratio"
    if len(levels) == 1 and levels[0].rounds == 1:
        return f"the {side} has one round, which says nothing of how far another would lie from it"
    return ""


def _not_measured_now(before: Measurement, now: Skipped) -> FigureVerdict:
    """Return what it means that the candidate has no number where the baseline has one.

    It is worse, unless others may have killed it and the kernel did not say that memory ran out.
    A candidate that had as long as was asked for is not to be trusted. As in a comparison.
    """
    if _killed_by_others(now) and not says_memory_ran_out(now.reason):
        words = f"the candidate has no number: {_words(now)}"
        more = "; others may have done that: measure the candidate again"
        return _broken(before, None, Verdict.INCONCLUSIVE, words + more)
    return _broken(before, None, Verdict.WORSE, _words(now))


def _killed_by_others(one: Skipped) -> bool:
    return one.cause in KILLED and says_others_ended(one.reason)


def _measured_now(before: Skipped, now: Measurement) -> FigureVerdict:
    """Return what it means that a figure has a number which the baseline has not.

    A baseline that had too little time, or that others may have killed, may have one, too: that
    makes no candidate better, here as in a comparison.
    """
    verdict, words = Verdict.INCONCLUSIVE, f"the baseline has no number: {_words(before)}"
    if before.cause == "timed_out":
        words += "; a baseline with a longer --limit shows whether it can have one"
    elif _killed_by_others(before):
        words += "; others may have done that: measure the baseline again"
    else:
        verdict = Verdict.BETTER
        words = f"has a number now; the baseline had none: {_words(before)}"
    return _broken(None, now, verdict, words)


def _test(
    cell: Cell,
    meter: str,
    unit: str,
    baseline: Sequence[Estimate],
    candidate: Sequence[Estimate],
    *,
    rule: Rule,
    floor: float,
) -> _Test:
    """Return the change of a noisy figure between two samples of runs, and its p-value.

    Variances add up: of either side's mean, from the spread of its runs where there are several,
    from its rounds where there is one; and of the drift between runs that neither side can see.
    Degrees of freedom as Welch (1947) has them, the drift counting as known.
    """
    before, now = mean_log(baseline), mean_log(candidate)
    error = math.sqrt(before.variance + now.variance + rule.drift**2)
    shares = sum(
        side.variance**2 / side.freedom for side in (before, now) if math.isfinite(side.freedom)
    )
    freedom = error**4 / shares if shares else math.inf
    change = now.log - before.log
    half = -t_quantile((1 - CONFIDENCE) / 2, freedom) * error
    beyond = max(0.0, abs(change) - math.log1p(floor))
    p_value = 2 * t_below(-beyond / error, freedom) if error else float(beyond == 0)
    shown = Estimate(
        point=math.exp(change),
        low=math.exp(change - half),
        high=math.exp(change + half),
        confidence=CONFIDENCE,
        rounds=sum(level.rounds for level in candidate),
    )
    return _Test(
        cell=cell,
        meter=meter,
        unit=unit,
        baseline=math.exp(before.log),
        candidate=math.exp(now.log),
        change=estimates.exact(1.0) if [*baseline] == [*candidate] else shown,
        p_value=min(1.0, p_value),
        rule=rule,
    )


def _level(measured: Measurement, quantile: float) -> Estimate:
    rounds: Floats = np.asarray(measured.per_step(), dtype=np.float64)
    return estimates.quantile(rounds, q=quantile)


def _kind(measured: Measurement) -> Kind:
    if not measured.exact:
        return "timed"
    return "instructions" if measured.unit == "instructions" else "exact"


def _words(skipped: Skipped) -> str:
    return f"{skipped.cause.replace('_', ' ')}: {skipped.reason}"
