"""Which cores of a machine go with which of its GPUs, when a block runs on each of them at once."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from .. import devices, own_python
from ..devices import Device
from ..devices.cpu import HIDDEN
from ..runner.attempts import find_site
from ..runner.core_shares import core_shares
from ..runner.host_system import neighbours

LIMIT_S: Final = 120.0
"""How long the machine's driver may take to say where its GPUs are."""

Near = Sequence[Sequence[int] | None]
"""The cores near each GPU of a machine, in the order of their places; None where unknown."""


def cores_of(gpu: str, usable: Sequence[int], near: Near, *, slot: int, slots: int) -> list[int]:
    """Return the cores that serve a GPU, which Ray names, alone: of its NUMA node where known.

    Each GPU's worker asks by itself, and all come to the same answer. Where the machine does not
    say where its GPUs are, ``slots`` workers divide the cores; where there are fewer cores than
    workers some have one core, whose lock lets them take turns.
    """
    number = int(gpu) if gpu.isdecimal() else -1
    if 0 <= number < len(near):
        slot, slots = number, len(near)
    else:
        near = [None] * slots
        slot = number % slots if number >= 0 else slot
    named = {f"{index}": None if one is None else frozenset(one) for index, one in enumerate(near)}
    shares = core_shares(named, neighbours(usable))
    return list(shares[f"{slot}"].cores) if shares else [usable[slot % len(usable)]]


def near_gpus(environment: Mapping[str, str]) -> Near:
    """Return the cores near each GPU of this machine; nothing where it does not say.

    A process that ends looks: the driver may start to answer, and a worker sees its own GPU alone.
    """
    seen = {name: value for name, value in environment.items() if name not in HIDDEN}
    in_order = {name: value for one in _counted() for name, value in one.bus_order.items()}
    try:
        answer = subprocess.run(
            own_python.calling(__name__, "main()"),
            env={**seen, **in_order, own_python.VARIABLE: own_python.loading_path()},
            capture_output=True,
            text=True,
            check=True,
            timeout=LIMIT_S,
        )
        found: Near = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return found


def _counted() -> Iterator[Device]:
    """Yield the first device of each family that a cluster counts."""
    return (one for one in map(devices.find, devices.DEVICES) if one.cluster_resource)


def main() -> None:
    """Print the cores near each GPU that there is, as JSON."""
    there = [one.name for one in _counted() if one.name in devices.available()]
    names = [name for family in there for name in devices.all_of(family)]
    sites = [next(find_site(name)) for name in names]
    json.dump([None if one.cores is None else sorted(one.cores) for one in sites], sys.stdout)
