"""What a gate comes to: the verdicts, the figures without one, the exit status."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ..exit_status import ExitStatus
from ..experiment.matrix import Cell
from ..stats.verdicts import Verdict
from .figure_verdicts import FigureVerdict

Why = Literal["new", "gone", "not comparable", "not measured", "no number"]
"""``not measured``: the baseline has a number; ``no number``: neither side has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCompared:
    """A figure without a verdict: why, in a word and in words."""

    cell: Cell
    meter: str
    why: Why
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedReplicate:
    """Which machine of a cluster a replicate was made on, and its ratio candidate / base."""

    cell: Cell
    machine: str
    change: float


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What a gate came to: verdicts, what is without one, how many figures had a number."""

    figure_verdicts: tuple[FigureVerdict, ...]
    not_compared: tuple[NotCompared, ...]
    measured: int  # cells times meters that the candidate has a number for
    machines: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of a cluster
    replicates: tuple[PlacedReplicate, ...] = ()  # made there

    @cached_property
    def counts(self) -> Mapping[Verdict, int]:
        """How many verdicts there are of each kind."""
        given = [figure_verdict.verdict for figure_verdict in self.figure_verdicts]
        return {verdict: given.count(verdict) for verdict in Verdict}

    def status(self, *, strict: bool = False) -> ExitStatus:
        """Return the exit status; when ``strict``, cells that could not be judged matter."""
        if self.counts[Verdict.WORSE]:
            return ExitStatus.REGRESSION
        if not self.measured:
            return ExitStatus.NOTHING_MEASURED
        if not self.figure_verdicts:
            return ExitStatus.NO_BASELINE
        if strict and self.counts[Verdict.INCONCLUSIVE]:
            return ExitStatus.INCONCLUSIVE
        return ExitStatus.OK
