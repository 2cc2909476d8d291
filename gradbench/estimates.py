"""Statistics: arrays in, numbers with their intervals out. Pure."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

SYSTEMATIC: Final = 0.003
"""Relative effects below this were seen between identical arms: no interval makes them real."""


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
        """Smallest relative change that would have been seen four times in five.

        Half-width times (z(0.975) + z(0.8)) / z(0.975), the usual power calculation for a
        normal estimator (Cohen 1988, section 2.4), and never below `SYSTEMATIC`.
        """
        if self.exact:
            return 0.0
        z = stats.norm.ppf([0.975, 0.8])
        return max(SYSTEMATIC, self.half_width * float(z.sum() / z[0]))


def exact(value: float) -> Estimate:
    """Return an estimate of a figure that repeats to the byte."""
    return Estimate(point=value, low=value, high=value, confidence=1.0, rounds=1, exact=True)


def median(values: Floats, *, confidence: float = 0.95) -> Estimate:
    """Return the median of ``values`` (rounds,) and its order-statistic interval.

    The interval is [x(k), x(n+1-k)] with the largest k for which the binomial tails leave out
    less than 1 - confidence; it holds for any continuous distribution (David & Nagaraja 2003,
    Order Statistics, section 7.1). Fewer than six rounds cannot carry 95 %: then it spans all of
    them and ``confidence`` says what that is worth. Raise ValueError without rounds.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no rounds: there is nothing to estimate")
    ordered = np.sort(values)
    k = max(1, int(stats.binom.ppf((1 - confidence) / 2, n, 0.5)))
    return Estimate(
        point=float(np.median(ordered)),
        low=float(ordered[k - 1]),
        high=float(ordered[n - k]),
        confidence=float(1 - 2 * stats.binom.cdf(k - 1, n, 0.5)),
        rounds=n,
    )


def paired_ratio(candidate: Floats, reference: Floats, *, confidence: float = 0.95) -> Estimate:
    """Return the median of candidate / reference over paired rounds (rounds,), with interval.

    Taken on logs, so that the ratio of the sides swapped is the reciprocal. Drift that both
    sides of a round share cancels. Raise ValueError when the sides differ in length or a time is
    not positive.
    """
    if len(candidate) != len(reference):
        raise ValueError(f"rounds do not pair: {len(candidate)} against {len(reference)}")
    if min(candidate.min(initial=1.0), reference.min(initial=1.0)) <= 0:
        raise ValueError("times must be positive")
    logs = median(np.log(candidate) - np.log(reference), confidence=confidence)
    return Estimate(
        point=math.exp(logs.point),
        low=math.exp(logs.low),
        high=math.exp(logs.high),
        confidence=logs.confidence,
        rounds=logs.rounds,
    )


def noise_floor(control: Estimate) -> float:
    """Return the relative difference that an A/A control does not rule out, `SYSTEMATIC` at least.

    ``control`` is the ratio of two arms that are truly equal, so whatever its interval allows
    away from 1 is noise.
    """
    return max(SYSTEMATIC, abs(math.log(control.low)), abs(math.log(control.high)))
