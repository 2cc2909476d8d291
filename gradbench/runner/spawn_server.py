"""Runs each job in a fresh process: for systems on which a loaded one cannot be forked.

The job goes to the process by its standard input, answers come back by its standard output, which
is put aside before anything can print there. Its input stays open, and when that is closed, in
whatever way its owner ends, the process ends too.
"""

import os
import pickle
import queue
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Final, TypeVar, cast

from .. import own_python
from ..process_end import TAIL_BYTES
from ..process_tree import ProcessTree
from .fork_server import MallocProfile, settings
from .job_process import CLOSED_S, Cause, Message, WorkerDied, answers, cause_of_death, content

T = TypeVar("T")
LOOK_S: Final = 0.2
"""Between two looks at whether the process still runs."""
_LENGTH: Final = struct.Struct("!Q")
_Inbox = queue.SimpleQueue[Message | None]


class SpawnServer:
    """Runs jobs like a `ForkServer`, for more time: each imports torch again."""

    def __init__(self, kind: MallocProfile) -> None:
        self._environment = {
            **os.environ,
            **settings(kind),
            own_python.VARIABLE: own_python.loading_path(),
        }
        self._process: ProcessTree | None = None

    def run(
        self, function: Callable[..., Iterator[T]], *arguments: object, limit_s: float
    ) -> Iterator[T]:
        """Yield what the generator yields in its own process; raise `WorkerDied` or `JobError`."""
        job = pickle.dumps((function, arguments))
        with tempfile.TemporaryFile() as log:
            inbox: _Inbox = queue.SimpleQueue()
            with self._started(log) as process:
                threading.Thread(target=_converse, args=(process, job, inbox), daemon=True).start()
                deadline = time.monotonic() + limit_s
                while (message := _next(inbox, process, deadline)) is not None:
                    item = content(message)
                    if message[0] != "item":
                        return
                    yield cast("T", item)
                raise WorkerDied(*_end_of(process, log, deadline, limit_s=limit_s))

    def preload(self, modules: Sequence[str]) -> None:
        """Do nothing: each job imports what it needs."""

    @property
    def alive(self) -> bool:
        """Whether it can take another job: always."""
        return True

    def end(self) -> None:
        """End the job that runs, if one does."""
        if self._process is not None:
            self._process.end()

    def close(self) -> None:
        """Do the same: there is nothing else to let go of."""
        self.end()

    def _started(self, log: IO[bytes]) -> ProcessTree:
        self._process = ProcessTree(
            own_python.calling(__name__, "main()"),
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        return self._process


def _converse(process: ProcessTree, job: bytes, inbox: _Inbox) -> None:
    """Send the job and pass on what comes back; None when no more can come.

    In a thread, for either may wait for ever: whoever listens keeps the time.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(_LENGTH.pack(len(job)) + job)
        process.stdin.flush()
        own = os.dup(process.stdout.fileno())  # to close what another thread reads may wait for it
        with os.fdopen(own, "rb") as stream:
            while True:
                kind, pickled = pickle.load(stream)
                inbox.put((kind, pickled))
    except Exception:  # noqa: BLE001 # a model may write anything over the pipe, or close it
        inbox.put(None)


def _next(inbox: _Inbox, process: ProcessTree, deadline: float) -> Message | None:
    """Return the next message; None where none is to come, or not in time.

    What a process sent before it ended is still on its way, for a moment; what it has started may
    hold its pipe for ever.
    """
    ended = False
    while True:
        if not ended and process.poll() is not None:
            ended, deadline = True, min(deadline, time.monotonic() + CLOSED_S)
        left_s = deadline - time.monotonic()
        try:
            return inbox.get(timeout=max(0.0, min(left_s, LOOK_S)))
        except queue.Empty:
            if left_s <= 0:
                return None


def _end_of(
    process: ProcessTree, log: IO[bytes], deadline: float, *, limit_s: float
) -> tuple[Cause, str]:
    """Return how a process ended, or had to be, that sends no more."""
    left_s = deadline - time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        return cause_of_death(process.wait(max(0.0, min(left_s, CLOSED_S))), _tail(log))
    if left_s > CLOSED_S:
        return (
            "crashed",
            "killed, for it closed or wrote over the pipe that its figures come through",
        )
    return "timed_out", f"killed at its time limit of {limit_s:g} s"


def _tail(log: IO[bytes]) -> str:
    """Return the end of what an ended process has written."""
    log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
    return log.read().decode(errors="replace")


def main() -> None:
    """Do the job that comes by standard input; what it prints goes where errors go."""
    source = sys.stdin.buffer
    job = source.read(*_LENGTH.unpack(source.read(_LENGTH.size)))
    threading.Thread(target=_end_with_owner, daemon=True).start()
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)
        for message in answers(job):
            pickle.dump(message, channel)
            channel.flush()


def _end_with_owner() -> None:
    """End this process when its standard input is closed: nothing more comes through it."""
    with suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)
