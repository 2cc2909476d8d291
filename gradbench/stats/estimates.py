"""Statistics: arrays in, numbers with their intervals out. Pure."""

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_DETECTABLE_EFFECT: Final = 0.003
"""Relative effects below this were seen between identical arms: no interval makes them real."""

CONFIDENCE: Final = 0.95
"""Of the intervals that are shown, and that a verdict takes."""

_DETECTED_Z: Final = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A point with a confidence interval; ``low <= point <= high``.

    ``confidence`` is what the interval really has: order statistics come in steps, so it is a
    little above what was asked for, and below it only when there are too few rounds. A figure
    that repeats to the byte has ``rounds`` 1, ``exact`` True and no width.
    """

    point: float
    low: float
    high: float
    confidence: float
    rounds: int
    exact: bool = False

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the point."""
        return (self.high - self.low) / 2 / self.point if self.point else 0.0

    @property
    def detectable(self) -> float:
        """Smallest relative change that a test at 5% would have seen four times in five.

        z(0.975) + z(0.8) standard errors, the usual power calculation for a normal estimator
        (Cohen 1988, section 2.4), and never below `MIN_DETECTABLE_EFFECT`. A standard error is
        the half-width over the z of its confidence: one round says nothing of it, and then no
        change however large would have been seen.
        """
        if self.exact:
            return 0.0
        if self.confidence <= 0:
            return math.inf
        return max(MIN_DETECTABLE_EFFECT, self.half_width / z_of(self.confidence) * _DETECTED_Z)


@cache
def z_of(confidence: float) -> float:
    """Return the z by which a normal estimator reaches to either end of such an interval."""
    return NormalDist().inv_cdf((1 + min(confidence, 1 - 1e-9)) / 2)


def exact(value: float) -> Estimate:
    """Return an estimate of a deterministic metric."""
    return Estimate(point=value, low=value, high=value, confidence=1.0, rounds=1, exact=True)


def median(values: Floats, *, confidence: float = CONFIDENCE) -> Estimate:
    """Return the median of ``values`` (rounds,) and its order-statistic interval.

    See `quantile`. Fewer than six rounds cannot carry 95%: then it spans all of them and
    ``confidence`` says what that is worth. Raise ValueError without rounds.
    """
    return quantile(values, q=0.5, confidence=confidence)


def quantile(values: Floats, q: float = 0.1, *, confidence: float = CONFIDENCE) -> Estimate:
    """Return the ``q`` quantile of ``values`` (rounds,) and its order-statistic interval.

    Preemption only ever adds time, so between processes a low one (the default) holds stiller
    than the median. The interval is [x(l), x(u)] with the largest l and the smallest u for which a
    binomial(n, q) leaves out at most half of 1 - confidence on each side; it holds for any
    continuous distribution (David & Nagaraja 2003, Order Statistics, section 7.1). The point
    lies between its neighbours in rank (Hyndman & Fan 1996, type 7).

    Few rounds have no such l (q = 0.1 at 95% takes 36): then the interval begins at the least of
    them, and ``confidence`` says what that is worth. Raise ValueError without rounds, or for a
    ``q`` outside of (0, 1).
    """
    n = len(values)
    if n == 0:
        raise ValueError("no rounds: there is nothing to estimate")
    if not 0 < q < 1:
        raise ValueError(f"a quantile lies between 0 and 1, not at {q!r}")
    ordered = np.sort(values)
    lower, upper, inside = _ranks(n, q, confidence)
    return Estimate(
        point=_between(ordered, q),
        low=float(ordered[lower - 1]),
        high=float(ordered[upper - 1]),
        confidence=inside,
        rounds=n,
    )


@cache
def _ranks(n: int, q: float, confidence: float) -> tuple[int, int, float]:
    """Return the ranks that the interval of a quantile of ``n`` rounds lies between, and its worth.

    Kept: a gate asks for thousands of intervals of a few numbers of rounds.
    """
    from scipy import special  # a history of many runs has no use for it, and need not wait for it

    tail = (1 - confidence) / 2
    counts = np.arange(n + 1)
    lower = max(1, int(np.argmax(special.bdtr(counts, n, q) >= tail)))
    upper = min(n, int(np.argmax(special.bdtrc(counts, n, q) <= tail)) + 1)
    inside = special.bdtr(upper - 1, n, q) - special.bdtr(lower - 1, n, q)
    return lower, upper, float(inside)


def _between(ordered: Floats, q: float) -> float:
    """Return the ``q`` quantile of sorted values, between its neighbours in rank."""
    place = (len(ordered) - 1) * q
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (ordered[above] - ordered[below]) * (place - below))


