"""The facts about software and machine that decide whether two runs may be compared."""

import os
import platform
import time
from collections.abc import Iterable
from importlib import metadata

import psutil
import torch

from .. import devices
from ..errors import DeviceUnavailable
from ..experiment.plan import PROTOCOL
from ..git import GitError, git
from ..records.measurements import Environment, Fact


def capture(device_names: Iterable[str]) -> Environment:
    """Return the facts of this process and of the named devices.

    Call it in a process that ends soon: asking a GPU for its name makes a context on it.
    """
    facts: dict[str, Fact] = {
        "protocol": PROTOCOL,
        "gradbench": _version("torch-gradbench"),
        **_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_git": torch.version.git_version,
        "torch_debug": torch.version.debug,
        "blas": _blas(),
        "numpy": _version("numpy"),
        "pytest_benchmark": _version("pytest-benchmark"),
        "os": platform.platform(),
        "host": platform.node(),
        "cores": len(os.sched_getaffinity(0)),
        "cores_physical": psutil.cpu_count(logical=False) or "unknown: psutil reports none",
        "memory_bytes": psutil.virtual_memory().total,
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
    return {"others_busy_cores": round(busy, 2), "steal": round(share, 4), "nice": os.nice(0)}


def busy_cores(seconds: float) -> float:
    """Return how many cores others kept busy, watched for that long."""
    count = psutil.cpu_count() or 1
    return psutil.cpu_percent(interval=seconds) / 100 * count


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


def _commit() -> dict[str, Fact]:
    try:
        commit = git("rev-parse", "HEAD")
        return {"git_commit": commit, "git_dirty": bool(git("status", "--porcelain", "-uno"))}
    except GitError:
        why = "unknown: no git commit in the working directory"
        return {"git_commit": why, "git_dirty": why}
