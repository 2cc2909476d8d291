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
    cell: Cell,
    readings: Sequence[Reading],
    *,
    rules: Rules,
    unread: str,
    cut_short: str = "the budget ended",
) -> list[FigureVerdict | NotCompared]:
    """Return what came of each figure.

    ``unread`` says why there is no reading where there is none, ``cut_short`` why there are no more
    where a difference takes more.
    """
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
        why = _too_few(bytes_, readings, count, cut_short)
        found.append(_believed(verdict, bytes_, why))
    return found


def _believed(verdict: FigureVerdict, read: TwoSides, too_few: str) -> FigureVerdict:
    """Return the verdict, which takes as many processes as agree where the sides differ.

    ``too_few`` says why not so many have read it, if they have not.
    """
    if read.vary:
        return replace(
            verdict,
            verdict=Verdict.INCONCLUSIVE,
            change=None,
            reason=f"varies from process to process: {read}",
        )
    if verdict.verdict is Verdict.SAME or not too_few:
        return verdict
    return replace(
        verdict, verdict=Verdict.INCONCLUSIVE, reason=f"{verdict.reason}; not confirmed: {too_few}"
    )


def _too_few(read: TwoSides, readings: Sequence[Reading], count: str, cut_short: str) -> str:
    """Return why fewer processes have read a figure than it takes where sides differ, or ``""``."""
    fewest = min(len(read.base), len(read.candidate))
    if fewest >= READINGS:
        return ""
    if len(readings) < READINGS:
        made = counted(len(readings), "process")
        return f"{cut_short} after {made} of each side, and it takes {READINGS}"
    name, reason = next(
        (name, side.get("unread", {}).get(count, "it was not counted"))
        for two in readings
        for name, side in zip(SIDES, two, strict=True)
        if side.get(count) is None
    )
    return f"{fewest} of {counted(len(readings), 'process')} of the {name} read it: {reason}"


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
