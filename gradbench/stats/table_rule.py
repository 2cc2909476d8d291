"""The rule by which replicates come to verdicts, error rates controlled over the table. Pure.

A replicate is one log ratio of candidate and base from a process, or a pair of processes, of its
own: what lies where in memory is drawn anew for each, and differs for its whole life. What the
first replicates leave open is put to fresh ones, which are tested by themselves.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from .estimates import Estimate, hodges_lehmann
from .log_t_test import t_below, t_quantile
from .replicate import Replicate
from .verdicts import Verdict, percent

FIRST: Final = 5
"""Replicates of every cell; what they leave open takes as many fresh ones, or up to `MOST`."""

MOST: Final = 2.4
"""Fresh replicates at most, as a multiple of the first."""

LOOKS: Final = 3
"""Times at which a cell's fresh replicates are tested."""

THRESHOLD: Final = 0.03
"""The smallest change that counts as worse or better."""

ALPHA: Final = 0.01
"""The chance, at most, that any equal cell of a table is called slower or faster."""

FEWEST: Final = 3
"""Replicates: of fewer, a wild one cannot be seen."""

MANY: Final = 60
"""Replicates beyond which nobody waits: a quieter machine or a longer step helps instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellVerdict:
    """A verdict on one cell, the change over all its replicates, and the reason.

    ``average`` is the change of the mean of all batches where it is that which makes the cell
    worse, and the fastest ones, which ``change`` is of, do not show it.
    """

    verdict: Verdict
    change: Estimate
    reason: str
    average: Estimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRule:
    """How a table is judged. ``suspects`` below are the cells that the first replicates left open.

    A cell is **open** when the interval of its first replicates leaves out no change at all, or
    reaches beyond the threshold. Each of the suspects is tested on its fresh replicates alone, at
    each look, at `ALPHA` / (`LOOKS` x suspects): then the chance that any equal cell is called
    slower or faster is at most `ALPHA`, however many cells the table has (Bonferroni over looks
    and suspects; which they are is independent of what tests them).
    """

    threshold: float = THRESHOLD
    first: int = FIRST

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of fresh replicates at which a cell is tested."""
        last = math.ceil(MOST * self.first)
        between = math.ceil((self.first * last) ** 0.5)
        return self.first, between, last

    @property
    def most(self) -> int:
        """Replicates of a cell, at most."""
        return self.first + self.looks[-1]

    def is_open(self, logs: Sequence[float]) -> bool:
        """Return whether a cell's first replicates leave it open, so that it takes fresh ones."""
        first = logs[: self.first]
        return len(first) < self.first or self._differs(first) or not self._is_within(first)

    def sample(self, replicates: Sequence[Replicate]) -> list[float]:
        """Return what is judged of replicates: those of the machine that the last one is from."""
        return self.independent(replicates, lambda one: one.log_ratio)

    def independent(
        self, replicates: Sequence[Replicate], figure: Callable[[Replicate], float]
    ) -> list[float]:
        """Return a figure of the replicates that are judged, each a sample of its own."""
        return [figure(one) for one in replicates if one.machine == replicates[-1].machine]

    def suspects(self, table: Iterable[Sequence[float]]) -> int:
        """Return how many cells of a table the first replicates leave open."""
        return sum(map(self.is_open, table))

    def more(self, logs: Sequence[float], *, suspects: int) -> bool:
        """Return whether a cell with these replicates so far, the first ones first, needs more."""
        if len(logs) < self.first:
            return True
        if not self.is_open(logs) or len(logs) >= self.most:
            return False
        fresh = len(logs) - self.first
        if fresh not in self.looks:
            return True
        return not (self._sure(logs, suspects) or self._is_same(logs))

    def verdict(self, logs: Sequence[float], *, suspects: int) -> CellVerdict:
        """Return the verdict on a cell's replicates, the first ones first."""
        ratio = change(logs)
        p_value = self._sure(logs, suspects)
        if p_value is not None:
            return self._changed(ratio, p_value, len(logs), suspects)
        if len(logs) >= self.first and self._is_within(logs) and not self._may_yet(logs):
            return CellVerdict(verdict=Verdict.SAME, change=ratio, reason=self._why_same(logs))
        return CellVerdict(
            verdict=Verdict.INCONCLUSIVE, change=ratio, reason=self._why_open(logs, ratio, suspects)
        )

    def _sure(self, logs: Sequence[float], suspects: int) -> float | None:
        """Return the p-value by which the cell's fresh replicates are slower or faster, or None."""
        fresh = logs[self.first :]
        if not self.is_open(logs) or not self._differs(logs):
            return None
        sign = math.copysign(1.0, change(logs).point - 1)
        for look in self.looks:
            if look <= len(fresh) and (p := p_value(fresh[:look])) <= self.level(suspects):
                return p if math.copysign(1.0, sum(fresh[:look])) == sign else None
        return None

    def level(self, suspects: int) -> float:
        """Return the level at which a suspect is tested at one look."""
        return ALPHA / (LOOKS * max(suspects, 1))

    def _changed(self, ratio: Estimate, p: float, count: int, suspects: int) -> CellVerdict:
        return changed(
            ratio,
            threshold=self.threshold,
            sure=f"and the {count - self.first} fresh of {count} replicates confirm it "
            f"(p {p:.1g}, {self.level(suspects):.1g} asked)",
        )

    def _differs(self, logs: Sequence[float]) -> bool:
        ratio = change(logs)
        return not ratio.low <= 1 <= ratio.high

    def _is_within(self, logs: Sequence[float]) -> bool:
        ratio = change(logs)
        return 1 / (1 + self.threshold) < ratio.low and ratio.high < 1 + self.threshold

    def _is_same(self, logs: Sequence[float]) -> bool:
        return self._is_within(logs) and not self._differs(logs)

    def _may_yet(self, logs: Sequence[float]) -> bool:
        """Return whether a suspected change is still to be confirmed."""
        return self._differs(logs[: self.first]) and len(logs) < self.first + self.looks[0]

    def _why_same(self, logs: Sequence[float]) -> str:
        ratio = change(logs)
        largest = max(ratio.high - 1, 1 / ratio.low - 1)
        words = f"a change of more than {largest:.1%} is ruled out, threshold {self.threshold:.1%}"
        if self._differs(logs):
            return f"{words}; a smaller one is not confirmed by fresh replicates"
        if self._differs(logs[: self.first]):
            return f"{words}; the first {self.first} differed, the fresh ones do not"
        return words

    def _why_open(self, logs: Sequence[float], ratio: Estimate, suspects: int) -> str:
        if len(logs) < self.first:
            made = f"{len(logs)} of the {self.first} first replicates were made"
            return f"{made}: a larger budget would settle it"
        spread = (math.log(ratio.high) - math.log(ratio.low)) / 2
        words = f"{len(logs)} replicates leave ±{math.expm1(spread):.1%}"
        if self._differs(logs):
            fresh = len(logs) - self.first
            words += f", and {fresh} fresh ones do not confirm it" if fresh else ", to be confirmed"
        return f"{words}; {self._what_settles(logs, spread, ratio, suspects)}"

    def _what_settles(
        self, logs: Sequence[float], spread: float, ratio: Estimate, suspects: int
    ) -> str:
        """Return in words what would settle an open cell.

        Either an interval that lies within the threshold, or one so far from no change that fresh
        replicates confirm it at a suspect's level, whichever takes fewer replicates.
        """
        moved = max(abs(math.log(ratio.point)), 1e-4)
        room = max(math.log1p(self.threshold) - moved, 1e-4)
        stricter = t_quantile(self.level(suspects) / 2, math.inf) / t_quantile(0.025, math.inf)
        fresh = MOST / (1 + MOST)
        needed = len(logs) * spread**2 * min(room**-2, (stricter / moved) ** 2 / fresh)
        if needed <= MANY:
            first = max(self.first + 1, math.ceil(needed / (1 + MOST)))
            return f"more replicates would settle it: --processes {first}"
        return "a quieter machine or a longer step (a larger batch) would settle it"


