"""How long a block may take in all, by the limits that its processes have."""

from typing import Final

from ..runner.bench import MAX_DEATHS
from ..runner.fork_server import LOAD_S, OVERDUE_S
from ..runner.meters import METERS
from .jobs import BlockJob, Setup

SPARE_S: Final = 60.0


def longest_s(setup: Setup, job: BlockJob) -> float:
    """Return the seconds after which a block that says nothing hangs: each process has a limit."""
    passes = {METERS[name].read_in for name in setup.meters}
    processes = len(passes) * len(job.cells) * MAX_DEATHS
    each_s = setup.plan.limit_s + OVERDUE_S
    waits_s = (1 + len(passes)) * setup.wait_s  # for the cores, and in each pass for the device
    return waits_s + LOAD_S + processes * each_s + SPARE_S
