"""A short study of one model: a small run of one block, and what else its advice needs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .. import runner
from ..analysis.advice import Advice
from ..analysis.commands import again
from ..devices import host_memory
from ..errors import Impossible
from ..experiment.matrix import GRAD_MODES, Cell
from ..experiment.plan import Plan
from ..memory import fake_step
from ..recording import Recording
from ..records.advice import Finding, Study, Trial
from ..records.measurements import Fact
from ..records.run import Run
from ..runner import preflight
from ..runner.block_runner import OneAfterAnother
from ..runner.fork_server import AS_TIMED
from ..store.jsonl import Store
from ..workloads.checkpointing import NOT_CHECKPOINTED
from ..workloads.models import Model
from .findings import look_at
from .largest_batches import LIKELY, Batches, largest_batches
from .trials import counted, timed, trials

METERS: Final = (
    "step_time",
    "output_difference",
    "peak_allocated",
    "peak_transient",
    "saved_for_backward",
    "breakdown",
    "leaked",
)
PLAN: Final = Plan(budget_s=2.0, warmup_s=0.1)
"""Seconds of rounds, not minutes: on a quiet machine ratios are then known to a percent or two."""

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be studied: an inference cell, whatever its mode, and the model it names."""

    cell: Cell
    model: Model
    plan: Plan = PLAN
    memory_bytes: int | None = None  # None: what the device has
    compiles: bool = False  # is torch.compile tried, which takes long?

    @property
    def plain(self) -> Cell:
        """The cell of the mode that is most often the best, which changes are held against."""
        return replace(self.cell, grad_mode=LIKELY)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The block: one model and batch in every mode."""
        return tuple(replace(self.cell, grad_mode=mode) for mode in GRAD_MODES)

    def measured_by(self, meters: Sequence[str]) -> OneAfterAnother:
        """Return who measures the block, with one parent for all of its processes."""
        return OneAfterAnother(
            plan=self.plan,
            models={self.cell.model: self.model},
            meters=meters,
            memory_profile=AS_TIMED["pinned"],
        )


def study(question: Question, store: Store, *, say: Say) -> Study:
    """Measure the block and the trials, look at the model, fit batches.

    What is measured is a run like any other, sealed in the store. Times come first, with nothing
    beside them; what is counted, and not timed, is then done by two processes at once.
    """

    def progress(event: runner.Progress) -> None:
        say(f"{event.block}: {event.doing}")

    here = question.measured_by(METERS)
    with _recording(question, store, here) as recording:
        for _ in recording.measure(passes=("time",), progress=progress):
            pass
        tried = [timed(trial, question.plain, here) for trial in _trials(question, say)]
        memory_bytes, memory_of = _memory(question, recording.environment.facts)
        with largest_batches(
            question.cell, question.model, memory_bytes, plan=question.plan
        ) as fits:
            for _ in recording.measure(progress=progress):
                pass
            tried = [counted(trial, here) for trial in tried]
            say("looking at the model")
            found = here.ask(look_at, question.cell)
            run = recording.finish()
            if not run.measured:
                return Study(run=run, cells=question.cells)
            say("largest batches")
            best = Advice(Study(run=run, cells=question.cells)).best
            found_batches = fits(best)
    return Study(
        run=run,
        cells=question.cells,
        findings=tuple(one for one in found if isinstance(one, Finding)),
        batches=found_batches.purposes,
        memory_bytes=memory_bytes,
        memory_of=memory_of,
        trials=(*tried, *_checkpointing(found_batches)),
        thorough=_thorough(question, run),
    )


def _recording(question: Question, store: Store, measured_by: OneAfterAnother) -> Recording:
    """Return what writes the block down; what predicts batches is imported while that loads."""
    models = {question.cell.model: question.model}
    preflight.check(question.cells, models, METERS)
    header = runner.started(question.cells, plan=question.plan, meters=METERS, models=models)
    return Recording(
        store.create(),
        header,
        models=models,
        measured_by=measured_by,
        meanwhile=fake_step.load,
    )


def _trials(question: Question, say: Say) -> Iterator[Trial]:
    """Yield the changes to try, and say which is next."""
    for trial in trials(question.plain, question.model, compiles=question.compiles):
        say(f"trying {trial.name}")
        yield trial


def _checkpointing(batches: Batches) -> Iterator[Trial]:
    """Yield what computing blocks again brings to training: memory, which is predicted."""
    training, checkpointed = batches.purposes[-1], batches.checkpointed
    if checkpointed.fit is None:
        alike = checkpointed.reason == training.reason
        why_not = "what keeps training from being predicted keeps it, too" if alike else ""
        reason = checkpointed.reason.removesuffix(f": {NOT_CHECKPOINTED}")  # it is not, here
        yield Trial(name="checkpointing", not_tried=why_not or reason)
    elif training.fit is not None:
        yield Trial(name="checkpointing", fits=(training.fit, checkpointed.fit))


def _thorough(question: Question, run: Run) -> str:
    """Return the command that measures inference and training of the model at full length."""
    command = again(question.cell, replace(run.header, plan={})) or ""
    return command.replace("--workload inference", "--workload inference,training")


def _memory(question: Question, facts: Mapping[str, Fact]) -> tuple[int, str]:
    """Return the memory that batches are fitted to, and whose it is."""
    if question.memory_bytes is not None:
        return question.memory_bytes, "as asked for"
    for name, whose in (
        (f"{question.cell.device} gpu_memory_bytes", "this GPU's memory"),
        ("gpu_memory_bytes", "this GPU's memory"),
        ("memory_limit_bytes", host_memory.CONTAINER),
        ("memory_bytes", host_memory.MACHINE),
    ):
        nbytes = facts.get(name)
        if isinstance(nbytes, int):
            return nbytes, whose
    raise Impossible("this system does not say how much memory it has: give --memory")
