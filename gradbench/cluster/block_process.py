"""The process on a machine of a cluster that measures blocks, with an environment of its own.

A scheduler's worker is no place to measure: it may run at a lower priority, has variables that
nobody asked for, and no cores of its own. So it starts this one, and hands blocks to it.
"""

import os
import pickle
import platform
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

import psutil

from .. import host_locks
from ..errors import GradbenchError
from ..process_tree import ProcessTree
from ..records.measurements import Environment, Fact, Reading
from ..runner.bench import Bench
from ..runner.fork_server import LOAD_S, import_path
from .jobs import BlockJob, BlockResult, Setup

_START: Final = """
import os
os.sched_setaffinity(0, {cores})
if os.getpriority(os.PRIO_PROCESS, 0) > 0:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError:
        pass
import {module} as b
b.main({descriptor})
"""
"""Cores and priority hold for threads that start later: before torch is imported."""

END_S: Final = 60.0
"""How long beyond its own limits a block may take before its process counts as lost."""


class BlockProcess:
    """That process, as whoever started it sees it; `close` it in any case."""

    def __init__(
        self,
        setup: Setup,
        *,
        cores: Sequence[int],
        environment: Mapping[str, str],
    ) -> None:
        own, other = socket.socketpair()
        code = _START.format(cores=list(cores), module=__name__, descriptor=other.fileno())
        self._tree = ProcessTree(
            [sys.executable, "-P", "-c", code],
            env={**environment, "PYTHONPATH": import_path()},
            pass_fds=[other.fileno()],
        )
        other.close()
        self._connection = Connection(own.detach())
        self._send((setup, [f"core-{core}" for core in cores]))

    def start(self) -> None:
        """Return when blocks can come; raise `GradbenchError` where none ever can."""
        answer = self._answer(LOAD_S)
        if isinstance(answer, BlockResult):
            raise GradbenchError(f"{answer.host}: {answer.why}")

    def measure(self, job: BlockJob, *, limit_s: float) -> BlockResult:
        """Return what came of a block; where the process is gone, that it was lost."""
        self._send(job)
        result = self._answer(limit_s)
        assert isinstance(result, BlockResult)
        return result

    def close(self) -> None:
        """End it, with all that it has started."""
        self._connection.close()
        self._tree.end()

    def _send(self, message: object) -> None:
        with suppress(ConnectionError):  # the answer, which does not come, says it
            self._connection.send(message)

    def _answer(self, limit_s: float) -> object:
        try:
            if self._connection.poll(limit_s):
                return self._connection.recv()
            why = f"it gave no answer within {limit_s:g} s"
        except (EOFError, OSError):
            why = f"it ended with status {self._tree.wait(END_S)}"
        self.close()
        return BlockResult(
            host=platform.node(), trouble="lost", why=f"the measuring process: {why}"
        )


def main(descriptor: int) -> None:
    """Measure the blocks that come through the inherited socket until nobody is there."""
    with suppress(EOFError, ConnectionError):
        connection = Connection(descriptor)
        setup, locks = connection.recv()
        serve(connection, setup, locks)


def serve(connection: Connection, setup: Setup, locks: Sequence[str]) -> None:
    """Say that blocks can come, and measure one after the other."""
    models = {name: pickle.loads(model) for name, model in setup.models.items()}
    with Bench(plan=setup.plan, models=models, meters=setup.meters, wait_s=setup.wait_s) as bench:
        connection.send("ready")
        machine = _Machine(setup, bench, locks)
        while True:
            connection.send(machine.measure(connection.recv()))


class _Machine:
    """This machine, with a bench that stays loaded between blocks."""

    def __init__(self, setup: Setup, bench: Bench, locks: Sequence[str]) -> None:
        self._setup, self._bench, self._locks = setup, bench, tuple(locks)
        self._environment: Environment | None = None

    def measure(self, job: BlockJob) -> BlockResult:
        """Measure a block while its cores are held alone; its device is held in each pass."""
        host, niceness = platform.node(), os.getpriority(os.PRIO_PROCESS, 0)
        if niceness > 0:
            return BlockResult(host=host, trouble="lost", why=too_nice(niceness))
        try:
            with host_locks.holding(self._locks, wait_s=self._setup.wait_s):
                return self._measured(job, host)
        except host_locks.Held as held:
            return BlockResult(host=host, trouble="busy", why=str(held))
        except GradbenchError as error:
            return BlockResult(host=host, trouble="lost", why=str(error))

    def _measured(self, job: BlockJob, host: str) -> BlockResult:
        began_at_s, before = time.time(), self._bench.seconds
        if self._environment is None:
            self._environment = self._captured()
        readings: list[Reading] = []
        for some in self._bench.measure(job.cells, done=job.done, passes=job.passes):
            readings += some
        return BlockResult(
            host=host,
            environment=self._environment,
            readings=tuple(readings),
            began_at_s=began_at_s,
            ended_at_s=time.time(),
            held=self._locks,
            seconds={name: s - before.get(name, 0.0) for name, s in self._bench.seconds.items()},
            load_after=round(psutil.getloadavg()[0], 2),
        )

    def _captured(self) -> Environment:
        facts: dict[str, Fact] = {**self._bench.environment(self._setup.devices).facts}
        facts |= {**self._setup.commit, "nice": os.getpriority(os.PRIO_PROCESS, 0)}
        return Environment(facts=facts)


def too_nice(niceness: int) -> str:
    """Return why a process of that niceness is not timed."""
    return (
        f"processes there run at niceness {niceness}, which times would show, and may not be "
        "raised: start the cluster's node with RAY_worker_niceness=0"
    )
