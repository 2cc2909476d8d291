"""Runs each job in a fresh process: for systems on which a loaded one cannot be forked.

The job goes to the process by its standard input, answers come back by its standard output, which
is put aside before anything can print there.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, TypeVar

import psutil

from ..process_end import TAIL_BYTES
from .fork_server import (
    JobError,
    MallocProfile,
    WorkerDied,
    answers,
    cause_of_death,
    import_path,
    settings,
)

T = TypeVar("T")


class SpawnServer:
    """Runs jobs like a `ForkServer`, for more time: each imports torch again."""

    def __init__(self, kind: MallocProfile) -> None:
        self._environment = {**os.environ, **settings(kind), "PYTHONPATH": import_path()}
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self, function: Callable[..., Iterator[T]], *arguments: object, limit_s: float
    ) -> Iterator[T]:
        """Yield what the generator yields in its own process; raise `WorkerDied` or `JobError`."""
        job = pickle.dumps((function, arguments))
        with tempfile.TemporaryFile() as log, self._started(log) as process:
            late = threading.Event()
            timer = threading.Timer(limit_s, _end, (process, late))
            timer.start()
            try:
                yield from _received(process, job)
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                _end(process)
                if late.is_set():
                    raise WorkerDied(
                        "timed_out", f"killed at its time limit of {limit_s:g} s"
                    ) from error
                code = process.wait()
                raise WorkerDied(*cause_of_death(code, _tail(log))) from error
            finally:
                timer.cancel()
                _end(process)

    @property
    def alive(self) -> bool:
        """Whether it can take another job: always."""
        return True

    def close(self) -> None:
        """End the job that runs, if one does."""
        if self._process is not None:
            _end(self._process)

    def _started(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"import {__name__} as s; s.main()"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the parent, which ends this one
        )
        return self._process


def _received(process: subprocess.Popen[bytes], job: bytes) -> Iterator[T]:
    """Send the job; yield its items. Raise `JobError` and `WorkerDied` as the process says."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(job)
    process.stdin.close()
    while True:
        kind, content = pickle.load(process.stdout)
        if kind == "item":
            yield pickle.loads(content)
        elif kind == "raised":
            raise JobError(content)
        elif kind == "ended":
            raise WorkerDied(*content)
        else:
            return


def _tail(log: IO[bytes]) -> str:
    """Return the end of what an ended process has written."""
    log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
    return log.read().decode(errors="replace")


def _end(process: subprocess.Popen[bytes], late: threading.Event | None = None) -> None:
    """Kill the process, and whatever it started, if it still runs."""
    if process.poll() is not None:
        return
    if late is not None:
        late.set()
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def main() -> None:
    """Do the job that comes by standard input; what it prints goes where errors go."""
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)
        for message in answers(sys.stdin.buffer.read()):
            pickle.dump(message, channel)
            channel.flush()
