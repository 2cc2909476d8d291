"""The process pass, inside its process: what the kernel and the driver say that a process holds."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

from ..devices import Device, Unreadable, nothing
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..workloads.arms import CellArm
from ..workloads.models import Model
from ..workloads.steps import Subject, may_fail
from . import meters
from .attempts import (
    TRIAL_STEPS,
    Message,
    Refusal,
    Stopwatch,
    Trying,
    attempt,
    guarded,
    settle,
    skip,
    try_to_arm,
    try_to_build,
)
from .outcomes import Figure, outcome
from .visits import restorer


def process_cells(
    cells: Sequence[Cell], model: Model, plan: Plan, wanted: Collection[str]
) -> Iterator[Message]:
    """Yield what this process holds at most in steps of the cells, one cell after the other."""
    watch, device = Stopwatch(), settle(cells[0])
    subject = try_to_build(cells[0], model, device, seed=plan.seed)
    yield watch.lap("build")
    if not isinstance(subject, Subject):
        yield from (skip(cell, name, subject) for cell in cells for name in wanted)
        return
    for cell in cells:
        yield Trying(cell)
        arm = _stepped(subject, cell, model, device, plan)
        if isinstance(arm, Refusal):
            yield from (skip(cell, name, arm) for name in wanted)
            continue
        subject.clear_gradients()
        figures: dict[str, Figure | Unreadable | Refusal] = {}
        with arm.held():
            figures["peak_rss"] = _or_reason(partial(_peak_rss, arm), device)
            figures["device_process"] = _or_reason(lambda: Figure(device.process_bytes()), device)
        for name in wanted:
            yield outcome(cell, name, figures[name])
    yield watch.lap("memory passes")


def _stepped(
    subject: Subject, cell: Cell, model: Model, device: Device, plan: Plan
) -> CellArm | Refusal:
    """Return the cell's arm after its first steps, or why they cannot be made.

    Nothing is kept of what they began with: it would be resident, too.
    """
    put_back: Callable[[], object] = nothing
    if may_fail(cell.workload, cell.grad_mode):
        rebuild = partial(try_to_build, cell, model, device, seed=plan.seed)
        put_back = restorer(subject, cell, rebuild)
    arm = try_to_arm(cell, subject, device)
    if isinstance(arm, Refusal):
        return arm
    return attempt(arm, device, TRIAL_STEPS, put_back=put_back) or arm


def _peak_rss(arm: CellArm) -> Figure:
    peak_bytes, bias = meters.peak_rss(arm.step, steps=TRIAL_STEPS)
    return Figure(peak_bytes, {"bias": bias} if bias else {})


def _or_reason(read: Callable[[], Figure], device: Device) -> Figure | Unreadable | Refusal:
    try:
        return guarded(read, device)
    except Unreadable as reason:
        return reason
