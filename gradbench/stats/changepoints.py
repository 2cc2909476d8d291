"""Where a series of noisy figures changed its level: pure statistics, no clock, no files."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .estimates import Floats

Cuts = list[int]
"""Where segments begin, the first left out: ``[5, 9]`` of 12 points is 0-4, 5-8, 9-11."""

MAD_TO_SD: Final = NormalDist().inv_cdf(0.75)
"""The median absolute deviation of a normal distribution with standard deviation 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What makes a shift a change; ``tools/history_quality.py --rule`` tries others.

    ``penalty`` times log(points) times the variance of the noise is what a cut must save in squared
    deviation. That variance is itself uncertain in a short series: it is taken to be larger by
    ``doubt`` / points. ``alpha`` bounds the p-value of a rank test between the segments that a cut
    parts, and ``effect`` the relative difference of their medians from below. A segment has
    ``least`` points or more.
    """

    penalty: float = 3.0
    doubt: float = 24.0
    alpha: float = 1e-3
    effect: float = 0.02
    least: int = 5
    spike: float = 3.0  # deviations from the neighbours' median, beyond which a point is clipped
    reach: int = 3  # neighbours on each side


RULE: Final = Rule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A change of level: ``index`` is the first point after it, the medians are of its sides.

    ``before_points`` and ``after_points`` are how many points the medians stand on: from the
    last change to this one, and from this one to the next.
    """

    index: int
    before: float
    after: float
    before_points: int
    after_points: int
    p: float

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before


