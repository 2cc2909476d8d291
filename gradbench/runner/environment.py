"""The facts about software and machine that decide whether two runs may be compared."""

import os
import platform
import time
from collections.abc import Iterable
from importlib import metadata

import psutil
import torch

from .. import devices
from ..devices import host_memory
from ..errors import DeviceUnavailable
from ..experiment.plan import PROTOCOL
from ..git import GitError, git
from ..records.measurements import NOT_GUARANTEED, Environment, Fact
from . import host_system


def capture(device_names: Iterable[str]) -> Environment:
    """Return the facts of this process and of the named devices.

    Call it in a process that ends soon: asking a GPU for its name makes a context on it.
    """
    facts: dict[str, Fact] = {
        "protocol": PROTOCOL,
        "gradbench": _version("torch-gradbench"),
        **commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_git": torch.version.git_version,
        "torch_debug": torch.version.debug,
        "blas": _blas(),
        "numpy": _version("numpy"),
        "pytest_benchmark": _version("pytest-benchmark"),
        "os": platform.platform(),
        "host": platform.node(),
        "cores": len(host_system.usable_cores()),
        **_process_starts(),
        "cores_physical": psutil.cpu_count(logical=False) or "unknown: psutil reports none",
        **_memory(),
        "load_before": round(psutil.getloadavg()[0], 2),
    }
    for name in sorted({"cpu", *device_names}):  # a GPU's times depend on the host too
        device = devices.find(name)
        try:
            device.check()
        except DeviceUnavailable as reason:
            facts[name] = f"unavailable: {reason}"
            continue
        device.prepare()
        described = device.describe()
        if ":" in name:
            facts |= {f"{name} {fact}": value for fact, value in described.items()}
        facts = {**described, **facts}  # of two GPUs the first one's bear no name
    return Environment(facts=facts)


def watch(seconds: float) -> dict[str, Fact]:
    """Return what others do to this machine, watched for that long."""
    before, start = psutil.cpu_times(), time.monotonic()
    busy = busy_cores(seconds)
    elapsed_s = time.monotonic() - start
    steal = getattr(psutil.cpu_times(), "steal", 0.0) - getattr(before, "steal", 0.0)
    share = steal / elapsed_s / (psutil.cpu_count() or 1)
    return {"others_busy_cores": round(busy, 2), "steal": round(share, 4), "nice": _nice()}


def busy_cores(seconds: float) -> float:
    """Return how many cores others kept busy, watched for that long."""
    count = psutil.cpu_count() or 1
    return psutil.cpu_percent(interval=seconds) / 100 * count


def _memory() -> dict[str, Fact]:
    """Return the machine's memory, and the limit of this container where there is a lower one."""
    nbytes, whose = host_memory.whole_bytes()
    limit = {"memory_limit_bytes": nbytes} if whose == host_memory.CONTAINER else {}
    return {"memory_bytes": psutil.virtual_memory().total, **limit}


def _process_starts() -> dict[str, Fact]:
    """Return how measuring processes start, and what this system does not guarantee them."""
    here = host_system.here()
    missing = {NOT_GUARANTEED + name: words for name, words in here.missing().items()}
    return {"process_start": "fork" if here.forks else "spawn", **missing}


def _nice() -> Fact:
    return os.nice(0) if hasattr(os, "nice") else "unknown: this system has none"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return f"unknown: {distribution} is not installed"


def _blas() -> str:
    for word in ("BLAS_INFO", "LAPACK_INFO"):
        _, separator, rest = torch.__config__.show().partition(f"{word}=")
        if separator:
            return rest.partition(",")[0]
    return "unknown: torch does not say"


def commit() -> dict[str, Fact]:
    """Return which commit the working directory holds, and whether it was changed since."""
    try:
        commit = git("rev-parse", "HEAD")
    except GitError:
        why = "unknown: no git commit in the working directory"
        return {"git_commit": why, "git_dirty": why}
    dirty: Fact
    try:
        dirty = bool(git("status", "--porcelain", "-uno"))
    except GitError as error:  # to look through a large tree may take longer than git is given
        dirty = f"unknown: {error}"
    return {"git_commit": commit, "git_dirty": dirty}
