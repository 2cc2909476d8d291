"""The rule by which replicates from several machines come to verdicts: machines are blocks. Pure.

A machine may have a shift of its own that all its replicates share, and then they are no
independent samples: pooled, more of them would make the interval narrow about that shift. So the
change is estimated within each machine, and the machines' changes are the samples.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from ..plurals import counted
from .estimates import CONFIDENCE, Estimate, hodges_lehmann
from .log_t_test import t_quantile
from .replicate import Replicate
from .table_rule import (
    ALPHA,
    FIRST,
    LOOKS,
    MANY,
    MOST,
    THRESHOLD,
    CellVerdict,
    changed,
    p_value,
)
from .verdicts import Verdict

FEWEST: Final = 5
"""Machines from which on they find more as blocks than one of them does by its replicates."""

Sample = Sequence[tuple[str, float]]
"""A cell's replicates in the order in which they came: the machine, and the log ratio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRule:
    """How a table is judged whose replicates come from so many machines.

    A cell is looked at when it has ``first`` replicates for each machine, and twice more. The
    mean of the machines' changes is tested by Student's t with one degree of freedom less than
    machines, at `ALPHA` / (`LOOKS` x cells of the table). That is exact for equal numbers of
    replicates and normal shifts (the treatment of a randomized block design against its
    interaction with random blocks: Montgomery, Design and Analysis of Experiments, chapter 13),
    and holds for unequal ones, and for machines of unequal noise, too (Ibragimov & Müller 2010,
    t-Statistic Based Correlation and Heterogeneity Robust Inference). A machine's shift is in its
    first replicates and in its fresh ones, so none are set apart to confirm: instead every cell of
    the table counts as a test (Bonferroni over looks and cells).
    """

    machines: int
    threshold: float = THRESHOLD
    first: int = FIRST

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of replicates, of all machines, at which a cell is tested."""
        last = self.first + math.ceil(MOST * self.first)
        between = math.ceil((self.first * last) ** 0.5)
        return tuple(self.machines * each for each in (self.first, between, last))

    @property
    def most(self) -> int:
        """Replicates of a cell, at most."""
        return self.looks[-1]

    def sample(self, replicates: Sequence[Replicate]) -> Sample:
        """Return what is judged of replicates."""
        return [(one.machine, one.log_ratio) for one in replicates]

    def independent(
        self, replicates: Sequence[Replicate], figure: Callable[[Replicate], float]
    ) -> list[float]:
        """Return a figure of replicates as each machine has it, which is a sample of its own."""
        return list(machine_changes(tuple((one.machine, figure(one)) for one in replicates)))

    def suspects(self, table: Iterable[Sample]) -> int:
        """Return how many cells are tested: all."""
        return len(list(table))

    def more(self, sample: Sample, *, suspects: int) -> bool:
        """Return whether a cell with these replicates so far needs more."""
        return len(sample) < self.most and self._settled(sample, suspects) is None

    def verdict(self, sample: Sample, *, suspects: int) -> CellVerdict:
        """Return the verdict on a cell's replicates."""
        settled = self._settled(sample, suspects)
        if settled is not None:
            return settled
        found = change(sample)
        if len(sample) >= self.looks[0] and self._is_within(found):
            return self._same(found)
        reason = self._why_open(sample, found, suspects)
        return CellVerdict(verdict=Verdict.INCONCLUSIVE, change=found, reason=reason)

    def level(self, suspects: int) -> float:
        """Return the level at which a cell is tested at one look."""
        return ALPHA / (LOOKS * max(suspects, 1))

    def _settled(self, sample: Sample, suspects: int) -> CellVerdict | None:
        """Return the verdict of the first look that gives one, or None."""
        for look in (each for each in self.looks if each <= len(sample)):
            seen = sample[:look]
            found = change(seen)
            centres = machine_changes(tuple(seen))
            if len(centres) > 1 and (p := p_value(centres)) <= self.level(suspects):
                return changed(
                    found,
                    threshold=self.threshold,
                    sure=f"on {counted(len(centres), 'machine')} with {look} replicates "
                    f"(p {p:.1g}, {self.level(suspects):.1g} asked)",
                )
            if self._is_within(found) and found.low <= 1 <= found.high:
                return self._same(found)
        return None

    def _is_within(self, found: Estimate) -> bool:
        inside = 1 / (1 + self.threshold) < found.low and found.high < 1 + self.threshold
        return inside and found.confidence > 0

    def _same(self, found: Estimate) -> CellVerdict:
        largest = max(found.high - 1, 1 / found.low - 1)
        words = f"a change of more than {largest:.1%} is ruled out, threshold {self.threshold:.1%}"
        if not found.low <= 1 <= found.high:
            words += f"; a smaller one is not sure on {counted(found.rounds, 'machine')}"
        return CellVerdict(verdict=Verdict.SAME, change=found, reason=words)

    def _why_open(self, sample: Sample, found: Estimate, suspects: int) -> str:
        if len(sample) < self.looks[0]:
            made = f"{len(sample)} of the first {self.looks[0]} replicates were made"
            return f"{made}: a larger budget would settle it"
        if found.rounds < 2:
            return f"all {len(sample)} replicates are of one machine, whose own shift is not known"
        spread = math.log(found.high / found.low) / 2
        made = f"{len(sample)} replicates on {counted(found.rounds, 'machine')}"
        return (
            f"{made} leave ±{math.expm1(spread):.1%}; {self._what_settles(found, spread, suspects)}"
        )

    def _what_settles(self, found: Estimate, spread: float, suspects: int) -> str:
        """Return in words how many machines would settle an open cell, if they were like these.

        Their interval would lie within the threshold, or their mean be sure at the cell's level.
        """
        moved = abs(math.log(found.point))
        interval, sure = (1 + CONFIDENCE) / 2, 1 - self.level(suspects) / 2
        sd = spread * math.sqrt(found.rounds) / t_quantile(interval, found.rounds - 1)
        for machines in range(max(found.rounds + 1, FEWEST), MANY + 1):
            error, freedom = sd / math.sqrt(machines), machines - 1
            within = moved + t_quantile(interval, freedom) * error < math.log1p(self.threshold)
            if within or t_quantile(sure, freedom) * error < moved:
                return f"{machines} equal machines would settle it"
        return "quieter machines or a longer step (a larger batch) would settle it"


