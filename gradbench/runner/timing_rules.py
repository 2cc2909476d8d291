"""What all interleaved timing heeds, of modes and versions: batches, precision, the collector.

A comparison's worker loads this by its file, as gradbench itself may be what it compares: it uses
the standard library alone.
"""

import gc
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

SHORT_STEP_NS: Final = 1_000_000
"""Below it the finer precision is asked for, and a batch has three steps at least."""
LONG_STEP_NS: Final = 100_000_000
"""From it on, what a switch leaves in the caches is nothing to a step."""
Z: Final = statistics.NormalDist().inv_cdf(0.975)


def calibrate(step_ns: float, batch_ns: int) -> int:
    """Return the steps in a batch of about ``batch_ns``: three at least, but one of a long step.

    What a switch of modes leaves in the caches may outlast the one untimed step: three timed steps
    dilute it. A step of 1 ms and more needs none of that, and three would near the scheduler's
    slice.
    """
    if batch_ns == 0 or step_ns >= SHORT_STEP_NS:
        return 1
    return max(3, math.ceil(batch_ns / max(step_ns, 1.0)))


def precision(batch_ns: Sequence[Sequence[float]], steps: Sequence[int]) -> float:
    """Return the widest relative half-width of any arm's ratio to the first arm.

    It is half the distance between the order statistics n/2 -+ z*sqrt(n)/2 of the paired log
    ratios (the normal approximation of the binomial interval, David & Nagaraja 2003, section
    7.1); with one arm, of the logs themselves. It only decides when to stop: what is reported
    is computed from the rounds, exactly.
    """
    logs = [
        [math.log(max(value, 1) / count) for value, count in zip(values, steps, strict=True)]
        for values in batch_ns
    ]
    if len(logs) == 1:
        return _half_width(logs[0])
    return max(_half_width([a - b for a, b in zip(arm, logs[0], strict=True)]) for arm in logs[1:])


def _half_width(values: Sequence[float]) -> float:
    ordered, n = sorted(values), len(values)
    low = max(0, math.floor(n / 2 - Z * math.sqrt(n) / 2) - 1)
    return math.expm1((ordered[n - 1 - low] - ordered[low]) / 2)


@contextmanager
def collector_resting() -> Iterator[None]:
    """Collect garbage, then keep the collector from running inside."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
