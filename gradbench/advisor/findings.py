"""What one call of a model in each mode shows, in a process of its own: costs and traps."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from torch import nn

from ..devices import Device
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..memory.left_behind import INFERENCE_TENSOR, in_words, left_by
from ..observation import Observation, observe
from ..records.advice import Finding
from ..runner.attempts import Refusal, attempt, guarded, settle, try_to_arm, try_to_build
from ..workloads.grad_modes import MODES
from ..workloads.models import Model
from ..workloads.module_parts import named_parts, parts
from ..workloads.state import Snapshot
from ..workloads.steps import WORKLOADS, Subject, evaluation

_TRAINED: Final = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
"""Layers that compute something else in train mode."""

KINDS: Final = {"mode_left": "global_on", "out_of_sight": "global_on", "thread_mode": "no_grad"}
"""What `observe` finds that is said here, and the mode in which it is."""


def look_at(cell: Cell, model: Model, plan: Plan) -> Iterator[Finding | Refusal]:
    """Yield what is found in a model, or why it could not be looked at."""
    device = settle(cell)
    subject = try_to_build(cell, model, device, seed=plan.seed)
    if isinstance(subject, Refusal):
        yield subject
        return
    yield from _in_train_mode(subject.module)
    yield from _frozen(subject)
    for mode in ("global_on", "no_grad", "inference_mode"):
        found = guarded(partial(_called_in, replace(cell, grad_mode=mode), subject, device), device)
        yield from [found] if isinstance(found, Refusal) else found
    evaluated = replace(cell, workload="evaluate_then_train", grad_mode="inference_mode")
    yield from _after_an_evaluation(evaluated, model, device, plan.seed)


def _called_in(cell: Cell, subject: Subject, device: Device) -> list[Finding]:
    """Call the model once in a mode, observed; return what is to be said of it."""
    workload, mode = WORKLOADS[cell.workload], MODES[cell.grad_mode]
    step = workload.prepare(subject, mode)
    with mode.hold():
        observation = observe(step)
    device.synchronize()
    return list(_of_the_call(observation, mode.name, records=mode.records))


def _in_train_mode(module: nn.Module) -> Iterator[Finding]:
    layers = [one for one in parts(module) if one.training and isinstance(one, _TRAINED)]
    if not layers:
        return
    counts = Counter(type(layer).__name__ for layer in layers)
    names = " and ".join(f"{count} {name}" for name, count in counts.items())
    be = "are" if len(layers) > 1 else "is"
    yield Finding(
        what=f"{names} {be} in train mode as the model is built",
        cure="call model.eval() before inference, as this study did",
    )
    module.eval()
    stuck = [path for path, one in named_parts(module) if one.training and path]
    module.train()
    if stuck:
        yield Finding(
            what=f"{', '.join(stuck[:3])} stay in train mode after eval()",
            cure="let train() reach them",
        )


def _frozen(subject: Subject) -> Iterator[Finding]:
    parameters = subject.parameters()
    frozen = sum(not parameter.requires_grad for parameter in parameters)
    if parameters and frozen == len(parameters):
        yield Finding(
            what="no parameter requires grad, so nothing is recorded in any mode",
            cure="nothing to do for inference; to train, set requires_grad on what is to learn",
        )
    elif frozen:
        yield Finding(what=f"{frozen} of {len(parameters)} parameters are frozen")


def _of_the_call(observation: Observation, mode: str, *, records: bool) -> Iterator[Finding]:
    """Yield what a call shows; of what every mode shows alike, `KINDS` says which one says it."""
    for one in observation.findings:
        if KINDS.get(one.kind) == mode:
            yield Finding(what=one.text, line=one.place, cure=one.cure)
    line = next((switch.line for switch in observation.switches if switch.line), "")
    if observation.graph_built and not records:
        yield Finding(
            what=f"a graph is built under {mode}",
            line=line,
            cure="take enable_grad() or set_grad_enabled(True) out of the forward",
        )
    elif records and observation.switched and not observation.leaked:
        yield Finding(what="the forward switches the grad mode itself", line=line)


def _after_an_evaluation(cell: Cell, model: Model, device: Device, seed: int) -> Iterator[Finding]:
    """Yield what a first call inside the cell's mode leaves, and whether training works after it.

    The subject is another one: the caches of the first are filled.
    """
    subject = try_to_build(cell, model, device, seed=seed)
    if isinstance(subject, Refusal):
        return
    mode, parts = MODES[cell.grad_mode], subject.parts()
    built = Snapshot(parts)
    left = guarded(partial(left_by, evaluation(subject, mode), parts), device)
    if isinstance(left, Refusal):
        return
    inside = [one for one in left.made if one.kind == INFERENCE_TENSOR]
    if not inside:
        return
    arm = try_to_arm(cell, subject, device)
    refused = arm if isinstance(arm, Refusal) else attempt(arm, device, 1, put_back=built.put_back)
    words = f"an evaluation in {mode.name} leaves {in_words(inside)}"
    if refused is None:
        yield Finding(what=f"{words}; a training step after it works all the same")
        return
    by_mode = refused.cause == "cannot_train"
    after = f", and training after it fails: {refused.reason}" if by_mode else ""
    yield Finding(
        what=f"{words}{after}",
        cure="evaluate under no_grad where training follows, or make them as the model is built",
    )
