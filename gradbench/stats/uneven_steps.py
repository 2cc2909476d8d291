"""Whether a step that its fastest batches show to be as it was is slower on average. Pure.

The fastest of a turn's batches stand for it, for other work only ever adds time. So work that a
candidate does in some steps alone, in each fourth one or whenever a thread of its own runs, is not
in them. It is in the mean of all batches, which other work disturbs, so it takes a stricter test.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from .estimates import Floats
from .log_t_test import t_below
from .table_rule import ALPHA, FEWEST, CellVerdict, change
from .verdicts import Verdict, percent

SHARE: Final = 0.1
"""Of the chance that an equal cell of a table is called slower: what is added to it here."""


def judged(
    verdict: CellVerdict,
    fastest: Sequence[float],
    means: Sequence[float],
    *,
    threshold: float,
    cells: int,
) -> CellVerdict:
    """Return the verdict, or "worse" where the mean is so for sure and beyond the threshold.

    ``fastest`` and ``means`` are a cell's log ratios, of the fastest batches and of the means of
    all: a pair for each replicate, or for each machine where these are what is independent. The
    verdict that is "worse" by them has the change of the mean as its ``average``.
    """
    if verdict.verdict is Verdict.WORSE or not FEWEST <= len(means) == len(fastest):
        return verdict
    more: Floats = np.asarray(means, dtype=np.float64) - np.asarray(fastest, dtype=np.float64)
    beyond = min(float(np.mean(means)), float(more.mean())) > math.log1p(threshold)
    p = _p_of_more(more)
    if not (beyond and p <= SHARE * ALPHA / max(cells, 1)):
        return verdict
    mean = change(means)
    return replace(
        verdict,
        verdict=Verdict.WORSE,
        average=mean,
        reason=f"slower on average, by {percent(mean.point)}: its steps are not alike, and the "
        f"fastest of them do not show it (p {p:.1g})",
    )


def _p_of_more(more: Floats) -> float:
    """Return the p-value of the mean being no larger than 0: Student's t-test, one-sided."""
    error = float(more.std(ddof=1)) / math.sqrt(len(more))
    if error == 0:
        return 1.0
    return t_below(-float(more.mean()) / error, len(more) - 1)