def shifts(values: Floats, *, rule: Rule = RULE) -> list[Shift]:
    """Return where ``values`` (points,), all above 0, changed their level, in order.

    On logs, so that a rise and its way back weigh the same: spikes are clipped to their
    neighbours (`clip_spikes`), the level is cut where that saves more squared deviation than
    chance would (the optimal partition, Jackson et al. 2005; a penalty in the log of the number of
    points, as in Yao 1988), with the noise measured between neighbours, where changes of level
    hardly show, and its inflation by dependence (`noise`). Then cuts whose sides differ too little,
    or by a rank test too uncertainly, are taken back, the least certain first. Fewer than twice
    ``rule.least`` points have no shift. Raise ValueError for a value that is not above 0.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) and not (np.isfinite(values).all() and values.min() > 0):
        raise ValueError("levels are compared by their ratio: values must be above 0")
    if len(values) < 2 * rule.least or values.min(initial=1.0) == values.max(initial=1.0):
        return []
    logs = np.log(values)
    calm = clip_spikes(logs, rule=rule)
    spread, inflation = noise(calm)
    floor = rule.effect / 10  # rounding alone is no noise to divide by
    variance = max(spread, floor) ** 2 * inflation * (1 + rule.doubt / len(logs))
    cuts = partition(calm, penalty=rule.penalty * math.log(len(logs)) * variance, least=rule.least)
    return _confirmed(logs, cuts, inflation, rule)


def clip_spikes(logs: Floats, *, rule: Rule = RULE) -> Floats:
    """Return logs (points,) with each point drawn to within a few deviations of its neighbours.

    Held against the median of itself and ``rule.reach`` neighbours a side (Hampel's filter), so
    that what lasts longer than ``rule.reach`` points stays whole, and a shorter burst goes.
    """
    width = 2 * rule.reach + 1
    padded = np.pad(logs, rule.reach, constant_values=np.nan)
    middle = np.nanmedian(sliding_window_view(padded, width), axis=1)
    room = rule.spike * _spread(np.diff(logs)) / math.sqrt(2)
    return np.asarray(np.clip(logs, middle - room, middle + room), dtype=np.float64)


def noise(logs: Floats) -> tuple[float, float]:
    """Return the standard deviation of logs (points,) around their level, and its inflation.

    Both come from differences, over which a change of level passes only once: at lag 1 their
    variance is 2 s² (1 - r), at lag 2 it is 2 s² (1 - r²), for a first-order autoregression
    with deviation s and correlation r. Their quotient is 1 + r (Romano et al. 2022, Detecting
    Abrupt Changes in the Presence of Local Fluctuations and Autocorrelated Noise). Of r, what
    chance alone would show, 1 / sqrt(points), is taken off. A mean of n dependent points has
    (1 + r) / (1 - r) times the variance that n independent ones would give it: the inflation,
    never below 1.
    """
    one, two = (_variance(logs[lag:] - logs[:-lag]) / 2 for lag in (1, 2))
    if one == 0:
        return 0.0, 1.0
    r = float(np.clip(two / one - 1 - 1 / math.sqrt(len(logs)), 0.0, 0.9))
    return math.sqrt(one / (1 - r)), (1 + r) / (1 - r)


def partition(values: Floats, *, penalty: float, least: int) -> Cuts:
    """Return the cuts that minimise squared deviation from segments' means, plus a penalty each.

    ``values`` is (points,), a segment has ``least`` points or more. By the recursion over the last
    cut (Jackson et al. 2005), which is exact.
    """
    n = len(values)
    centred = values - values.mean()
    sums = np.concatenate([[0.0], np.cumsum(centred)])
    squares = np.concatenate([[0.0], np.cumsum(centred**2)])
    cost = np.full(n + 1, np.inf)
    cost[0] = -penalty
    begin = np.zeros(n + 1, dtype=np.intp)
    for end in range(least, n + 1):
        starts = slice(0, end - least + 1)
        lengths = np.arange(end, least - 1, -1)
        deviation = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / lengths
        totals = cost[starts] + deviation + penalty
        begin[end] = int(totals.argmin())
        cost[end] = totals[begin[end]]
    cuts: Cuts = []
    at = int(begin[n])
    while at > 0:
        cuts.append(at)
        at = int(begin[at])
    return cuts[::-1]


def _confirmed(logs: Floats, cuts: Cuts, inflation: float, rule: Rule) -> list[Shift]:
    """Take back cuts that fail, the least certain first, until the sides of each differ."""
    while True:
        confirmed = [
            _shift(logs, *edges, inflation=inflation)
            for edges in zip([0, *cuts], cuts, [*cuts[1:], len(logs)], strict=False)
        ]
        worst = max(
            (shift for shift in confirmed if _fails(shift, rule)), key=lambda s: s.p, default=None
        )
        if worst is None:
            return confirmed
        cuts = [cut for cut in cuts if cut != worst.index]


def _fails(shift: Shift, rule: Rule) -> bool:
    return shift.p > rule.alpha or abs(math.log(shift.ratio)) < math.log1p(rule.effect)


def _shift(logs: Floats, start: int, cut: int, end: int, *, inflation: float) -> Shift:
    before, after = logs[start:cut], logs[cut:end]
    return Shift(
        index=cut,
        before=math.exp(float(np.median(before))),
        after=math.exp(float(np.median(after))),
        before_points=len(before),
        after_points=len(after),
        p=rank_test(before, after, inflation=inflation),
    )


def rank_test(first: Floats, second: Floats, *, inflation: float = 1.0) -> float:
    """Return the two-sided p-value of the sides (points,) having one level, by Mann and Whitney.

    Normal scores of the exact or approximate p are divided by the root of ``inflation``, which
    the dependence between points asks for.
    """
    from scipy import special, stats  # slow to import, and of no use where nothing may have changed

    p = float(stats.mannwhitneyu(first, second).pvalue)
    if inflation <= 1 or p <= 0:
        return p
    return float(2 * special.ndtr(special.ndtri(p / 2) / math.sqrt(inflation)))


def _spread(differences: Floats) -> float:
    """Return the standard deviation of differences around 0, by their median size."""
    return float(np.median(np.abs(differences))) / MAD_TO_SD if len(differences) else 0.0


def _variance(differences: Floats) -> float:
    """Return the mean square of differences, those left out that a change of level explains."""
    near = differences[np.abs(differences) <= 4 * _spread(differences)]
    return float(np.mean(near**2)) if len(near) else 0.0
