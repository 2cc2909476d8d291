"""Measures the blocks of a run on the machines of a Ray cluster, each on one machine as a whole."""

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Self

from .. import devices
from ..errors import Impossible
from ..experiment.matrix import Block, Cell
from ..experiment.plan import Plan
from ..records.measurements import Ended, Environment, Fact, Measurement, Reading, Skipped
from ..runner import held_alone
from ..runner.block_runner import Listener, Progress
from ..runner.environment import commit
from ..runner.host_system import START
from ..runner.meters import METERS
from ..runner.passes import PASSES
from ..runner.preflight import portable
from ..store.comparability import machine_name
from ..workloads.models import Model
from . import block_process
from .dispatch import Dispatcher, GivenUp
from .jobs import BlockJob, BlockResult, Setup
from .limits import longest_block_s
from .ray_fleet import RayFleet

WAIT_S: Final = 300.0
"""How long a block waits for a machine before that is its reason."""
PREFIXES: Final = (
    *("PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "CUBLAS_", "CUBLASLT_", "NVIDIA_TF32", START),
    *("CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING"),
)
"""How variables begin that are to hold on the machines as they do here: they change figures."""


class OnRay:
    """Measures blocks on all machines at once that have their device, one a machine or GPU.

    ``known`` are the machines of a run that is resumed.
    """

    def __init__(
        self,
        fleet: RayFleet,
        *,
        plan: Plan,
        models: Mapping[str, Model],
        meters: Sequence[str],
        wait_s: float = WAIT_S,
        known: Mapping[str, Environment] | None = None,
    ) -> None:
        self._fleet, self._plan, self._wait_s = fleet, plan, wait_s
        self._models, self._meters = models, tuple(meters)
        self._known = dict(known or {})
        self._seconds: dict[str, float] = {}
        self._load_after = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: places are given back where `measure` ends."""

    def environment(self, device_names: Iterable[str]) -> None:
        """Return None: each machine's comes before what is read there; check the devices' names."""
        for name in device_names:
            if ":" in name:
                raise Impossible(f"on a cluster a block gets any GPU: --device cuda, not {name}")

    def measure(
        self,
        blocks: Mapping[Block, Sequence[Cell]],
        *,
        done: Collection[tuple[Cell, str]] = (),
        passes: Collection[str] = PASSES,
        progress: Listener | None = None,
    ) -> Iterator[Environment | Reading]:
        """Yield all outcomes of the block that comes back next, after its machine's environment."""
        wanted = [name for name in self._meters if METERS[name].read_in in passes]
        jobs = [
            BlockJob(
                cells=tuple(members),
                done=frozenset((c, m) for c in members for m in wanted if (c, m) in done),
                passes=frozenset(passes),
            )
            for members in blocks.values()
            if any((cell, meter) not in done for cell in members for meter in wanted)
        ]
        asked_s: dict[Block, float] = {}

        def say(job: BlockJob, host: str, ended: int) -> None:
            asked_s[job.block] = time.perf_counter()
            if progress is not None:
                before = len(blocks) - len(jobs)
                begun = before + len(asked_s)  # each once, lost or not
                progress(Progress(job.block, f"on {host}", before + ended, len(blocks), begun))

        setup = self._setup({job.device for job in jobs})
        self._fleet.measure_with(
            block_process.serve, setup, longest_s=partial(longest_block_s, setup)
        )
        dispatcher = Dispatcher[BlockJob](
            self._fleet,
            resource_of=lambda job: devices.find(job.device).cluster_resource,
            wait_s=self._wait_s,
            say=say,
        )
        for job, outcome in dispatcher.results(jobs):
            if isinstance(outcome, GivenUp):
                yield from _given_up(job, outcome, wanted)
            else:
                assert isinstance(outcome, BlockResult)
                self._add(outcome, time.perf_counter() - asked_s[job.block])
                yield from self._named(outcome)

    def ended(self) -> Ended:
        """Return where the machines' time went, all of them together."""
        seconds = {name: round(spent, 3) for name, spent in self._seconds.items()}
        return Ended(seconds=seconds, load_after=self._load_after)

    def _setup(self, device_names: Collection[str]) -> Setup:
        return Setup(
            plan=self._plan,
            meters=self._meters,
            models={name: portable(name, model) for name, model in self._models.items()},
            devices=tuple(sorted(device_names)),
            commit=commit(),
            variables=travelling_variables(),
            wait_s=self._wait_s,
        )

    def _add(self, result: BlockResult, seconds: float) -> None:
        """Count what a block took, from when it was handed out to when it was back."""
        harness = max(0.0, seconds - sum(result.seconds.values()))
        for name, spent in {**result.seconds, "harness": harness}.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + spent
        self._load_after = max(self._load_after, result.load_after)

    def _named(self, result: BlockResult) -> Iterator[Environment | Reading]:
        """Yield what was read, with the name of the machine; its environment where it is new."""
        assert result.environment is not None
        facts = result.environment.facts
        names = {reading.cell.device for reading in result.readings}
        machine = machine_name(facts, self._known, names)
        if machine not in self._known:
            self._known[machine] = Environment(facts=facts, machine=machine)
            yield self._known[machine]
        notes: dict[str, Fact] = {
            **held_alone.stay(result.began_at_s, result.ended_at_s),
            "held_alone": ", ".join(result.held),
        }
        for reading in result.readings:
            if isinstance(reading, Measurement):
                yield replace(reading, machine=machine, notes={**reading.notes, **notes})
            else:
                yield replace(reading, machine=machine)


def travelling_variables() -> dict[str, str]:
    """Return this process's variables that are to hold on the machines, but for paths."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PREFIXES) and not name.endswith(("_DIR", "_PATH", "_HOME"))
    }


def _given_up(job: BlockJob, why: GivenUp, meters: Sequence[str]) -> Iterator[Skipped]:
    for cell in job.cells:
        for meter in meters:
            if (cell, meter) not in job.done:
                yield Skipped(cell=cell, meter=meter, cause=why.cause, reason=why.reason)
