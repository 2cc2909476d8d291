"""What the measuring process does on a machine for a comparison: it makes replicates."""

import hashlib
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from .. import devices
from ..comparison.checkouts import MEASURING, PACKAGE, SIDES, Project, Version, link_measuring
from ..comparison.replication import Replicator
from ..errors import GradbenchError
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..runner.bench import Bench
from .jobs import Answer, ReplicateJob, ReplicateResult, ReplicateSetup
from .measuring_process import Place, alone


def serve(connection: Connection, setup: ReplicateSetup, place: Place) -> None:
    """Say that replicates can be asked for, and make one after the other."""
    if place.import_path is None:  # what this process imports from is not the sides' matter
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = place.import_path
    versions = versions_in(Path.cwd(), setup)
    with suppress(FileNotFoundError):  # nothing of the folder that the user stands in was sent
        os.chdir(versions[-1].tree / setup.inside)
    machine = _Machine(setup, place, versions)
    connection.send("ready")
    while True:
        connection.send(machine.measure(connection.recv()))


def versions_in(folder: Path, setup: ReplicateSetup) -> list[Version]:
    """Return both sides, whose trees lie in a folder of this machine."""
    # the folder may be here for more than one installation of gradbench, one after the other
    place = folder / f"{MEASURING}-{hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:8]}"
    link_measuring(place)
    found = []
    for name in SIDES:
        root = folder / setup.trees[name]
        project = Project(root=root, inside=Path(setup.inside), itself=setup.itself, folder=place)
        python = setup.base_python if name == SIDES[0] else None
        found.append(project.version(name, root, python=python))
    return found


class _Machine:
    """This machine, and what it has learned of the cells."""

    def __init__(self, setup: ReplicateSetup, place: Place, versions: Sequence[Version]) -> None:
        self._setup, self._locks, self._versions = setup, place.locks, versions
        self._looked_at: set[Cell] = set()
        self._apart: dict[Cell, str] = {}
        self._device_locks: dict[str, str] = {}

    def measure(self, job: ReplicateJob) -> Answer:
        """Make one replicate of each cell, while the cores and the devices are held alone."""
        locks = [*self._locks, *map(self._lock_of, sorted({cell.device for cell in job.cells}))]
        held = list(filter(None, locks))
        return alone(held, partial(self._made, job), wait_s=self._setup.wait_s)

    def _lock_of(self, device_name: str) -> str:
        """Return the lock of a device that one process at a time may measure on, or ``""``."""
        if not devices.find(device_name).exclusive:
            return ""
        if device_name not in self._device_locks:  # asked for in a process that ends: see there
            with Bench(plan=Plan(), models={}, meters=("step_time",)) as bench:
                self._device_locks[device_name] = f"device-{bench.site(device_name).lock_name}"
        return self._device_locks[device_name]

    def _made(self, job: ReplicateJob) -> ReplicateResult:
        base, candidate = self._versions
        replicator = Replicator(
            base,
            candidate,
            replication=self._setup.replication,
            sources=self._setup.sources,
            seed=self._setup.seed,
            layout_seed=self._setup.seed + (job.number << 32),
        )
        replicator.results.apart.update({**self._apart, **job.apart})
        new = [cell for cell in job.cells if cell not in self._looked_at]
        try:
            if new:
                replicator.examine(new)
                self._looked_at.update(new)
            replicator.replicate(job.cells)
        except GradbenchError as error:  # the user's to mend, on whichever machine
            return ReplicateResult(host=platform.node(), refused=str(error))
        self._apart = dict(replicator.results.apart)
        return ReplicateResult(
            host=platform.node(),
            results=replicator.results,
            sides=replicator.facts,
            looked=bool(new),
        )
