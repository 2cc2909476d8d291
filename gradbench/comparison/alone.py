"""Keeps other measurements of this host off the cores and devices that a comparison is timed on."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache

from .. import host_locks
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..runner import held_alone
from ..runner.bench import Bench


def alone(
    cells: Sequence[Cell], *, wait_s: float, waiting: Callable[[str], object]
) -> AbstractContextManager[None]:
    """Return what holds, as a run does, all that times of the cells need.

    Entered, it raises `host_locks.Held` where others hold it for longer; ``waiting`` hears of that.
    """
    return host_locks.holding(
        held_alone.lock_names(cells, _lock_name),
        wait_s=wait_s,
        waiting=lambda: waiting(host_locks.WAITING),
    )


@cache
def _lock_name(device_name: str) -> str:
    """Return what every process of this host calls a device: a process that ends asks for it."""
    bench = Bench(plan=Plan())
    with ExitStack() as stack:
        stack.push(bench)
        return bench.site(device_name).lock_name