def changed(ratio: Estimate, *, threshold: float, sure: str) -> CellVerdict:
    """Return the verdict on a change that is sure; ``sure`` says how."""
    slower = ratio.point > 1
    word = "slower" if slower else "faster"
    beyond = abs(math.log(ratio.point)) >= math.log1p(threshold)
    verdict = Verdict.WITHIN
    if beyond:
        verdict = Verdict.WORSE if slower else Verdict.BETTER
    how = (
        f"{percent(ratio.point)} is beyond the threshold of {threshold:.1%}"
        if beyond
        else f"{percent(ratio.point)}, threshold {threshold:.1%}"
    )
    end = percent(ratio.low if slower else ratio.high)
    return CellVerdict(
        verdict=verdict,
        change=ratio,
        reason=f"{word}{'' if beyond else ', within tolerance'}: {how}; at least {end}, {sure}",
    )


def change(logs: Sequence[float]) -> Estimate:
    """Return the centre of the replicates' ratios with its signed-rank interval.

    One wild replicate of five does not move the centre far. Of fewer than six the interval spans
    them all, and its confidence says what that is worth.
    """
    return _change(tuple(logs))


@lru_cache(maxsize=4096)
def _change(logs: tuple[float, ...]) -> Estimate:
    """Return `change`: a rule asks for it of the same replicates again and again."""
    centre = hodges_lehmann(np.asarray(logs, dtype=np.float64))
    return Estimate(
        point=math.exp(centre.point),
        low=math.exp(centre.low),
        high=math.exp(centre.high),
        confidence=centre.confidence,
        rounds=len(logs),
    )


def p_value(logs: Sequence[float]) -> float:
    """Return the p-value of the replicates' mean being 0: Student's t-test, two-sided."""
    values = np.asarray(logs, dtype=np.float64)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    if error == 0:
        return float(values.mean() == 0)
    return 2 * t_below(-abs(float(values.mean())) / error, len(values) - 1)
