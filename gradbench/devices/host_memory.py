"""The host's memory: what this process has resident, and what it may still take."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from . import Memory

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUPS: Final = Path("/proc/self/cgroup")
MACHINE: Final = "this machine's memory"
CONTAINER: Final = "the memory limit of this container"
NO_LIMIT: Final = 2**60
"""From here on a limit is none: the first version of control groups writes a number for it."""


def host_memory() -> Memory:
    """Return the host's memory as this process sees it."""
    return Memory("the host's memory", resident_bytes, free_bytes)


def resident_bytes() -> int:
    """Return what this process has resident."""
    return int(psutil.Process().memory_info().rss)


def free_bytes() -> int:
    """Return what this process may take: of what the system estimates to be free, and its limit."""
    free = int(psutil.virtual_memory().available)
    left = left_in_cgroups()
    return free if left is None else min(free, left)


def whole_bytes() -> tuple[int, str]:
    """Return what processes here may take in all, and whose that is: the smaller of two."""
    machine, limit = int(psutil.virtual_memory().total), limit_in_cgroups()
    return (limit, CONTAINER) if limit is not None and limit < machine else (machine, MACHINE)


def left_in_cgroups(own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> int | None:
    """Return what the tightest limit of this process's control groups leaves; None without one."""
    return min((group.left_bytes for group in _groups(own, root)), default=None)


def limit_in_cgroups(own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> int | None:
    """Return the tightest limit of this process's control groups; None without one."""
    return min((group.limit_bytes for group in _groups(own, root)), default=None)


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group that has a limit, and what that leaves."""

    limit_bytes: int
    left_bytes: int


def _groups(own: Path, root: Path) -> Iterator[_Group]:
    try:
        lines = own.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limited(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limited(root / "memory", path, *names)


def _limited(root: Path, path: str, limit: str, used: str, cache: str) -> Iterator[_Group]:
    """Yield each group from a path up to the root that has a limit.

    What it caches of files it gives back when it must. In a container the path is the host's, and
    the root is the container's own group.
    """
    folder = root / path.lstrip("/")
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            break
        most, now = _number(group / limit), _number(group / used)
        if most is not None and now is not None and most < NO_LIMIT:
            yield _Group(most, max(0, most - now + _cached(group / "memory.stat", cache)))


def _number(file: Path) -> int | None:
    try:
        text = file.read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _cached(file: Path, name: str) -> int:
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
