"""How long a job may take in all, by the limits that its processes have."""

from typing import Final

from ..comparison.byte_readings import READINGS
from ..runner.bench import MAX_DEATHS
from ..runner.fork_server import LOAD_S, OVERDUE_S
from ..runner.meters import METERS
from .jobs import BlockJob, ReplicateJob, ReplicateSetup, Setup

SPARE_S: Final = 60.0


def longest_block_s(setup: Setup, job: BlockJob) -> float:
    """Return the seconds after which a block that says nothing hangs: each process has a limit."""
    passes = {METERS[name].read_in for name in setup.meters}
    processes = len(passes) * len(job.cells) * MAX_DEATHS
    each_s = setup.plan.limit_s + OVERDUE_S
    waits_s = (1 + len(passes)) * setup.wait_s  # for the cores, and in each pass for the device
    return waits_s + LOAD_S + processes * each_s + SPARE_S


def longest_replicate_s(setup: ReplicateSetup, job: ReplicateJob) -> float:
    """Return the seconds after which a replicate that says nothing hangs.

    Each side of a pair may take its limit to build a cell, for each reading of it and each turn.
    """
    answers = 2 * (1 + READINGS + setup.replication.least_turns)
    cells_s = len(job.cells) * answers * setup.replication.limit_s
    return setup.wait_s + (1 + READINGS) * LOAD_S + cells_s + SPARE_S
