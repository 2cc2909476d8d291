"""The mean logarithm of a side's runs, and the t distribution that judges two of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from scipy import special

from .estimates import Estimate, z_of


@dataclass(frozen=True, slots=True)
class MeanLog:
    """The mean log of a side's runs, its variance, and the degrees of freedom of that."""

    log: float
    variance: float
    freedom: float


def mean_log(levels: Sequence[Estimate]) -> MeanLog:
    """Return the mean log of runs; its variance is at least what the spread of rounds gives."""
    logs = [math.log(level.point) for level in levels]
    of_rounds = fmean(map(_of_rounds, levels))
    n = len(levels)
    if n == 1 or variance(logs) < of_rounds:
        return MeanLog(fmean(logs), of_rounds / n, math.inf)
    return MeanLog(fmean(logs), variance(logs) / n, n - 1)


def _of_rounds(level: Estimate) -> float:
    """Return the variance that the spread of a run's rounds gives; one round has none to show."""
    if level.confidence <= 0:
        return 0.0
    return (math.log(level.high / level.low) / 2 / z_of(level.confidence)) ** 2


def t_below(value: float, freedom: float) -> float:
    """Return the chance that Student's t is below a value; the normal's with infinite freedom."""
    share = special.ndtr(value) if math.isinf(freedom) else special.stdtr(freedom, value)
    return float(share)


def t_quantile(chance: float, freedom: float) -> float:
    """Return the value that Student's t is below with this chance."""
    quantile = special.ndtri(chance) if math.isinf(freedom) else special.stdtrit(freedom, chance)
    return float(quantile)
