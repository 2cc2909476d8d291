"""What this operating system offers a measurement, and what follows for figures where it does not.

The one place where measuring asks which system this is.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from ..errors import GradbenchError

START: Final = "GRADBENCH_START"
"""``spawn`` measures on Linux as where nothing of Linux is had, to try that path."""
THREADS: Final = Path("/proc/self/task")
CORES: Final = Path("/sys/devices/system/cpu")

GUARANTEES: Final[Mapping[str, tuple[str, str]]] = {
    "forks": (
        "forked processes",
        "each pass starts a fresh process, which imports torch again: a run takes longer",
    ),
    "pins_malloc": (
        "pinned malloc",
        "large tensors may be mapped and unmapped by history: times differ more from process to "
        "process",
    ),
    "pins_cores": (
        "pinned cores",
        "the scheduler may move a process between cores: intervals are wider",
    ),
    "resets_peak": (
        "a resident peak of the step alone",
        "the kernel's mark cannot be reset: peak_rss counts imports and the building of the model",
    ),
}
"""A guarantee's name and what follows where it is missing, by the fields of `HostSystem`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSystem:
    """What there is of what measuring wants."""

    forks: bool  # a loaded process can be forked for each pass
    pins_malloc: bool  # malloc takes its settings from the environment, as glibc's does
    pins_cores: bool  # threads can be kept on cores
    resets_peak: bool  # the kernel's high-water mark of resident memory can be reset

    def missing(self) -> dict[str, str]:
        """Return the guarantees that are missing, by name, and what follows."""
        return dict(words for name, words in GUARANTEES.items() if not getattr(self, name))


LINUX: Final = HostSystem(forks=True, pins_malloc=True, pins_cores=True, resets_peak=True)
OTHER: Final = HostSystem(forks=False, pins_malloc=False, pins_cores=False, resets_peak=False)


def here() -> HostSystem:
    """Return what this system offers; raise `GradbenchError` where the variable asks for more."""
    asked = os.environ.get(START, "")
    if asked not in ("", "fork", "spawn"):
        raise GradbenchError(f"{START} is fork or spawn, not {asked!r}")
    linux = sys.platform.startswith("linux")
    if asked == "fork" and not linux:
        raise GradbenchError(f"{START}=fork needs Linux, and this is {sys.platform}")
    return LINUX if linux and asked != "spawn" else OTHER


def usable_cores() -> list[int]:
    """Return the cores that this process may use, in order."""
    if here().pins_cores:
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count() or 1))


def bind(cores: Iterable[int]) -> None:
    """Keep every thread of this process to the cores: those that were started take no notice.

    Where threads cannot be kept, do nothing.
    """
    if not here().pins_cores:
        return
    cores = list(cores)
    for thread in THREADS.iterdir():
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)


def bind_thread(cores: Iterable[int]) -> None:
    """Keep the calling thread, and what it starts, to the cores, where that can be."""
    if here().pins_cores:
        os.sched_setaffinity(0, cores)


def neighbours(cores: Iterable[int]) -> list[int]:
    """Return the cores with those that are threads of one physical core next to one another."""
    return sorted(cores, key=lambda core: (_first_thread(core), core))


def _first_thread(core: int) -> int:
    try:
        threads = (CORES / f"cpu{core}/topology/thread_siblings_list").read_text("ascii")
        return int(re.split("[-,]", threads)[0])
    except (OSError, ValueError):
        return core


def page_faults() -> int | None:
    """Return this process's page faults served without a disk; None where they are not counted."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_resident() -> int | None:
    """Return the most bytes that were resident in this process; None where it is unknown.

    On Linux a child has its parent's mark to begin with: a higher peak of that one hides its own.
    """
    peak = getattr(psutil.Process().memory_info(), "peak_wset", None)  # Windows
    if peak is not None:
        return int(peak)
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # there in bytes, elsewhere in KiB
