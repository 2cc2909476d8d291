"""What one call of a model in each mode shows, in a process of its own: costs and traps."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from torch import Tensor, nn

from ..devices import Device
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..memory.saved_tensors import paths
from ..observation import Observation, observe
from ..records.advice import Finding
from ..runner.attempts import Refusal, guarded, settle, try_to_build
from ..workloads.grad_modes import MODES
from ..workloads.models import Model
from ..workloads.steps import WORKLOADS, Subject
from ..workloads.trees import tensors

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


def _called_in(cell: Cell, subject: Subject, device: Device) -> list[Finding]:
    """Call the model once in a mode, observed; return what is to be said of it."""
    workload, mode = WORKLOADS[cell.workload], MODES[cell.grad_mode]
    step = workload.prepare(subject, mode)
    kept = _inference_tensors(subject.parts())
    with mode.hold():
        observation = observe(step)
    device.synchronize()
    return [
        *_of_the_call(observation, mode.name, records=mode.records),
        *_of_kept_tensors(_inference_tensors(subject.parts()) - kept),
    ]


def _in_train_mode(module: nn.Module) -> Iterator[Finding]:
    layers = [one for one in module.modules() if one.training and isinstance(one, _TRAINED)]
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
    stuck = [path for path, one in module.named_modules() if one.training and path]
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


def _of_kept_tensors(names: set[str]) -> Iterator[Finding]:
    if names:
        yield Finding(
            what=f"a call in inference_mode leaves inference tensors in {', '.join(sorted(names))}",
            cure="training with them fails later: fill them under no_grad, or clone them",
        )


def _inference_tensors(parts: Sequence[nn.Module]) -> set[str]:
    """Return where the modules hold inference tensors: buffers and attributes, by path."""
    found = set()
    for path, module in paths(*parts).items():
        own = {name: value for name, value in vars(module).items() if name != "_modules"}
        for name, value in own.items():
            for inner, tensor in tensors(value, name):
                if isinstance(tensor, Tensor) and tensor.is_inference():
                    found.add(f"{path}.{inner}".replace("_buffers", "buffers"))
    return found
