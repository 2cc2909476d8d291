"""A loaded parent process that runs each job in a fresh fork of itself.

Settings of malloc must stand in the environment before a process starts, torch takes more than
a second to import, and a measurement must not inherit another's heap. So one process per kind
is started with its settings, imports torch, runs nothing, and forks for every job.
"""

import contextlib
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Final, Literal, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..process_end import how_it_ended, tail
from . import host_system

T = TypeVar("T")
SIGKILL: Final = 9  # which Python's `signal` does not know on Windows
MallocProfile = Literal["time", "system", "memory"]

# glibc: in the time kind large tensors come from the heap and stay there, or history decides
# whether a step pays for page faults, as it does in the system kind; in the memory kind freed
# tensors go back to the kernel, so that resident memory follows what is live (mallopt(3)).
_MALLOC: Final[Mapping[MallocProfile, Mapping[str, str]]] = {
    "time": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)},
    "system": {},
    "memory": {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)},
}
# The profile of a pass's processes, by the value that its cells have on the axis ``malloc``.
AS_TIMED: Final[Mapping[str, MallocProfile]] = {"pinned": "time", "system": "system"}
FOR_MEMORY: Final[Mapping[str, MallocProfile]] = {"pinned": "memory", "system": "memory"}
# No thread pools before the fork, and no second source of variation after it.
_COMMON: Final[Mapping[str, str]] = {
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",
}


def settings(kind: MallocProfile) -> dict[str, str]:
    """Return the environment variables that a measuring process of the kind starts with."""
    return {**_COMMON, **(_MALLOC[kind] if host_system.here().pins_malloc else {})}


def import_path() -> str:
    """Return the variable by which a new process imports what this one does."""
    return os.pathsep.join(path or "." for path in sys.path)


class WorkerDied(Exception):
    """A job's process ended without finishing, or must end; the message says how."""

    def __init__(self, cause: Literal["crashed", "timed_out", "out_of_memory"], why: str) -> None:
        self.cause: Literal["crashed", "timed_out", "out_of_memory"] = cause
        super().__init__(why)


class JobError(Exception):
    """A job raised, which it should not: the message is the traceback from the other process."""


class ForkServer:
    """One loaded parent of a kind, started at once and used for any number of jobs."""

    def __init__(self, kind: MallocProfile) -> None:
        parent_end, child_end = socket.socketpair()
        environment = {**os.environ, **settings(kind)}
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                f"import {__name__} as n; n.main({child_end.fileno()}, {kind!r})",
            ],
            env=environment | {"PYTHONPATH": import_path()},
            pass_fds=[child_end.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent; closing the socket ends this one
        )
        child_end.close()
        self._control = Connection(parent_end.detach())

    def run(
        self, function: Callable[..., Iterator[T]], *arguments: object, limit_s: float
    ) -> Iterator[T]:
        """Yield what the generator yields in its own process; raise `WorkerDied` or `JobError`."""
        job = pickle.dumps((function, arguments))
        over = False
        try:
            self._control.send((job, limit_s))
            while not over:
                kind, content = self._control.recv()
                over = kind != "item"
                if kind == "item":
                    yield pickle.loads(content)
                elif kind == "raised":
                    raise JobError(content)
                elif kind == "ended":
                    raise WorkerDied(*content)
        except (EOFError, OSError) as error:
            raise WorkerDied("crashed", "the parent of the measuring processes is gone") from error
        finally:
            if not over:  # nobody listens any more: what it still sends must not meet the next job
                self.close()

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it and whatever job it runs."""
        self._control.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(control: Connection) -> None:
    """Take jobs until the other side closes."""
    while True:
        try:
            job, limit_s = control.recv()
        except (EOFError, ConnectionError):
            return
        gc.collect()
        gc.freeze()  # the child's collector must not touch, and so copy, the parent's pages
        if not _relay(control, job, limit_s):
            return


def _relay(control: Connection, job: bytes, limit_s: float) -> bool:
    """Fork for one job and pass on what it sends; return whether the other side still listens."""
    context = get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    with tempfile.TemporaryFile() as log, contextlib.closing(reader):
        child = context.Process(target=_work, args=(job, writer, log.fileno()))
        child.start()
        writer.close()
        deadline = time.monotonic() + limit_s
        last: tuple[str, object] | None = None
        try:
            while last is None:
                ready = wait([reader, control], timeout=max(0.0, deadline - time.monotonic()))
                if control in ready:
                    return False  # closed: nothing else is sent while a job runs
                if not ready:
                    last = ("ended", ("timed_out", f"killed at its time limit of {limit_s:g} s"))
                    break
                try:
                    message = reader.recv()
                except (EOFError, OSError):
                    child.join()
                    assert child.exitcode is not None  # it was joined
                    death = cause_of_death(child.exitcode, tail(log.fileno()))
                    last = ("ended", death)
                else:
                    if message[0] == "item":
                        control.send(message)
                    else:
                        last = message
            _kill(child)
            child.join()
            control.send(last)  # only now may the next job come
            return True
        except ConnectionError:
            return False
        finally:
            _kill(child)
            child.join()


def _work(job: bytes, writer: Connection, log: int) -> None:
    os.setsid()  # a group of its own, so that whatever it starts can be killed with it
    os.dup2(log, 1)
    os.dup2(log, 2)
    for message in answers(job):
        writer.send(message)


def answers(job: bytes) -> Iterator[tuple[str, object]]:
    """Do a job in this process; yield its items as messages, and how it ended as the last one."""
    try:
        function, arguments = pickle.loads(job)
        for item in function(*arguments):
            yield "item", pickle.dumps(item)
    except WorkerDied as death:  # it has nothing left to work with
        yield "ended", (death.cause, str(death))
    except GeneratorExit:  # nobody listens any more
        raise
    except BaseException:  # noqa: BLE001 # whatever it is, the other process must see it
        yield "raised", traceback.format_exc()
    else:
        yield "done", b""


def _kill(child: BaseProcess) -> None:
    if child.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()


def cause_of_death(
    code: int, output: str
) -> tuple[Literal["crashed", "timed_out", "out_of_memory"], str]:
    """Return how a process ended that sent no last message, as a cause and in words."""
    if code == -SIGKILL:
        return "out_of_memory", "killed by SIGKILL, as the kernel does when memory runs out"
    return "crashed", how_it_ended(code, output)


def main(descriptor: int, kind: MallocProfile) -> None:
    """Load what every job needs, then serve the socket that this process inherited."""
    load(kind)
    serve(Connection(descriptor))


def load(kind: MallocProfile) -> None:
    """Load what takes longer than many a block; compute nothing, and ask for no GPU.

    Importing this package has loaded torch. The first optimizer of a process imports 800 modules
    more, and the first fake tensor a second's worth. A process that asked whether there is a GPU
    could not be forked: CUDA refuses to start in its children.
    """
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if kind == "memory":
        with _UnaskingFakeTensorMode():
            torch.add(torch.zeros(1), 1)


class _UnaskingFakeTensorMode(FakeTensorMode):  # type: ignore[no-untyped-call] # torch's own
    """Fake tensors of the CPU alone: their mode asks for a GPU when it is entered, to avoid one."""

    avoid_device_init = property(lambda _: False)