def paired_ratio(
    candidate: Floats, reference: Floats, *, confidence: float = CONFIDENCE
) -> Estimate:
    """Return the median of candidate / reference over paired rounds (rounds,), with interval.

    Taken on logs, so that the ratio of the sides swapped is the reciprocal. Drift that both
    sides of a round share cancels. Raise ValueError when the sides differ in length or a time is
    not positive.
    """
    logs = median(_log_ratios(candidate, reference), confidence=confidence)
    return Estimate(
        point=math.exp(logs.point),
        low=math.exp(logs.low),
        high=math.exp(logs.high),
        confidence=logs.confidence,
        rounds=logs.rounds,
    )


def hodges_lehmann(values: Floats, *, confidence: float = CONFIDENCE) -> Estimate:
    """Return the median of all means of two of ``values`` (n,), each with itself included.

    Of normal noise it wants 5% more values than the mean where the median wants 57% more, and
    one wild value of six does not move it far (Hodges & Lehmann 1963, Estimates of Location Based
    on Rank Tests). Its interval is the signed-rank test's, for a symmetric distribution (Hollander
    & Wolfe 1999, Nonparametric Statistical Methods, section 3.3). Fewer than six values cannot
    carry 95%: then it spans all means, and ``confidence`` says what that is worth. Raise
    ValueError without values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values: there is nothing to estimate")
    first, second = _pairs(n)
    means = np.sort((values[first] + values[second]) / 2)
    cut, inside = _signed_rank(n, confidence)
    return Estimate(
        point=_between(means, 0.5),
        low=float(means[cut]),
        high=float(means[-1 - cut]),
        confidence=inside,
        rounds=n,
    )


@cache
def _pairs(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the places of all pairs of ``n`` values, each with itself included."""
    first, second = np.triu_indices(n)
    return first, second


@cache
def _signed_rank(n: int, confidence: float) -> tuple[int, float]:
    """Return how many means to leave out at either end, and what the interval is then worth."""
    ways = np.ones(1)  # ways[w]: choices of signs with rank sum w
    for rank in range(1, n + 1):
        signs = np.zeros(rank + 1)
        signs[[0, rank]] = 1
        ways = np.convolve(ways, signs)
    below = np.cumsum(ways) / 2.0**n  # below[w]: chance of a rank sum of at most w
    tail = (1 - confidence) / 2
    cut = max(0, int(np.searchsorted(below, tail, side="right")) - 1)
    return cut, float(1 - 2 * below[cut])


def holm(p_values: Floats) -> Floats:
    """Return p-values (tests,) adjusted for their number, to be compared with alpha as they are.

    The chance of even one false alarm among all of them is then at most alpha, however they
    depend on one another (Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure).
    Raise ValueError for one outside of [0, 1].
    """
    p_values = _checked(p_values)
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Return p-values (tests,) adjusted for their number, to be compared with alpha as they are.

    Of the alarms, a share of at most alpha is then expected to be false, for tests that are
    independent or depend positively (Benjamini & Hochberg 1995, Controlling the False Discovery
    Rate): more alarms than `holm`, and more false ones. Raise ValueError for one outside of [0, 1].
    """
    p_values = _checked(p_values)
    order = np.argsort(p_values)[::-1]  # from the largest down
    steps = p_values[order] * (len(p_values) / np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.minimum.accumulate(steps), 1.0)
    return adjusted


def noise_floor(control: Estimate) -> float:
    """Return the relative difference from 1 that an A/A control does not rule out.

    It is `MIN_DETECTABLE_EFFECT` at least.

    ``control`` is the ratio of two arms that are truly equal, so whatever its interval allows
    away from 1 is noise. Which arm is on top does not matter: 0.8 counts as 1 / 0.8.
    """
    return max(MIN_DETECTABLE_EFFECT, max(1 / control.low, control.high) - 1)


def _log_ratios(candidate: Floats, reference: Floats) -> Floats:
    if len(candidate) != len(reference):
        raise ValueError(f"rounds do not pair: {len(candidate)} against {len(reference)}")
    if min(candidate.min(initial=1.0), reference.min(initial=1.0)) <= 0:
        raise ValueError("times must be positive")
    return np.asarray(np.log(candidate) - np.log(reference), dtype=np.float64)


def _checked(p_values: Floats) -> Floats:
    p_values = np.asarray(p_values, dtype=np.float64)
    wrong = p_values[~((p_values >= 0) & (p_values <= 1))]
    if len(wrong):
        raise ValueError(f"a p-value lies between 0 and 1: {float(wrong[0])!r} does not")
    return p_values
