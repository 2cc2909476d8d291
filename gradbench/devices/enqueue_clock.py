"""The host's clock around calls that only enqueue: of any device that has a queue."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EnqueueClock:
    """The host's clock around its calls, the device drained before."""

    synchronize: Callable[[], None]
    clock_ns: Callable[[], int] = time.perf_counter_ns

    def read(self, step: Callable[[], object], iterations: int) -> int:
        """Return the nanoseconds that the host took; the device is drained after them too."""
        repeats = itertools.repeat(None, iterations)
        clock_ns = self.clock_ns
        self.synchronize()
        start_ns = clock_ns()
        for _ in repeats:
            step()
        elapsed_ns = clock_ns() - start_ns
        self.synchronize()
        return elapsed_ns
