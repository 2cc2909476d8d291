"""What a measurement has alone on its host: the names of the locks on it, and from when to when."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from .. import devices
from ..experiment.matrix import Cell
from ..records.measurements import Fact
from . import host_system


def step_cores(cell: Cell, near: Sequence[int]) -> list[int]:
    """Return the cores that a cell's step is kept to, of those near its device.

    The last ones, for the first serve most interrupts; of ranks all, which they divide.
    """
    if cell.in_ranks:
        return list(near)
    return list(near[-(cell.threads + devices.find(cell.device).spare_cores) :])


def core_locks(cores: Iterable[int]) -> list[str]:
    """Return the names of the locks on cores."""
    return [f"core-{core}" for core in cores]


def lock_names(cells: Iterable[Cell], lock_name_of: Callable[[str], str]) -> list[str]:
    """Return the locks on all that times of the cells need alone, each once.

    An accelerator is its own lock, which ``lock_name_of`` names; a step of the CPU has its cores,
    where this system keeps it to some.
    """
    names: dict[str, None] = {}
    for cell in cells:
        device = devices.find(cell.device)
        if device.exclusive:
            of_ranks = [device.of_rank(rank) for rank in range(cell.world_size)]
            names |= dict.fromkeys(f"device-{lock_name_of(name)}" for name in of_ranks)
        elif host_system.here().pins_cores:
            names |= dict.fromkeys(core_locks(step_cores(cell, host_system.usable_cores())))
    return list(names)


def stay(began_at_s: float, ended_at_s: float) -> dict[str, Fact]:
    """Return as notes from when to when it was had; times are in seconds since 1970."""
    return {"began_at": _time_of_day(began_at_s), "ended_at": _time_of_day(ended_at_s)}


def _time_of_day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
