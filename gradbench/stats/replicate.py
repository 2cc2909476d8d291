"""One replicate of a comparison: what base and candidate took in turns. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

WILD: Final = 20.0
"""Times a side's median that a batch counts as in its mean, at most."""


@dataclass(frozen=True, slots=True)
class Replicate:
    """The ns of a step, by turn and by batch within the turn.

    Turns of equal index followed one another at once, in one process or in two.
    """

    base_ns: Sequence[Sequence[float]]  # (turns, batches)
    candidate_ns: Sequence[Sequence[float]]
    machine: str = field(default="", kw_only=True)  # of a cluster

    @property
    def log_ratio(self) -> float:
        """The log of candidate / base: the median over turns of the ratio of their fastest batches.

        Turns that follow one another at once share what the machine does meanwhile, and other work
        only ever adds time.
        """
        turns = zip(self.base_ns, self.candidate_ns, strict=True)
        return float(np.median([math.log(min(candidate) / min(base)) for base, candidate in turns]))

    @property
    def mean_log_ratio(self) -> float:
        """The log of candidate / base of the means of all batches.

        Work that comes in some steps alone is in it, and so is what other processes take.
        """
        return math.log(_mean(self.candidate_ns) / _mean(self.base_ns))

    @property
    def typical_ns(self) -> tuple[float, float]:
        """Median over turns of the fastest batch, of base and of candidate."""
        base, candidate = (
            float(np.median([min(turn) for turn in side]))
            for side in (self.base_ns, self.candidate_ns)
        )
        return base, candidate


def _mean(turns: Sequence[Sequence[float]]) -> float:
    batches = np.concatenate([np.asarray(turn, dtype=np.float64) for turn in turns])
    return float(np.minimum(batches, WILD * np.median(batches)).mean())
