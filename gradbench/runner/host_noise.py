"""What the machine did beside the measurement: other work, the hypervisor, preemption."""

import os
import time
from typing import Self

import psutil

from ..records.measurements import Fact


class HostNoise:
    """Watches the machine and this process between entering and leaving."""

    def __enter__(self) -> Self:
        self._before = _Reading()
        return self

    def __exit__(self, *_: object) -> None:
        self._after = _Reading()

    def notes(self, batches: int) -> dict[str, Fact]:
        """Return what was seen, as notes of a measurement of so many timed batches."""
        before, after = self._before, self._after
        elapsed_s = max(after.clock_s - before.clock_s, 1e-9)
        own_s = after.own_s - before.own_s
        others = max(0.0, after.busy_s - before.busy_s - own_s) / elapsed_s
        steal = (after.steal_s - before.steal_s) / elapsed_s / (os.cpu_count() or 1)
        switches = after.switches - before.switches
        return {
            "load": round(psutil.getloadavg()[0], 2),
            "others_busy_cores": round(others, 2),
            "steal": round(steal, 4),
            "involuntary_switches": switches,
            "switches_per_batch": round(switches / max(batches, 1), 4),
        }


class _Reading:
    def __init__(self) -> None:
        machine = psutil.cpu_times()
        own = psutil.Process()
        times = own.cpu_times()
        self.clock_s = time.monotonic()
        self.own_s = times.user + times.system
        self.switches = own.num_ctx_switches().involuntary
        self.steal_s = getattr(machine, "steal", 0.0)  # Linux has it
        self.busy_s = machine.user + machine.system + getattr(machine, "nice", 0.0)
