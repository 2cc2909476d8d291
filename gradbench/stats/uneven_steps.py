"""Whether a step that its fastest batches show to be as it was is slower on average. Pure.

The fastest of a turn's batches stand for it, for other work only ever adds time. So work that a
candidate does in some steps alone, in each fourth one or whenever a thread of its own runs, is not
in them. It is in the mean of all batches, which other work disturbs, so it takes a stricter test.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from .estimates import Floats
from .log_t_test import t_below
from .replicate import Replicate
from .table_rule import ALPHA, CellVerdict
from .verdicts import Verdict, percent

SHARE: Final = 0.1
"""Of the chance that an equal cell of a table is called slower: what is added to it here."""
WILD: Final = 20.0
"""Times a side's median that a batch counts as, at most."""


def judged(
    verdict: CellVerdict, replicates: Sequence[Replicate], *, threshold: float, cells: int
) -> CellVerdict:
    """Return the verdict, or "worse" where the mean is so for sure and beyond the threshold."""
    if verdict.verdict is Verdict.WORSE or len(replicates) < 3:
        return verdict
    means = np.array([mean_log_ratio(one) for one in replicates])
    more = means - np.array([one.log_ratio for one in replicates])
    beyond = min(float(means.mean()), float(more.mean())) > math.log1p(threshold)
    p = _p_of_more(more)
    if not (beyond and p <= SHARE * ALPHA / max(cells, 1)):
        return verdict
    mean = percent(math.exp(float(means.mean())))
    return CellVerdict(
        verdict=Verdict.WORSE,
        change=verdict.change,
        reason=f"slower on average, by {mean}: its steps are not alike, and the fastest of them, "
        f"which the change is of, do not show it (p {p:.1g})",
    )


def mean_log_ratio(one: Replicate) -> float:
    """Return the log of candidate / base of the means of all batches."""
    base, candidate = (_mean(side) for side in (one.base_ns, one.candidate_ns))
    return math.log(candidate / base)


def _mean(turns: Sequence[Sequence[float]]) -> float:
    batches: Floats = np.concatenate([np.asarray(turn, dtype=np.float64) for turn in turns])
    return float(np.minimum(batches, WILD * np.median(batches)).mean())


def _p_of_more(more: Floats) -> float:
    """Return the p-value of the mean being no larger than 0: Student's t-test, one-sided."""
    error = float(more.std(ddof=1)) / math.sqrt(len(more))
    if error == 0:
        return 1.0
    return t_below(-float(more.mean()) / error, len(more) - 1)
