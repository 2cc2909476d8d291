"""The rule by which pairs of processes, base and candidate, come to a verdict. Pure.

The pair is what is replicated. Other work on the machine only ever adds time, so a low quantile of
a process's batches stands for it; a pair's ratio is that of its two sides, which were alive at
the same time and took turns. What pairs suspect, fresh pairs must confirm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from . import estimates
from .estimates import SYSTEMATIC, Estimate
from .verdicts import Verdict

QUANTILE: Final = 0.1
PAIRS: Final = 5
THRESHOLD: Final = 0.03
"""The slowdown that is to be found; a cell that could hide one is inconclusive."""

CUT: Final = 0.5
"""Share of the threshold from which on a median counts as the slowdown rather than as none."""

SIGMAS: Final = 3.0
"""Standard errors that a change must have to be seen."""

_NORMAL_MAD: Final = 1.4826  # a normal's standard deviation over its median absolute deviation
_MEDIAN: Final = math.sqrt(math.pi / 2)  # standard error of a normal's median over its mean's


@dataclass(frozen=True, slots=True)
class Pair:
    """What the two processes of a pair took: ns a step, one number a batch."""

    base_ns: Sequence[float]
    candidate_ns: Sequence[float]

    @property
    def log_ratio(self) -> float:
        """The log of candidate / base, of their low quantiles."""
        low = [np.quantile(side, QUANTILE) for side in (self.candidate_ns, self.base_ns)]
        return float(np.log(low[0] / low[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """A verdict on one cell, the change over all its pairs, and the reason."""

    verdict: Verdict
    change: Estimate
    detectable: float
    reason: str


def change(logs: Sequence[float]) -> Estimate:
    """Return the median of the pairs' ratios with its order-statistic interval."""
    found = estimates.median(np.asarray(logs, dtype=np.float64))
    return Estimate(
        point=math.exp(found.point),
        low=math.exp(found.low),
        high=math.exp(found.high),
        confidence=found.confidence,
        rounds=len(logs),
    )


def detectable(logs: Sequence[float]) -> float:
    """Return the smallest change that these pairs would have shown: `SIGMAS` standard errors.

    Of the median, from the median absolute deviation, so that one spoilt pair does not count.
    Never below `SYSTEMATIC`.
    """
    spread = _NORMAL_MAD * float(np.median(np.abs(np.asarray(logs) - np.median(logs))))
    return max(SYSTEMATIC, SIGMAS * _MEDIAN * spread / math.sqrt(len(logs)))


def suspicion(logs: Sequence[float], *, threshold: float = THRESHOLD) -> int:
    """Return the direction in which the pairs point: 1 slower, -1 faster, 0 neither.

    Their median lies beyond `CUT` of the threshold, and all of them but one in five on that side
    of no change at all.
    """
    middle = float(np.median(logs))
    if abs(middle) < CUT * math.log1p(threshold):
        return 0
    sign = 1 if middle > 0 else -1
    against = sum(log * sign <= 0 for log in logs)
    return sign if against <= len(logs) // 5 else 0


def unsettled(logs: Sequence[float], *, threshold: float = THRESHOLD) -> bool:
    """Return whether a cell needs fresh pairs: it is suspect, or could hide what is looked for."""
    return suspicion(logs, threshold=threshold) != 0 or detectable(logs) > threshold


def rule(
    first: Sequence[float], fresh: Sequence[float] = (), *, threshold: float = THRESHOLD
) -> Ruling:
    """Return the verdict on a cell's log ratios of the first pairs and of the confirming ones.

    ``worse`` and ``better`` take both, each by itself. ``same`` takes pairs that would have shown
    a change of the threshold. All else is ``inconclusive``.
    """
    every = [*first, *fresh]
    seen = detectable(every)
    suspected = suspicion(first, threshold=threshold)
    confirmed = suspicion(fresh, threshold=threshold) if fresh else 0
    found = change(every)
    if suspected and confirmed == suspected:
        verdict = Verdict.WORSE if suspected > 0 else Verdict.BETTER
        reason = f"{len(first)} pairs suspected it, {len(fresh)} fresh ones confirmed it"
    elif seen <= threshold and not (suspected and not fresh):
        verdict = Verdict.SAME
        reason = f"a change of {max(seen, threshold):.1%} would have shown"
        if suspected:
            reason = f"suspected by {len(first)} pairs, not confirmed by {len(fresh)} fresh ones"
    else:
        verdict = Verdict.INCONCLUSIVE
        reason = f"pairs differ so much that only {seen:.1%} would have shown"
        if suspected and not fresh:
            reason = "suspected, and not yet confirmed by fresh pairs"
    return Ruling(verdict=verdict, change=found, detectable=seen, reason=reason)
