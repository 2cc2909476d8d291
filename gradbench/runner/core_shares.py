"""Which cores of the host belong to which device while several devices are measured at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

OWN_NODE: Final = "of its own NUMA node"


@dataclass(frozen=True, slots=True)
class CoreShare:
    """Cores that serve one device alone, and in words how they were chosen."""

    cores: tuple[int, ...]
    chosen: str

    def __str__(self) -> str:
        return f"{as_ranges(self.cores)}, {self.chosen}"


def core_shares(
    near: Mapping[str, frozenset[int] | None], usable: Sequence[int]
) -> dict[str, CoreShare]:
    """Return each device's share of the usable cores; {} where there are fewer than devices.

    ``near`` has the cores of each device's own NUMA node, or None where the system does not say.
    ``usable`` has threads of one physical core next to one another. Devices of one node divide its
    cores. Where that leaves a device without a core, or a node is unknown, all devices divide all
    cores evenly.
    """
    if len(usable) < len(near):
        return {}
    by_node: dict[frozenset[int], list[str]] = {}
    for device, cores in near.items():
        by_node.setdefault((cores or frozenset()).intersection(usable), []).append(device)
    every_core = [core for node in by_node for core in node]
    apart = len(every_core) == len(set(every_core))
    enough = all(len(node) >= len(devices) for node, devices in by_node.items())
    if not (apart and enough):
        why = "this system does not say which are near" if None in near.values() else "too few near"
        return _divided(usable, list(near), f"divided evenly: {why}")
    return {
        device: share
        for node, devices in by_node.items()
        for device, share in _divided([c for c in usable if c in node], devices, OWN_NODE).items()
    }


def as_ranges(cores: Sequence[int]) -> str:
    """Return cores as the kernel writes them: ``0-3,8``."""
    ranges: list[list[int]] = []
    for core in sorted(cores):
        if ranges and core == ranges[-1][1] + 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)


def _divided(cores: Sequence[int], devices: Sequence[str], chosen: str) -> dict[str, CoreShare]:
    bounds = [len(cores) * number // len(devices) for number in range(len(devices) + 1)]
    return {
        device: CoreShare(tuple(cores[bounds[number] : bounds[number + 1]]), chosen)
        for number, device in enumerate(devices)
    }
