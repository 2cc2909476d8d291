"""The process on a machine of a cluster that measures, with an environment of its own.

A scheduler's worker is no place to measure: it may run at a lower priority, has variables that
nobody asked for, and no cores of its own. So it starts this one, and hands jobs to it.
"""

import os
import platform
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from .. import host_locks, own_python
from ..errors import GradbenchError, in_one_line
from ..process_tree import ProcessTree
from ..runner.fork_server import LOAD_S
from ..runner.held_alone import core_locks
from .jobs import Answer, Job

_START: Final = """
import os
os.sched_setaffinity(0, {cores})
if os.getpriority(os.PRIO_PROCESS, 0) > 0:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError:
        pass
"""
"""Cores and priority hold for threads that start later: before torch is imported."""

LOOK_S: Final = 1.0
"""Between two looks at whether the scheduler that started this worker is still there."""
END_S: Final = 60.0
"""How long beyond its own limits a job may take before its process counts as lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a measuring process has of its machine."""

    locks: tuple[str, ...]  # of the host, one for each of its cores
    import_path: str | None  # the machine's own PYTHONPATH


Serve = Callable[[Connection, Any, Place], None]
"""What a measuring process does: it takes a setup, says that jobs can come, and answers each."""


class MeasuringProcess:
    """That process, as whoever started it sees it; `close` it in any case."""

    def __init__(
        self,
        serve: Serve,
        setup: object,
        *,
        cores: Sequence[int],
        environment: Mapping[str, str],
    ) -> None:
        self._parent = os.getppid()
        own, other = socket.socketpair()
        first = _START.format(cores=list(cores))
        self._tree = ProcessTree(
            own_python.calling(__name__, f"main({other.fileno()})", first=first),
            env={**environment, own_python.VARIABLE: own_python.loading_path()},
            pass_fds=[other.fileno()],
        )
        other.close()
        self._connection = Connection(own.detach())
        locks = tuple(core_locks(cores))
        place = Place(locks=locks, import_path=environment.get(own_python.VARIABLE))
        self._send((serve, setup, place))

    def start(self) -> None:
        """Return when jobs can come; raise `GradbenchError` where none ever can."""
        answer = self._answer(LOAD_S)
        if isinstance(answer, Answer):
            raise GradbenchError(answer.why)

    def measure(self, job: Job, *, limit_s: float) -> Answer:
        """Return what came of a job; where the process is gone, that it was lost."""
        self._send(job)
        answer = self._answer(limit_s)
        assert isinstance(answer, Answer)
        return answer

    def close(self) -> None:
        """End it, with all that it has started."""
        self._connection.close()
        self._tree.end()

    def _send(self, message: object) -> None:
        with suppress(ConnectionError):  # the answer, which does not come, says it
            self._connection.send(message)

    def _answer(self, limit_s: float) -> object:
        until_s = time.monotonic() + limit_s
        try:
            while not self._connection.poll(min(LOOK_S, max(0.0, until_s - time.monotonic()))):
                if time.monotonic() >= until_s:
                    why = f"it gave no answer within {limit_s:g} s"
                    break
                if os.getppid() != self._parent:  # nobody would end this process either
                    why = "the cluster's node that it is for is gone"
                    break
            else:
                return self._connection.recv()
        except (EOFError, OSError):
            why = f"it ended with status {self._tree.wait(END_S)}"
        self.close()
        return Answer(host=platform.node(), trouble="lost", why=f"the measuring process: {why}")


def main(descriptor: int) -> None:
    """Do what comes first through the inherited socket, until nobody is there.

    An error of this machine, as of a full disk, is what whoever asked gets for an answer.
    """
    with suppress(EOFError, ConnectionError):
        connection = Connection(descriptor)
        try:
            serve, setup, place = connection.recv()
            serve(connection, setup, place)
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            why = f"the measuring process: {in_one_line(error)}"
            connection.send(Answer(host=platform.node(), trouble="lost", why=why))
            raise


def alone(locks: Collection[str], measured: Callable[[], Answer], *, wait_s: float) -> Answer:
    """Return what is measured while this process holds the locks; or why it may not, or cannot."""
    host, niceness = platform.node(), os.getpriority(os.PRIO_PROCESS, 0)
    if niceness > 0:
        return Answer(host=host, trouble="lost", why=too_nice(niceness))
    try:
        with host_locks.holding(locks, wait_s=wait_s):
            return measured()
    except host_locks.Held as held:
        return Answer(host=host, trouble="busy", why=str(held))
    except GradbenchError as error:
        return Answer(host=host, trouble="lost", why=str(error))


def too_nice(niceness: int) -> str:
    """Return why a process of that niceness is not timed."""
    return (
        f"processes there run at niceness {niceness}, which times would show, and may not be "
        "raised: start the cluster's node with RAY_worker_niceness=0"
    )
