"""The host's memory: what this process has resident, and what it may still take."""

from pathlib import Path
from typing import Final

import psutil

from . import Memory

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUPS: Final = Path("/proc/self/cgroup")
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


def left_in_cgroups(own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> int | None:
    """Return what the tightest limit of this process's control groups leaves; None without one."""
    try:
        lines = own.read_text("utf-8").splitlines()
    except OSError:
        return None
    left: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            left += _left(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            left += _left(root / "memory", path, *names)
    return min(left, default=None)


def _left(root: Path, path: str, limit: str, used: str, cache: str) -> list[int]:
    """Return what each group from a path up to the root leaves, where it has a limit.

    What it caches of files it gives back when it must. In a container the path is the host's, and
    the root is the container's own group.
    """
    folder = root / path.lstrip("/")
    left: list[int] = []
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            break
        most, now = _number(group / limit), _number(group / used)
        if most is not None and now is not None and most < NO_LIMIT:
            left.append(max(0, most - now + _cached(group / "memory.stat", cache)))
    return left


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
