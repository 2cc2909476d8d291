"""Keeps a command and all that it starts below one process, which ends them: Linux's ways to do so.

What a command forks stays below its supervisor, whichever sessions it makes and whoever of them
ends first (PR_SET_CHILD_SUBREAPER), and ends with the command. The supervisor itself ends when its
owner does, in whatever way: it waits on a pipe that the owner alone holds open. Should the
supervisor be killed, the kernel kills the command (PR_SET_PDEATHSIG).

Run as a script, this file is the supervisor that `process_tree` starts, so it imports little and
nothing of this package. Every call that only Linux has is here.
"""

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

END_S: Final = 5.0
"""How long what was killed is waited for: what hangs in the kernel ends when that lets it."""
LOOK_S: Final = 0.1
"""Between two looks at a process whose end the kernel does not report (before Linux 5.3)."""
NOT_RUN: Final = 127
"""The exit status where the command could not be run, as shells have it."""

_PROC: Final = Path("/proc")
_SET_PARENT_DEATH_SIGNAL: Final = 1  # linux/prctl.h
_SET_CHILD_SUBREAPER: Final = 36


def adopt_orphans() -> None:
    """Make this process the parent of whatever its descendants leave behind."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, which has that number, ends."""
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)


def end_notice(pid: int) -> int | None:
    """Return a descriptor that can be read once a child has ended; None where there is none."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):  # Linux before 5.3, or a Python built for that
        return None


def reap() -> bool:
    """Reap the children that have ended; return whether others are left."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return False
    return True


def end_descendants(limit_s: float = END_S) -> bool:
    """Kill all that lives below this process, and reap it; return whether nothing is left.

    What it forks meanwhile is below this process too, so that another look finds it.
    """
    deadline, pause_s = time.monotonic() + limit_s, 0.0005
    while reap():
        for pid in descendants(os.getpid()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LOOK_S)
    return True


def descendants(pid: int) -> list[int]:
    """Return the processes below one, children before their own."""
    below: dict[int, list[int]] = {}
    for child, parent in _parents():
        below.setdefault(parent, []).append(child)
    pids = [pid]
    for one in pids:  # which grows meanwhile
        pids += below.get(one, [])
    return pids[1:]


def holders_of_lock(descriptor: int) -> list[int]:
    """Return the processes that hold a lock on an open file by `flock`, as far as Linux tells."""
    try:
        own = f"{_file_system(descriptor)}:{os.fstat(descriptor).st_ino}"
        lines = (_PROC / "locks").read_text("ascii").splitlines()
    except (OSError, ValueError):  # not Linux, or one that says less
        return []
    rows = [line.split() for line in lines]  # 1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF
    held = [row for row in rows if row[1] == "FLOCK"]  # of one who waits it is an arrow
    return [int(row[4]) for row in held if row[5] == own]


def _file_system(descriptor: int) -> str:
    """Return the number of the file system that a file is open on, as the list of locks has it.

    By its mount: `os.fstat` numbers a subvolume of btrfs otherwise. Raise `ValueError` where none
    is said.
    """
    said = (_PROC / "self" / "fdinfo" / str(descriptor)).read_text("ascii").split()
    mount = said[said.index("mnt_id:") + 1]
    for line in (_PROC / "self" / "mountinfo").read_bytes().splitlines():
        number, _, device, *_ = line.split(maxsplit=3)  # 27 1 254:0 / / rw,relatime ...
        if number == mount.encode():
            major, minor = map(int, device.split(b":"))
            return f"{major:02x}:{minor:02x}"
    raise ValueError(f"mount {mount} is not listed")


def _parents() -> Iterator[tuple[int, int]]:
    """Yield every process that can be seen, with its parent."""
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                after_name = (entry / "stat").read_bytes().rpartition(b")")[2]
                yield int(entry.name), int(after_name.split()[1])


def _prctl(option: int, value: int) -> None:
    """Ask the kernel; where it refuses, as a sandbox may, the rest is done without."""
    arguments = (ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)
    ctypes.CDLL(None).prctl(option, *arguments)


def main(lifeline: int, command: Sequence[str]) -> NoReturn:
    """Supervise a command, which takes the place of a process of its own."""
    os.set_inheritable(lifeline, False)
    supervise(lifeline, lambda: _run(command))


def supervise(lifeline: int, work: Callable[[], NoReturn]) -> NoReturn:
    """Have a child work until it ends or the lifeline's other end is closed; end all; end likewise.

    Call it in a process that is there for nothing else.
    """
    adopt_orphans()
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        end_with_parent(supervisor)
        work()
    for number in (signal.SIGINT, signal.SIGHUP):  # of a terminal: the owner hears them too
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    _let_go_of_all_but(lifeline)
    status = _wait(child, lifeline)
    end_descendants()
    _end_with(status)


def _run(command: Sequence[str]) -> NoReturn:
    try:
        os.execvp(command[0], list(command))  # noqa: S606 # from a list, as everywhere
    except OSError as error:
        os.write(2, f"cannot run {command[0]!r}: {error.strerror}\n".encode())
        os._exit(NOT_RUN)


def _let_go_of_all_but(kept: int) -> None:
    """Close what the command has inherited: its other ends are to see when the command ends."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    for number in [int(entry.name) for entry in (_PROC / "self" / "fd").iterdir()]:
        if number > 2 and number != kept:
            with suppress(OSError):  # the listing's own
                os.close(number)


def _wait(child: int, lifeline: int) -> int | None:
    """Return the child's wait status, or None where the owner is gone or wants it ended.

    A child that is stopped, as what it runs may do to it, is let go on at once: it keeps the limits
    of what it runs.
    """
    heard, hearing = os.pipe()
    for descriptor in (heard, hearing):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(hearing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # what is ignored wakes nobody
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])  # the owner may have blocked it
    watched = select.poll()
    for descriptor in (lifeline, heard):
        watched.register(descriptor, select.POLLIN)
    while True:
        changed, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if changed and os.WIFSTOPPED(status):
            os.kill(child, signal.SIGCONT)
        elif changed:
            return status
        elif any(descriptor == lifeline for descriptor, _ in watched.poll()):
            return None
        else:
            with suppress(BlockingIOError):
                os.read(heard, 4096)


def _end_with(status: int | None) -> NoReturn:
    """End as the command did: by its signal, or with its exit status."""
    code = -signal.SIGKILL if status is None else os.waitstatus_to_exitcode(status)
    if code < 0:
        import resource  # which Windows has not, where this module is imported too

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core is enough
        with suppress(OSError):  # SIGKILL has no handler to be put back
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
