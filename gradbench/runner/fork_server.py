"""A loaded parent process that runs each job in a fresh fork of itself.

Settings of malloc must stand in the environment before a process starts, torch takes more than
a second to import, and a measurement must not inherit another's heap. So one process per kind
is started with its settings, imports torch, runs nothing, and forks for every job.
"""

import gc
import importlib
import os
import pickle
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final, Literal, TypeVar, cast

import torch

from .. import own_python, supervisor
from ..memory.fake_model import UnaskingFakeMode
from ..process_tree import ProcessTree
from . import host_system
from .job_process import (
    JobError as JobError,
    JobProcess,
    Message,
    WorkerDied as WorkerDied,
    content,
)

T = TypeVar("T")
LOAD_S: Final = 300.0
"""How long a parent may load; torch alone takes half a minute on a machine with other work."""
OVERDUE_S: Final = 12.0
"""How long after a job's limit its end may be reported: then the parent itself is ended."""
PRELOAD: Final = "preload"
"""In place of a job: modules to import."""
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


class ForkServer:
    """One loaded parent of a kind, started at once and used for any number of jobs."""

    def __init__(self, kind: MallocProfile) -> None:
        parent_end, child_end = socket.socketpair()
        environment = {**os.environ, **settings(kind)}
        self._tree = ProcessTree(
            own_python.calling(__name__, f"main({child_end.fileno()}, {kind!r})"),
            env=environment | {own_python.VARIABLE: own_python.loading_path()},
            pass_fds=[child_end.fileno()],
        )
        child_end.close()
        self._control = Connection(parent_end.detach())
        self._loaded = False

    def run(
        self, function: Callable[..., Iterator[T]], *arguments: object, limit_s: float
    ) -> Iterator[T]:
        """Yield what the generator yields in its own process; raise `WorkerDied` or `JobError`."""
        job = pickle.dumps((function, arguments))
        over = False
        try:
            self._await_loaded()
            self._control.send((job, limit_s))
            deadline = time.monotonic() + limit_s + OVERDUE_S
            while not over:
                message = self._next(deadline, limit_s=limit_s)
                over = message[0] != "item"
                item = content(message)
                if not over:
                    yield cast("T", item)
        except (EOFError, OSError) as error:
            raise WorkerDied("crashed", "the parent of the measuring processes is gone") from error
        finally:
            if not over:  # nobody listens any more: what it still sends must not meet the next job
                self.close()

    def preload(self, modules: Sequence[str]) -> None:
        """Import modules in the parent, so that no job waits for them; raise `WorkerDied`.

        Not beside a torch with CUDA: a module may ask for a GPU, and then no fork can use it.
        """
        try:
            self._await_loaded()
            self._control.send((PRELOAD, tuple(modules)))
            self._next(time.monotonic() + LOAD_S, limit_s=LOAD_S)
        except (EOFError, OSError) as error:
            raise WorkerDied("crashed", "the parent of the measuring processes is gone") from error

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return self._tree.poll() is None

    def end(self) -> None:
        """End it and whatever job it runs; a thread that listens to it hears so."""
        self._tree.end()

    def close(self) -> None:
        """End it, and let go of it: no thread may listen to it any more."""
        self._control.close()
        self.end()

    def _await_loaded(self) -> None:
        """Wait for the message by which it says that it takes jobs: no job's time pays for that."""
        if not self._loaded:
            self._next(time.monotonic() + LOAD_S, limit_s=LOAD_S)
            self._loaded = True

    def _next(self, deadline: float, *, limit_s: float) -> Message:
        """Return its next message; a job may have stopped it, too, so that none ever comes."""
        if not self._control.poll(max(0.0, deadline - time.monotonic())):
            raise WorkerDied("timed_out", f"killed at its time limit of {limit_s:g} s")
        message: Message = self._control.recv()
        return message


def serve(control: Connection) -> None:
    """Say that jobs can come, and take them until the other side closes."""
    supervisor.adopt_orphans()
    with tempfile.TemporaryFile() as log:  # before any model could remove the folder it is in
        control.send(("done", b""))
        _take_jobs(control, log.fileno())


def _take_jobs(control: Connection, log: int) -> None:
    while True:
        try:
            job, limit_s = control.recv()
        except EOFError:
            return
        if job == PRELOAD:
            if not hasattr(torch._C, "_cuda_isInBadFork"):  # a build without CUDA
                for name in limit_s:
                    with suppress(Exception):  # the job that needs it says what is wrong
                        importlib.import_module(name)
            control.send(("done", b""))
            continue
        gc.collect()
        gc.freeze()  # the child's collector must not touch, and so copy, the parent's pages
        os.ftruncate(log, 0)
        os.lseek(log, 0, os.SEEK_SET)
        if not _relay(control, job, limit_s, log):
            return


def _relay(control: Connection, job: bytes, limit_s: float, log: int) -> bool:
    """Fork for one job and pass on what it sends; return whether another may come."""
    last: Message | None = None
    try:
        process = JobProcess(job, log=log, closing=[control.fileno()])
    except OSError as error:
        why = f"no process could be forked for it: {error.strerror}"
        control.send(("ended", pickle.dumps(("crashed", why))))
        return True
    try:
        for message in process.messages(limit_s=limit_s, listener=control):
            if message[0] == "item":
                control.send(message)
            else:
                last = message
    finally:
        all_ended = process.end()
    if last is None:  # nobody listens any more
        return False
    control.send(last)  # only now may the next job come
    return all_ended


def main(descriptor: int, kind: MallocProfile) -> None:
    """Load what every job needs, then serve the socket that this process inherited."""
    load(kind)
    with suppress(ConnectionError):  # nobody listens any more
        serve(Connection(descriptor))


def load(kind: MallocProfile) -> None:
    """Load what takes longer than many a block; compute nothing, and ask for no GPU.

    Importing this package has loaded torch. The first optimizer of a process imports 800 modules
    more, and the first fake tensor a second's worth. A process that asked whether there is a GPU
    could not be forked: CUDA refuses to start in its children.
    """
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if kind == "memory":
        with UnaskingFakeMode():
            torch.add(torch.zeros(1), 1)
