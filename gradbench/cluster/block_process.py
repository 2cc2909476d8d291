"""What the measuring process does on a machine for a run: it measures blocks."""

import os
import pickle
import platform
import time
from functools import partial
from multiprocessing.connection import Connection

import psutil

from ..records.measurements import Environment, Fact, Reading
from ..runner.bench import Bench
from .jobs import Answer, BlockJob, BlockResult, Setup
from .measuring_process import Place, alone


def serve(connection: Connection, setup: Setup, place: Place) -> None:
    """Say that blocks can come, and measure one after the other."""
    models = {name: pickle.loads(model) for name, model in setup.models.items()}
    with Bench(
        plan=setup.plan,
        models=models,
        meters=setup.meters,
        wait_s=setup.wait_s,
        has_cores=True,
    ) as bench:
        connection.send("ready")
        machine = _Machine(setup, bench, place)
        while True:
            connection.send(machine.measure(connection.recv()))


class _Machine:
    """This machine, with a bench that stays loaded between blocks."""

    def __init__(self, setup: Setup, bench: Bench, place: Place) -> None:
        self._setup, self._bench, self._locks = setup, bench, place.locks
        self._environment: Environment | None = None

    def measure(self, job: BlockJob) -> Answer:
        """Measure a block while its cores are held alone; its device is held in each pass."""
        return alone(self._locks, partial(self._measured, job), wait_s=self._setup.wait_s)

    def _measured(self, job: BlockJob) -> BlockResult:
        began_at_s, before = time.time(), self._bench.seconds
        if self._environment is None:
            self._environment = self._captured()
        readings: list[Reading] = []
        for some in self._bench.measure(job.cells, done=job.done, passes=job.passes):
            readings += some
        return BlockResult(
            host=platform.node(),
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