@lru_cache(maxsize=4096)
def machine_changes(sample: tuple[tuple[str, float], ...]) -> tuple[float, ...]:
    """Return each machine's log change: the Hodges-Lehmann centre of its replicates.

    Kept: a table is asked about again after each replicate.
    """
    logs: dict[str, list[float]] = {}
    for machine, log in sample:
        logs.setdefault(machine, []).append(log)
    return tuple(hodges_lehmann(np.asarray(own, dtype=np.float64)).point for own in logs.values())


def change(sample: Sample) -> Estimate:
    """Return the mean of the machines' changes with Student's interval, ``rounds`` machines.

    Of one machine alone nothing is known of its shift: then the interval spans its replicates, and
    ``confidence`` is 0.
    """
    centres = np.asarray(machine_changes(tuple(sample)), dtype=np.float64)
    count, mean = len(centres), float(centres.mean())
    if count < 2:
        logs = [log for _machine, log in sample]
        low, high = math.exp(min(logs)), math.exp(max(logs))
        return Estimate(point=math.exp(mean), low=low, high=high, confidence=0.0, rounds=count)
    error = float(centres.std(ddof=1)) / math.sqrt(count)
    reach = t_quantile((1 + CONFIDENCE) / 2, count - 1) * error
    return Estimate(
        point=math.exp(mean),
        low=math.exp(mean - reach),
        high=math.exp(mean + reach),
        confidence=CONFIDENCE,
        rounds=count,
    )
