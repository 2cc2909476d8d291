"""What a machine has installed; sent there by value, so it imports no more than Python has.

That is why it reads the name of the processor itself, as `devices.cpu` does for the facts of a run:
a machine may have another gradbench, or none.
"""

import hashlib
import os
import platform
from importlib import metadata, util
from pathlib import Path

MISSING = "none"
"""The version of what is not installed."""


def versions() -> dict[str, str]:
    """Return what must be the same on all machines of a run, by name."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": _version("torch").partition("+")[0],  # builds differ between kinds of machines
        "gradbench": f"{_version('torch-gradbench')} ({_sources()})",
    }


def node_facts() -> dict[str, str]:
    """Return the versions, where this is, its processes' niceness, and what decides its times."""
    return {
        **versions(),
        "host": platform.node(),
        "nice": str(os.nice(0)),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "torch build": _version("torch"),
        "python release": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return MISSING


def _sources() -> str:
    """Return eight characters that are equal for equal sources: a checkout keeps its version."""
    spec = util.find_spec("gradbench")
    if spec is None or spec.origin is None:
        return MISSING
    folder, digest = Path(spec.origin).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:8]
