"""Changes that may make a step quicker, each timed in turns with the step as it is."""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from .. import devices
from ..experiment.matrix import AS_IS, Cell
from ..experiment.plan import Plan
from ..records.advice import Trial, Turns
from ..records.measurements import Measurement, Skipped
from ..runner import preflight
from ..runner.attempts import Message, Refusal, settle
from ..runner.block_runner import OneAfterAnother
from ..runner.compilation import nothing_cached
from ..runner.interleave import timed_rounds
from ..runner.memory_pass import memory_block
from ..runner.meters import StepTime
from ..runner.visits import VisitedArm, start
from ..workloads.models import Model

ADDS = "peak_transient"


def trials(cell: Cell, model: Model, *, compiles: bool) -> Iterator[Trial]:
    """Yield the changes that are worth a try, and why some are not tried; none is measured yet."""
    images = replace(cell, memory_format="channels_last")
    if images != cell and _obstacle(images, model) is None:
        yield Trial(name="channels_last", cell=images)
    if cell.autocast == "off" and cell.dtype in (AS_IS, "float32"):
        if devices.find(cell.device).multiplies_bfloat16():
            yield Trial(name="bfloat16 autocast", cell=replace(cell, autocast="bfloat16"))
        else:
            why_not = "this processor has no instructions for bfloat16: it would be slower"
            yield Trial(name="bfloat16 autocast", not_tried=why_not)
    if cell.compile == "off":
        compiled = replace(cell, compile="default")
        obstacle = _obstacle(compiled, model)
        if compiles and obstacle is None:
            yield Trial(name="torch.compile", cell=compiled)
        else:
            why_not = obstacle or "compiling takes from ten seconds up: --try-compile"
            yield Trial(name="torch.compile", not_tried=why_not)


def _obstacle(cell: Cell, model: Model) -> str | None:
    found = preflight.obstacle(cell, {cell.model: model})
    return found[1] if found is not None else None


def timed(trial: Trial, plain: Cell, runner: OneAfterAnother) -> Trial:
    """Return the trial with its times beside the plain step's, or why it does not run."""
    if trial.cell is None:
        return trial
    for found in runner.ask(partial(in_turns, changed=trial.cell), plain):
        if isinstance(found, Turns):
            return replace(trial, turns=found)
        if isinstance(found, Refusal):
            return replace(trial, cell=None, fails=found.reason)
    return replace(trial, cell=None, fails="its process ended before it was timed")


def counted(trial: Trial, runner: OneAfterAnother) -> Trial:
    """Return the trial with the bytes that its step adds, where they can be read."""
    if trial.cell is None:
        return trial
    for found in runner.ask(added, trial.cell):
        if isinstance(found, Measurement):
            return replace(trial, adds_bytes=found.values[0])
        if isinstance(found, Skipped):
            break
    return trial


def in_turns(plain: Cell, model: Model, plan: Plan, *, changed: Cell) -> Iterator[Turns | Refusal]:
    """Yield the times of a step as it is and changed, each of a model of its own, in turns."""
    device, arms = settle(plain), list[VisitedArm]()
    with nothing_cached([changed]):
        for cell in (plain, changed):
            begun = start(cell, model, device, plan)
            arm = begun if isinstance(begun, Refusal) else begun.first_steps(cell)
            if isinstance(arm, Refusal):
                yield arm
                return
            arms.append(arm)
        clock, rng = StepTime.of(device), random.Random(plan.seed)
        made = timed_rounds(arms, clock, plan=plan, rng=rng)
        own, other = (
            tuple(ns / count for ns, count in zip(batch_ns, made.iterations, strict=True))
            for batch_ns in made.batch_ns
        )
        yield Turns(plain_ns=own, changed_ns=other)


def added(cell: Cell, model: Model, plan: Plan) -> Iterator[Message]:
    """Yield what the meter of a step's added bytes reads of a cell."""
    yield from memory_block([cell], model, plan, [ADDS])
