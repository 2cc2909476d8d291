"""Locks on what only one process of this host may measure on at a time: a GPU, a set of cores.

A lock is a file in the folder that the system has for this user's running programs. The kernel
lets go of it when its holder ends, in whatever way. It holds between the processes of one user.
"""

import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .errors import StoreError
from .store import file_lock

FOLDER: Final = "gradbench"
_RUN_USER: Final = Path("/run/user")


@contextmanager
def alone(name: str, *, waiting: Callable[[str], object] = str) -> Iterator[None]:
    """Hold the lock of this name; where another process has it, say so to ``waiting``, and wait.

    Raise `StoreError` where no lock can be made.
    """
    path = folder() / (re.sub(r"[^A-Za-z0-9.-]+", "_", name) + ".lock")
    try:
        file = path.open("a+", encoding="ascii")
    except OSError as error:
        raise StoreError(f"cannot lock {name}: {str(path)!r}: {error.strerror}") from error
    with file:
        try:
            file_lock.hold(file, wait=False)
        except OSError:
            file.seek(0)
            waiting(f"waiting for process {file.read() or 'unknown'}, which measures on {name}")
            file_lock.hold(file)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def folder() -> Path:
    """Return the folder of locks, made where it is missing: this user's, and nobody else's.

    Every process must find the same one: a login's variables may be missing in a job of a cluster.
    """
    own = f"{FOLDER}-{os.getuid()}" if hasattr(os, "getuid") else FOLDER
    path = Path(tempfile.gettempdir()) / own
    for base in (os.environ.get("XDG_RUNTIME_DIR"), _run_user()):
        if base and os.access(base, os.W_OK):
            path = Path(base) / FOLDER
            break
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        there = path.lstat()
    except OSError as error:
        raise StoreError(f"cannot make {str(path)!r} for locks: {error.strerror}") from error
    mine = not hasattr(os, "getuid") or there.st_uid == os.getuid()
    if not (stat.S_ISDIR(there.st_mode) and mine):
        raise StoreError(
            f"{str(path)!r} is to hold locks, but is no folder of this user: remove it"
        )
    return path


def _run_user() -> str | None:
    return str(_RUN_USER / str(os.getuid())) if hasattr(os, "getuid") else None
