"""The largest batch that fits: peaks are straight lines in the batch size, so two sizes say it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ..analysis.run_view import View
from ..experiment.matrix import GRAD_MODES
from ..memory.batch_fit import followed_to
from ..records.predictions import LARGEST_BATCH, batch_in_words
from ..stats import linear_scaling
from .figures.scaling import PEAK, families, out_of_memory

BUDGETS: Final = tuple(gib * 2**30 for gib in (4, 16, 80))


@dataclass(frozen=True, slots=True)
class Capacity:
    """One mode of one family: what a batch takes, and how large it may be.

    ``max_error`` is the largest relative distance of a measured peak from the line; ``fits`` has
    the largest batch for a budget in bytes, in words: on this line alone, where a fit checks it.
    """

    family: str
    mode: str
    fixed_bytes: float
    sample_bytes: float
    measured: int  # largest batch that ran
    lost: int  # smallest batch that ran out of memory, 0 for none
    max_error: float
    fits: Mapping[int, str]


def capacities(view: View) -> Iterator[Capacity]:
    """Yield each mode of each family with peaks at two batch sizes or more.

    By the line through the peaks of the two largest (`linear_scaling.largest_two`).
    """
    for family, variable, members in families(view):
        if variable != "batch_size":
            continue
        for mode in GRAD_MODES:
            cells = sorted((c for c in members if c.grad_mode == mode), key=lambda c: c.batch_size)
            by_batch = {c.batch_size: e.point for c in cells if (e := view.estimate(c, PEAK))}
            peaks = {batch: round(peak) for batch, peak in by_batch.items() if peak >= 1}
            if len(peaks) < 2:
                continue
            line = linear_scaling.largest_two(cells[0], "batch_size", peaks)
            lost = [c.batch_size for c in cells if out_of_memory(view, c)]
            yield Capacity(
                family=family,
                mode=mode,
                fixed_bytes=max(0.0, line.intercept),
                sample_bytes=max(0.0, line.slope),
                measured=max(peaks),
                lost=min(lost, default=0),
                max_error=line.distance(peaks),
                fits={budget: _in_words(followed_to(line.peak, budget)) for budget in BUDGETS},
            )


def _in_words(batch: int) -> str:
    return batch_in_words(batch, ended=batch == LARGEST_BATCH)
