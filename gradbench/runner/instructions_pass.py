"""The pass that counts the host's instructions: a block's cells in one process under callgrind."""

import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Final, Self

import torch

from .. import devices, own_python, scratch
from ..devices import Unreadable
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..plurals import counted
from ..process_end import how_it_ended
from ..process_tree import ProcessTree
from ..workloads.generation import provide
from ..workloads.models import Model
from . import callgrind
from .attempts import Message, Refusal, Stopwatch, guarded, settle
from .fork_server import AS_TIMED, MallocProfile, settings
from .meters import METERS
from .outcomes import Figure, outcome
from .visits import Start, VisitedArm, share_numbers, start

METER: Final = METERS["instructions"]
WARM_UP_STEPS: Final = 20  # CPython specialises code that has run eight times (PEP 659)
SETTLING_ROUNDS: Final = 3  # after counting began
COUNTED_ROUNDS: Final = 11  # odd, so that the median is a count
ROUNDS: Final = SETTLING_ROUNDS + COUNTED_ROUNDS
REPORT: Final = "report.jsonl"
LOG: Final = "log"

# Where things lie decides what malloc, dictionaries and BLAS kernels do, and the size of the
# environment moves the heap: a terminal's or a test runner's variables would show in the counts.
_KEPT: Final = frozenset(
    ("HOME", "PATH", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES")
)
_KEPT_PREFIXES: Final = (
    *("PYTHON", "TORCH", "PYTORCH_", "ATEN_", "HF_", "MALLOC_"),
    *("MKL_", "OMP_", "GOMP_", "KMP_", "DNNL_", "ONEDNN_", "OPENBLAS_"),
)


@dataclass(frozen=True, slots=True)
class StepInstructions:
    """Instructions of a step: the median of single steps, and the least and most of them."""

    typical: int
    least: int
    most: int

    @classmethod
    def read(cls, counts: Mapping[str, Sequence[int]], index: int) -> Self | None:
        """Return those of the arm at a place among others; None where rounds are missing.

        The median of single steps, less the median of nothing counted in the same way. One step in
        many pays for malloc's tidying up, and a mean would spread that over whichever arm it hit.
        """
        steps, empty = (
            counts.get(_named(index, what), ())[-COUNTED_ROUNDS:] for what in ("step", "empty")
        )
        if min(len(steps), len(empty)) < COUNTED_ROUNDS:
            return None
        overhead = median_low(empty)
        return cls(*(number - overhead for number in (median_low(steps), min(steps), max(steps))))


@dataclass(frozen=True, slots=True)
class ChildReport:
    """What the process under valgrind had to say beside its counts."""

    notes: Mapping[str, str]
    refused: Mapping[int, Refusal]  # by the cell's place in the block


def count_block(
    cells: Sequence[Cell], model: bytes, plan: Plan, _wanted: Collection[str]
) -> Iterator[Message]:
    """Yield one outcome for each of a block's cells: a step's instructions, or why not.

    ``model`` is a pickled `Model`. A process that ends early or at ``plan.limit_s`` leaves the
    cells that it has not counted ``unreadable``.
    """
    watch = Stopwatch()
    try:
        command = _command(cells[0])
    except Unreadable as reason:
        yield from (outcome(cell, METER.name, reason) for cell in cells)
        return
    with scratch.folder() as folder:
        job = pickle.dumps((list(cells), model, plan))
        environment = _environment(AS_TIMED[cells[0].malloc])
        end = _run(command, folder, job, environment=environment, limit_s=plan.limit_s)
        counts, report = callgrind.read_dumps(folder), _read_report(folder)
    for index, cell in enumerate(cells):
        yield outcome(cell, METER.name, figure_of(index, counts, report, end))
    yield watch.lap("counting")


def figure_of(
    index: int, counts: Mapping[str, Sequence[int]], report: ChildReport, end: str
) -> Figure | Refusal:
    """Return what was counted of the cell at a place in its block."""
    if index in report.refused:
        return report.refused[index]
    step = StepInstructions.read(counts, index)
    if step is None:
        return Refusal("unreadable", f"the process under valgrind: {end}")
    notes = {"steps": COUNTED_ROUNDS, "least": step.least, "most": step.most}
    return Figure(step.typical, {**report.notes, **notes})


def main() -> None:
    """Count in this process, which runs under callgrind: the job comes by standard input."""
    cells, model, plan = pickle.load(sys.stdin.buffer)
    own = os.getpid()
    with Path(REPORT).open("w", encoding="utf-8", buffering=1) as file:

        def tell(what: Mapping[str, object]) -> None:
            if os.getpid() != own:  # the model has forked, and returned in its copy too
                os._exit(0)
            print(json.dumps(what), file=file)

        count(cells, pickle.loads(model), plan, ask=callgrind.Requests(), tell=tell)


def count(
    cells: Sequence[Cell],
    model: Model,
    plan: Plan,
    *,
    ask: callgrind.Requests,
    tell: Callable[[Mapping[str, object]], None],
) -> None:
    """Build, try and warm up every cell, then count the steps of those that run."""
    device = settle(cells[0])
    tell({"notes": {"cpu_capability": torch.backends.cpu.get_cpu_capability()}})
    begun = start(cells[0], model, device, plan)
    arms: dict[int, VisitedArm] = {}
    for index, cell in enumerate(cells):
        arm = begun if isinstance(begun, Refusal) else begun.first_steps(cell, count=WARM_UP_STEPS)
        if isinstance(arm, VisitedArm):
            arms[index] = arm
        else:
            tell({"cell": index, "refused": arm})
    if isinstance(begun, Start):
        share_numbers(list(arms.values()), begun)
    gc.collect()
    gc.disable()
    counters = {index: Counter.of(arm, index, ask) for index, arm in arms.items()}
    ask.start()
    for _ in range(ROUNDS):
        for index, counter in tuple(counters.items()):
            refused = guarded(counter.visit, device)
            if refused is not None:
                del counters[index]
                tell({"cell": index, "refused": refused})


@dataclass(frozen=True, slots=True)
class Counter:
    """An arm, and the requests around its steps."""

    arm: VisitedArm
    zero: Callable[[], object]
    dump_step: Callable[[], object]
    dump_empty: Callable[[], object]

    @classmethod
    def of(cls, arm: VisitedArm, index: int, ask: callgrind.Requests) -> Self:
        """Return the counter of the arm at a place in its block."""
        step, empty = (ask.dump(_named(index, what)) for what in ("step", "empty"))
        return cls(arm, ask.zero, step, empty)

    def visit(self) -> None:
        """Enter the mode, step once uncounted, then count one step, and nothing the same way."""
        step, zero, dump_step, dump_empty = (
            self.arm.step,
            self.zero,
            self.dump_step,
            self.dump_empty,
        )
        with self.arm.held():
            provide(step, 2)
            step()
            zero()
            step()
            dump_step()
            zero()
            dump_empty()


def check(cell: Cell) -> None:
    """Raise `Unreadable` for a cell whose instructions do not repeat, or are not the step's."""
    devices.find(cell.device).check_valgrind()
    if cell.threads != 1:
        raise Unreadable(
            f"{counted(cell.threads, 'thread')} wait for one another by spinning, and instructions "
            "spent so do not repeat: threads=1"
        )


def _command(cell: Cell) -> list[str]:
    check(cell)
    return callgrind.command(own_python.calling(__name__, "main()"))


def _environment(kind: MallocProfile) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }
    return (
        kept
        | settings(kind)
        | {"OMP_NUM_THREADS": "1", own_python.VARIABLE: own_python.loading_path()}
    )


def _run(
    command: Sequence[str],
    folder: Path,
    job: bytes,
    *,
    environment: Mapping[str, str],
    limit_s: float,
) -> str:
    """Run a command in a folder; return how it ended."""
    (folder / "job").write_bytes(job)
    with (folder / "job").open("rb") as stdin, (folder / LOG).open("wb") as log:
        try:
            with ProcessTree(
                command, cwd=folder, env=environment, stdin=stdin, stdout=log, stderr=log
            ) as process:
                code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"killed at its time limit of {limit_s:g} s"
        except OSError as error:
            return f"could not be started: {error}"
    return how_it_ended(code, (folder / LOG).read_text("utf-8", errors="replace"))


def _read_report(folder: Path) -> ChildReport:
    file = folder / REPORT
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    notes: dict[str, str] = {}
    refused: dict[int, Refusal] = {}
    for line in lines:
        what = json.loads(line)
        notes |= what.get("notes", {})
        if "refused" in what:
            refused[what["cell"]] = Refusal(*what["refused"])
    return ChildReport(notes, refused)


def _named(index: int, what: str) -> str:
    return f"{index} {what}"
