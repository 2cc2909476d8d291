"""The verdicts on a step's bytes that repeat, by a gate's rules, or why a figure has none."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from ..experiment.matrix import Cell
from ..gate import exact_figures
from ..gate.figure_verdicts import FigureVerdict
from ..gate.result import NotCompared
from ..gate.rules import EXACT, Rules
from ..plurals import counted
from ..stats.verdicts import Verdict
from .byte_readings import METERS, READINGS, Reading, TwoSides
from .checkouts import SIDES


def outcomes(
    cell: Cell, readings: Sequence[Reading], *, rules: Rules, unread: str
) -> list[FigureVerdict | NotCompared]:
    """Return what came of each figure; where there is no reading, ``unread`` says why."""
    judged = {meter: rules.rule(cell, meter, EXACT) for meter in METERS.values()}
    if not readings:
        return [
            NotCompared(cell=cell, meter=meter, why="no number", reason=unread)
            for meter, rule in judged.items()
            if rule.judge
        ]
    found: list[FigureVerdict | NotCompared] = []
    for count, meter in METERS.items():
        rule, bytes_ = judged[meter], TwoSides.of(readings, count)
        if not rule.judge:
            continue
        if not (bytes_.base and bytes_.candidate):
            found.append(_unread(cell, meter, readings, count))
            continue
        base, candidate = float(median(bytes_.base)), float(median(bytes_.candidate))
        verdict = exact_figures.judged(
            cell, meter, "bytes", baseline=base, candidate=candidate, rule=rule
        )
        found.append(_believed(verdict, bytes_))
    return found


def _believed(verdict: FigureVerdict, read: TwoSides) -> FigureVerdict:
    """Return the verdict, which takes as many processes as agree where the sides differ."""
    if read.vary:
        return replace(
            verdict,
            verdict=Verdict.INCONCLUSIVE,
            change=None,
            reason=f"varies from process to process: {read}",
        )
    if verdict.verdict is Verdict.SAME:
        return verdict
    made = min(len(read.base), len(read.candidate))
    if made >= READINGS:
        return verdict
    why = f"the budget ended after {counted(made, 'process')} of each side, and it takes {READINGS}"
    return replace(
        verdict, verdict=Verdict.INCONCLUSIVE, reason=f"{verdict.reason}; not confirmed: {why}"
    )


def _unread(cell: Cell, meter: str, readings: Sequence[Reading], count: str) -> NotCompared:
    """Return why a figure has no number on a side, or on both."""
    reasons = {
        name: side.get("unread", {}).get(count, "it was not counted")
        for name, side in zip(SIDES, readings[0], strict=True)
        if side.get(count) is None
    }
    if len(reasons) == len(SIDES):
        return NotCompared(cell=cell, meter=meter, why="no number", reason=reasons[SIDES[1]])
    ((name, reason),) = reasons.items()
    return NotCompared(cell=cell, meter=meter, why="not comparable", reason=f"the {name}: {reason}")
