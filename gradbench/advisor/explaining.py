"""What is asked of a model to explain why its modes differ, and the run that it stands beside."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from .. import runner
from ..devices import Device, Unreadable
from ..errors import BadModel
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..memory.call_counts import CallCounts, counted
from ..memory.saved_tensors import paths
from ..recording import Recording
from ..records.explanation import Explanation, OperatorCounts
from ..records.run import Run
from ..runner import preflight
from ..runner.attempts import Refusal, guarded, settle
from ..runner.host_times import host_times
from ..runner.module_times import ModuleClock
from ..runner.operator_times import OperatorClock, operator_calls
from ..runner.visits import VisitedArm, share_numbers, start
from ..store.jsonl import Store
from ..workloads.models import Model
from .study import Question, Say

METERS: Final = ("step_time", "peak_transient", "saved_for_backward", "breakdown")
MODES: Final = ("global_on", "no_grad", "inference_mode")


def explain(question: Question, store: Store, *, say: Say) -> tuple[Run, Explanation]:
    """Measure the block as it is, then count and time what each module and operator does.

    Raise `BadModel` with the reason where the model does not run.
    """
    models = {question.cell.model: question.model}
    preflight.check(question.cells, models, METERS)
    header = runner.started(question.cells, plan=question.plan, meters=METERS, models=models)

    def progress(event: runner.Progress) -> None:
        say(f"{event.block}: {event.doing}")

    here = question.measured_by(METERS)
    with Recording(store.create(), header, models=models, measured_by=here) as recording:
        for _ in recording.measure(progress=progress):
            pass
        say("counting and timing by module and operator")
        found = here.ask(look_inside, question.cell)
        run = recording.finish()
    for one in found:
        if isinstance(one, Explanation):
            return run, one
    ended = Refusal("crashed", "its process ended")
    why = next((one for one in found if isinstance(one, Refusal)), ended)
    words = f"model {question.cell.model!r} cannot be looked into: {why.reason}"
    raise BadModel(words, traceback=why.traceback)


def look_inside(cell: Cell, model: Model, plan: Plan) -> Iterator[Explanation | Refusal]:
    """Yield what modules and operators of a model do in each mode, or why that cannot be had."""
    device = settle(cell)
    begun = start(cell, model, device, plan)
    if isinstance(begun, Refusal):
        yield begun
        return
    arms: list[VisitedArm] = []
    for mode in MODES:
        arm = begun.first_steps(replace(cell, grad_mode=mode))
        if isinstance(arm, Refusal):
            yield arm
            return
        arms.append(arm)
    share_numbers(arms, begun)
    try:
        found = guarded(partial(_looked, arms, device=device, plan=plan), device)
    except Unreadable as reason:
        found = Refusal("unreadable", str(reason))
    yield found


def _looked(arms: list[VisitedArm], *, device: Device, plan: Plan) -> Explanation:
    subject = arms[0].arm.subject
    modules, resident = paths(*subject.parts()), list(subject.resident())
    counts, operators = {}, {}
    for arm in arms:
        with arm.held():
            found = counted(arm.step, modules, resident)
            counts[arm.cell.grad_mode] = found.modules
            operators[arm.cell.grad_mode] = _with_calls(found, operator_calls(arm.step))
    return Explanation(
        classes={
            path: type(modules[path]).__name__ for path in counts[MODES[0]] if path in modules
        },
        counts=counts,
        host_ns=host_times(arms, ModuleClock(modules), device, plan),
        operators=operators,
        operator_ns=host_times(arms, OperatorClock(), device, plan),
    )


def _with_calls(found: CallCounts, calls: Mapping[str, int]) -> dict[str, OperatorCounts]:
    unknown = any(one.saved_bytes is None for one in found.modules.values())
    no_nodes = OperatorCounts(saved_bytes=None if unknown else 0)
    return {
        name: replace(found.operators.get(name, no_nodes), calls=calls.get(name, 0))
        for name in dict.fromkeys([*calls, *found.operators])
    }
