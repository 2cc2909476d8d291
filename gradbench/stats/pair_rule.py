"""The rule by which pairs of processes, base and candidate, come to a verdict. Pure.

The pair is what is replicated: two processes that were alive at the same time and took turns. Other
work on the machine only ever adds time, so a turn's fastest batch stands for it. What pairs
suspect, fresh pairs must confirm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from .estimates import MIN_DETECTABLE_EFFECT, Estimate, hodges_lehmann
from .verdicts import Verdict

PAIRS: Final = 5
"""Pairs to suspect by, and fresh ones to confirm by."""

EXTRA: Final = 3
"""Fresh pairs more, one by one, for a cell that those leave inconclusive."""

THRESHOLD: Final = 0.03
"""The slowdown that is to be found; a cell that could hide one is inconclusive."""

CUT: Final = 0.6
"""Share of the threshold from which on a change counts as the slowdown rather than as none."""

SIGMAS: Final = 3.0
"""Standard errors that a change must have to be seen."""

_NORMAL_75: Final = NormalDist().inv_cdf(0.875)  # what a quarter of a normal deviates by, in sd
_CENTRE: Final = math.sqrt(math.pi / 3)  # standard error of a normal's centre over its mean's


@dataclass(frozen=True, slots=True)
class Pair:
    """What the two processes of a pair took: ns a step, by turn and by batch within the turn.

    Turns of equal index followed one another at once.
    """

    base_ns: Sequence[Sequence[float]]  # (turns, batches)
    candidate_ns: Sequence[Sequence[float]]

    @property
    def log_ratio(self) -> float:
        """The log of candidate / base: the median over turns of the ratio of their fastest batches.

        Turns that follow one another at once share what the machine does meanwhile.
        """
        turns = zip(self.base_ns, self.candidate_ns, strict=True)
        return float(np.median([math.log(min(candidate) / min(base)) for base, candidate in turns]))

    @property
    def typical_ns(self) -> tuple[float, float]:
        """Median over turns of the fastest batch, of base and of candidate."""
        base, candidate = (
            float(np.median([min(turn) for turn in side]))
            for side in (self.base_ns, self.candidate_ns)
        )
        return base, candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class PairVerdict:
    """A verdict on one cell, the change over all its pairs, and the reason."""

    verdict: Verdict
    change: Estimate
    detectable: float
    reason: str


def change(logs: Sequence[float]) -> Estimate:
    """Return the centre of the pairs' ratios with its signed-rank interval."""
    centre = hodges_lehmann(np.asarray(logs, dtype=np.float64))
    return Estimate(
        point=math.exp(centre.point),
        low=math.exp(centre.low),
        high=math.exp(centre.high),
        confidence=centre.confidence,
        rounds=len(logs),
    )


def centre(logs: Sequence[float]) -> float:
    """Return the pairs' Hodges-Lehmann estimate.

    What differs between processes of equal code is where things lie in memory, drawn anew for
    each: near to normal, with a wild one now and then. There it needs two thirds of the pairs
    that a median needs.
    """
    return hodges_lehmann(np.asarray(logs, dtype=np.float64)).point


def detectable(logs: Sequence[float]) -> float:
    """Return the smallest change that these pairs would have shown: `SIGMAS` standard errors.

    Of their centre, from the deviation that a quarter of the pairs exceed, so that one disturbed
    pair of five does not count; the median deviation is too often small by chance. Never below
    `MIN_DETECTABLE_EFFECT`.
    """
    middle = centre(logs)
    deviations = sorted(abs(log - middle) for log in logs)
    spread = deviations[math.ceil(0.75 * len(logs)) - 1] / _NORMAL_75
    return max(MIN_DETECTABLE_EFFECT, SIGMAS * _CENTRE * spread / math.sqrt(len(logs)))


def direction(logs: Sequence[float], *, threshold: float = THRESHOLD) -> int:
    """Return the direction in which the pairs point: 1 slower, -1 faster, 0 neither.

    Their centre lies beyond `CUT` of the threshold, and all of them but one in five on that side
    of no change at all.
    """
    middle = centre(logs)
    if abs(middle) < CUT * math.log1p(threshold):
        return 0
    sign = 1 if middle > 0 else -1
    against = sum(log * sign <= 0 for log in logs)
    return sign if against <= len(logs) // 5 else 0


def needs_confirmation(logs: Sequence[float], *, threshold: float = THRESHOLD) -> bool:
    """Return whether a cell needs fresh pairs: it is suspect, or could hide what is looked for."""
    return direction(logs, threshold=threshold) != 0 or detectable(logs) > threshold


def more(
    first: Sequence[float],
    fresh: Sequence[float],
    *,
    threshold: float = THRESHOLD,
    extra: int = EXTRA,
) -> bool:
    """Return whether a cell needs another fresh pair.

    What the first pairs leave undecided takes as many fresh ones, and ``extra`` of them more while
    the verdict is inconclusive. Looking again after each costs few false alarms: the first pairs'
    suspicion stands as it was, and without it none can be confirmed.
    """
    if len(fresh) < len(first):
        return needs_confirmation(first, threshold=threshold)
    if len(fresh) >= len(first) + extra:
        return False
    return rule(first, fresh, threshold=threshold).verdict is Verdict.INCONCLUSIVE


def rule(
    first: Sequence[float], fresh: Sequence[float] = (), *, threshold: float = THRESHOLD
) -> PairVerdict:
    """Return the verdict on a cell's log ratios of the first pairs and of the confirming ones.

    ``worse`` and ``better`` take both, each by itself, and a change that all pairs together
    would have shown. ``same`` takes pairs that would have shown a change of the threshold, and
    lean to none. All else is ``inconclusive``.
    """
    every = [*first, *fresh]
    least_visible = detectable(every)
    suspected = direction(first, threshold=threshold)
    confirmed = direction(fresh, threshold=threshold) if fresh else 0
    estimate = change(every)
    middle = centre(every)
    if suspected and confirmed == suspected and abs(middle) >= least_visible:
        verdict = Verdict.WORSE if suspected > 0 else Verdict.BETTER
        faster_or_slower = "slower" if suspected > 0 else "faster"
        reason = f"{faster_or_slower} in the first {len(first)} pairs and in {len(fresh)} new ones"
    elif least_visible <= threshold and abs(middle) < CUT * math.log1p(threshold):
        verdict = Verdict.SAME
        reason = f"a change of {max(least_visible, threshold):.1%} would have shown"
        if suspected:
            reason = f"differs in the first {len(first)} pairs, and not in {len(fresh)} new ones"
    else:
        verdict = Verdict.INCONCLUSIVE
        reason = f"pairs differ so much that only {least_visible:.1%} would have shown"
        if least_visible <= threshold:
            reason = f"{len(every)} pairs lean to a change and do not agree on it"
        if suspected and not fresh:
            reason = "suspected, and not yet confirmed by fresh pairs"
    return PairVerdict(verdict=verdict, change=estimate, detectable=least_visible, reason=reason)
