"""The passes over a block: in which processes, with which malloc, and what is done there."""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..workloads.models import Model
from .attempts import Message, survived
from .evaluation_pass import evaluation_block
from .fork_server import AS_TIMED, FOR_MEMORY, MallocProfile
from .instructions_pass import count_block
from .memory_pass import memory_block
from .prediction_pass import predict_block
from .process_pass import process_cells
from .processes import Processes
from .rank_processes import in_ranks
from .time_pass import time_block


@dataclass(frozen=True, slots=True)
class Task:
    """What a pass is to do: cells of one block, with their model, and the meters to read."""

    cells: Sequence[Cell]
    model: bytes  # pickled
    plan: Plan
    meters: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One way of running a block's cells; `Meter.read_in` names the pass that reads a meter.

    The job takes cells, model, plan and the names of meters, and yields what `Bench` expects.
    """

    name: str
    job: Callable[..., Iterator[Message]]
    malloc: Mapping[str, MallocProfile]  # by the value of the axis ``malloc``
    one_process_per_cell: bool = False  # or one for the block
    needs_idle_cores: bool = False  # is a block of several threads refused on a busy machine?
    forked: bool = True  # or does the job start its process itself, and take the model pickled?
    in_ranks: bool = True  # of a distributed workload, is it the job of each rank?

    def start(
        self, task: Task, server_of: Callable[[MallocProfile], Processes]
    ) -> Iterator[object]:
        """Yield what the job yields, in a process of its own."""
        if not self.forked:
            return self.job(task.cells, task.model, task.plan, task.meters)
        server = server_of(self.malloc[task.cells[0].malloc])
        if task.cells[0].in_ranks and self.in_ranks:
            what = (self.job, task.cells, task.model, task.plan, task.meters)
            return server.run(in_ranks, *what, limit_s=task.plan.limit_s)
        return server.run(_unpickled, self.job, task, limit_s=task.plan.limit_s)


def _unpickled(job: Callable[..., Iterator[Message]], task: Task) -> Iterator[object]:
    messages = job(task.cells, pickle.loads(task.model), task.plan, task.meters)
    yield from survived(messages, task.cells, task.meters)


Job = Callable[[Cell, Model, Plan], Iterator[object]]
"""What is asked of a cell's model beside its meters."""


def asked(job: Job, cell: Cell, model: bytes, plan: Plan) -> Iterator[object]:
    """Yield what a job says of a model that was pickled."""
    yield from job(cell, pickle.loads(model), plan)


PASSES: Final[Mapping[str, Pass]] = {
    one.name: one
    for one in (
        Pass(name="time", job=time_block, malloc=AS_TIMED, needs_idle_cores=True),
        Pass(name="memory", job=memory_block, malloc=FOR_MEMORY, one_process_per_cell=True),
        Pass(name="prediction", job=predict_block, malloc=FOR_MEMORY, in_ranks=False),
        Pass(name="evaluation", job=evaluation_block, malloc=FOR_MEMORY, one_process_per_cell=True),
        Pass(name="process", job=process_cells, malloc=FOR_MEMORY, one_process_per_cell=True),
        # valgrind wants a process from its first instruction on
        Pass(name="instructions", job=count_block, malloc=AS_TIMED, forked=False),
    )
}
