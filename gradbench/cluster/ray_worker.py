"""What runs in a worker of Ray: it starts the process that measures, and measures nothing."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Final

from ..devices.cpu import HIDDEN
from ..errors import GradbenchError
from ..runner.host_system import usable_cores
from .gpu_cores import cores_of, near_gpus
from .jobs import Answer, HasVariables, Job
from .measuring_process import MeasuringProcess, Serve

SET_BY_RAY: Final = ("OMP_NUM_THREADS", "MALLOC_ARENA_MAX")
"""Variables, beside those that begin with RAY_, that Ray sets in its workers."""


class MeasuringWorker:
    """An actor that holds a machine, or one of its GPUs with a share of the cores, for jobs."""

    def __init__(self, serve: Serve, setup: HasVariables, *, slot: int, slots: int) -> None:
        import ray

        accelerators: Mapping[str, Sequence[str]] = ray.get_runtime_context().get_accelerator_ids()
        gpus = list(accelerators.get("GPU", ()))
        cores = usable_cores()
        if slots > 1:
            near = near_gpus(os.environ)
            cores = cores_of(gpus[0] if gpus else "", cores, near, slot=slot, slots=slots)
        self._process = MeasuringProcess(
            serve,
            setup,
            cores=cores,
            environment=explicit(os.environ, setup.variables, accelerated=bool(gpus)),
        )

    def ready(self) -> str:
        """Return the host's name when jobs can come, or why none can, after a colon."""
        try:
            self._process.start()
        except GradbenchError as error:
            return f":{error}"
        return platform.node()

    def measure(self, job: Job, limit_s: float) -> Answer:
        """Return what came of a job."""
        return self._process.measure(job, limit_s=limit_s)


def explicit(
    inherited: Mapping[str, str], variables: Mapping[str, str], *, accelerated: bool
) -> dict[str, str]:
    """Return the environment of a measuring process: the machine's, without what Ray has set.

    Which accelerators are visible stays as Ray says, which gives a variable of each maker; without
    one none is.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith("RAY_") and name not in SET_BY_RAY
    }
    return {**kept, **variables, **({} if accelerated else HIDDEN)}
