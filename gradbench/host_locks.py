"""Locks that all processes of a host see: at most one block at a time on a core or a device.

A scheduler's resources are numbers that it subtracts; two clusters, or a node that was started
twice, know nothing of each other. A lock lies in a file of the host and ends with its process,
in whatever way that ends.
"""

import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from . import supervisor
from .errors import GradbenchError
from .store import file_lock

VARIABLE: Final = "GRADBENCH_LOCKS"
"""Names another folder for the locks: containers that share a host, and no /tmp, need one."""
DEFAULT: Final = "/tmp/gradbench-locks"  # noqa: S108 # TMPDIR may differ between processes of a host
WAITING: Final = "waiting for another run"
"""What whoever measures says it is doing meanwhile."""
TURN: Final = "-turn"
"""Behind the name of a lock: the lock of whoever has it next."""
LOOK_S: Final = 0.05
"""Between two tries to get a lock."""


class Held(Exception):
    """Others hold a lock for too long; the message names it."""


@contextmanager
def holding(
    names: Collection[str],
    *,
    wait_s: float = float("inf"),
    waiting: Callable[[], object] = lambda: None,
    given_up: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Hold the locks of these names alone; raise `Held` where that takes longer than ``wait_s``.

    Raise `GradbenchError` at once where a process holds one that this one was started by, as where
    a model that is measured measures: it would wait for its own end.

    They are taken in one order, so that no two processes wait for each other. Each has a turn, a
    lock of its own that whoever is next holds while it waits: who gives a lock back and wants it
    again comes behind them, however short the moment in which nobody holds it. ``waiting`` is
    called when others hold one, and ``given_up`` is asked from then on whether to go on waiting.
    """
    deadline = time.monotonic() + wait_s

    def wait_for(file: IO[bytes], name: str) -> None:
        while not _taken(file):
            if given_up():
                raise Held(f"{name} is held by another run, and nobody waits for it any more")
            if time.monotonic() > deadline:
                raise Held(f"{name} was held by another run for {wait_s:g} s")
            time.sleep(LOOK_S)

    with ExitStack() as stack:
        for name in sorted(names):
            file = stack.enter_context(_opened(name))
            with _opened(f"{name}{TURN}") as turn:
                has_turn = _taken(turn)
                if has_turn and _taken(file):  # once: some systems refuse what one holds already
                    continue
                _refuse_own(file, name)
                waiting()
                if not has_turn:
                    wait_for(turn, name)
                wait_for(file, name)
        yield


def _taken(file: IO[bytes]) -> bool:
    try:
        file_lock.hold(file, wait=False)
    except (BlockingIOError, PermissionError):  # another has it: Windows raises the second
        return False
    except OSError as error:  # as on NFS, where what was opened to be read takes none: in vain
        raise _unusable(error) from error
    return True


def _refuse_own(file: IO[bytes], name: str) -> None:
    for holder in supervisor.holders_of_lock(file.fileno()):
        if os.getpid() in supervisor.descendants(holder):
            raise GradbenchError(
                f"{name} is held by the run that started this one (process {holder}), which waits "
                "for it: measure after that run, not in what it measures"
            )


def _opened(name: str) -> IO[bytes]:
    """Return the open file of a lock, which any user of the host may have made."""
    folder = _folder()
    path = folder / f"{name}.lock"
    # what a lock needs, in any user's file, which may be a link or a pipe that nobody writes to
    plain = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            folder.chmod(0o777 | stat.S_ISVTX)
        with suppress(FileNotFoundError):
            return os.fdopen(os.open(path, plain), "rb")
        return os.fdopen(os.open(path, plain | os.O_CREAT, 0o666), "rb")
    except OSError as error:
        raise _unusable(error) from error


def _folder() -> Path:
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def _unusable(error: OSError) -> GradbenchError:
    return GradbenchError(
        f"no lock can be had in {str(_folder())!r} ({error.strerror}), so another run could "
        f"measure on the same cores or devices: set {VARIABLE} to a folder on this host's own disk"
    )
