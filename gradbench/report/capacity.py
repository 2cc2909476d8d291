"""The largest batch that fits: peaks are straight lines in the batch size, so two sizes say it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..analysis.run_view import View
from ..experiment.matrix import GRAD_MODES
from .figures.scaling import PEAK, families, out_of_memory

BUDGETS: Final = tuple(gib * 2**30 for gib in (4, 16, 80))


@dataclass(frozen=True, slots=True)
class Capacity:
    """One mode of one family: what a batch takes, and how large it may be.

    ``off`` is the largest relative distance of a measured peak from the line; ``fits`` maps a
    budget in bytes to the largest batch, 0 where the parameters alone exceed it and None where
    the batch does not matter.
    """

    family: str
    mode: str
    fixed_bytes: float
    sample_bytes: float
    measured: int  # largest batch that ran
    lost: int  # smallest batch that ran out of memory, 0 for none
    off: float
    fits: Mapping[int, int | None]


def capacities(view: View) -> Iterator[Capacity]:
    """Yield each mode of each family with peaks at two batch sizes or more.

    The line goes through the peaks of the two largest batches.
    """
    for family, variable, members in families(view):
        if variable != "batch_size":
            continue
        for mode in GRAD_MODES:
            cells = sorted((c for c in members if c.grad_mode == mode), key=lambda c: c.batch_size)
            peaks = {c.batch_size: e.point for c in cells if (e := view.estimate(c, PEAK))}
            if len(peaks) < 2:
                continue
            (x0, y0), (x1, y1) = list(peaks.items())[-2:]
            slope = max(0.0, (y1 - y0) / (x1 - x0))
            fixed = y1 - slope * x1
            line = np.array([fixed + slope * size for size in peaks])
            heights = np.array(list(peaks.values()))
            lost = [c.batch_size for c in cells if out_of_memory(view, c)]
            yield Capacity(
                family=family,
                mode=mode,
                fixed_bytes=max(0.0, fixed),
                sample_bytes=slope,
                measured=max(peaks),
                lost=min(lost, default=0),
                off=float(np.max(np.abs(line / np.maximum(heights, 1) - 1))),
                fits={
                    budget: max(0, int((budget - fixed) // slope)) if slope else None
                    for budget in BUDGETS
                },
            )
