"""From a change's interval to a verdict, and a change in words."""

from enum import StrEnum
from typing import Final

from .estimates import CONFIDENCE, Estimate

TOLERANCE: Final = 0.01
"""Relative change below which two sides count as the same, unless the noise floor is higher."""

LOUDEST: Final = 0.05
"""The noise floor up to which a ratio within it is the same; above it noise hides what counts."""


class Verdict(StrEnum):
    """What an interval says about a change."""

    BETTER = "better"
    SAME = "same"
    WORSE = "worse"
    WITHIN = "within tolerance"  # it differs for sure, by less than counts
    INCONCLUSIVE = "inconclusive"


GRAVEST_FIRST: Final = (
    *(Verdict.WORSE, Verdict.INCONCLUSIVE, Verdict.WITHIN, Verdict.BETTER),
    Verdict.SAME,
)
"""The verdicts in the order in which people read them."""


def classify(change: Estimate, *, floor: float = 0.0, tolerance: float = TOLERANCE) -> Verdict:
    """Return the verdict on a ratio candidate / reference, of which less is better.

    ``floor`` is the relative effect that equal arms show here (the noise floor; 0 for exact
    figures), ``tolerance`` the largest change that does not matter. The verdict is ``better``
    or ``worse`` when the whole interval lies beyond the floor on one side of 1, ``same`` when
    it lies within the larger of floor and tolerance around 1 (equivalence, not absence of
    evidence: of a floor above `LOUDEST` no more than that counts), and ``inconclusive`` when it
    does neither, or when it carries less than 95%, as that of fewer than six rounds does. A
    ratio and its inverse are equally far from 1: the band reaches from 1 / (1 + floor) to 1 +
    floor. An exact figure that differs at all beyond the floor is better or worse.
    """
    if change.confidence < CONFIDENCE:
        return Verdict.INCONCLUSIVE
    if change.high < 1 / (1 + floor):
        return Verdict.BETTER
    if change.low > 1 + floor:
        return Verdict.WORSE
    margin = max(min(floor, LOUDEST), tolerance)
    if 1 / (1 + margin) <= change.low and change.high <= 1 + margin:
        return Verdict.SAME
    return Verdict.INCONCLUSIVE


def percent(ratio: float) -> str:
    """Return a ratio as a change, ``+3.2%``, and from twice on as a factor."""
    if ratio < 2:
        return f"{ratio - 1:+.1%}"
    return f"×{ratio:.3g}" if ratio < 100 else f"×{ratio:,.0f}"


def of_exact(
    before: float, now: float, *, allowed: float = 0.0, higher_is_better: bool = False
) -> Verdict:
    """Return the verdict on a deterministic metric: beyond what is allowed, all counts."""
    grown = before - now if higher_is_better else now - before
    if grown > allowed:
        return Verdict.WORSE
    return Verdict.BETTER if grown < -allowed else Verdict.SAME
