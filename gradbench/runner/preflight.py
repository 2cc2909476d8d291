"""What is checked before the first round: names, models, and cells that cannot run here."""

import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Final, NamedTuple

import torch

from .. import devices
from ..devices import Device
from ..errors import BadModel, DeviceUnavailable, Impossible, UnknownName, in_one_line
from ..experiment.matrix import AS_IS, AXES, LENGTHS, Cell, unique
from ..experiment.model_source import unknown_model
from ..memory.child_process import Children
from ..plurals import counted
from ..records.measurements import Cause
from ..workloads.distributed import lacking
from ..workloads.models import MODELS, Model
from ..workloads.module_parts import named_parts, parameters
from ..workloads.steps import WORKLOADS
from ..workloads.trees import Batch, tensors
from .host_system import here, usable_cores
from .meters import METERS
from .ranks import hold_that_nobody_started_ranks

MOST_HEADS: Final = 4
"""Parts of a model that are named where it needs a head."""

DEFAULT_METERS: Final = tuple(meter.name for meter in METERS.values() if meter.default)


def check(
    cells: Iterable[Cell],
    models: Mapping[str, Model] = MODELS,
    meters: Sequence[str] = DEFAULT_METERS,
) -> None:
    """Raise for the first name that no catalogue knows, or a model that cannot be sent on.

    Nothing is measured without meters, and nothing in several copies of a command, as launchers of
    ranks start them.
    """
    hold_that_nobody_started_ranks(os.environ)
    if not meters:
        raise Impossible("meters is empty: name at least one")
    for name in meters:
        if name not in METERS:
            raise UnknownName("meter", name, METERS)
    for name, device in dict.fromkeys((cell.model, cell.device) for cell in cells):
        if name not in models:
            raise unknown_model(name, models)
        devices.find(device)
        portable(name, models[name])


def on_each_device(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells, those on every device of a family (``cuda:all``) once on each of them.

    Raise `DeviceUnavailable` where there is none.
    """
    placed: list[Cell] = []
    for cell in cells:
        family, _, index = cell.device.partition(":")
        names = devices.all_of(family) if index == devices.ALL else [cell.device]
        placed += [replace(cell, device=name) for name in names]
    return unique(placed)


def obstacle(cell: Cell, models: Mapping[str, Model] = MODELS) -> tuple[Cause, str] | None:
    """Return why a cell cannot run here, as far as that is known without running it."""
    device, cores = devices.find(cell.device), len(usable_cores())
    try:
        device.check()
        devices.find(device.of_rank(cell.world_size - 1)).check()
        if cell.compile != "off":
            device.check_compiler()
    except DeviceUnavailable as reason:
        return "unavailable", str(reason)
    if cell.in_ranks and (missing := lacking(device.collectives)):
        return "unavailable", missing
    contradictions = (*_of_the_device(cell, device), *_of_the_workload(cell, models[cell.model]))
    for holds, why in contradictions:
        if holds:
            return "impossible", why
    if cell.threads > cores:
        threads = counted(cell.threads, "thread")
        return "unavailable", f"{threads}, but this process may use {counted(cores, 'core')}"
    return None


def _of_the_device(cell: Cell, device: Device) -> Iterable[tuple[bool, str]]:
    """Return what a device cannot do: whether that is asked for, and how not to."""
    return (
        (
            cell.threads > 1 and not device.operator_threads,
            f"{cell.device} runs operators by itself, whatever threads the host has: threads=1",
        ),
        (
            cell.l2 not in device.l2,
            f"{cell.device} has no cache that a step could be kept from: l2=hot",
        ),
        (
            cell.compile not in ("off", *device.compile_modes),
            f"{cell.device} has no graphs of its own that {cell.compile} could replay: "
            "compile=default",
        ),
        (
            cell.precision not in device.precisions,
            f"{cell.device} multiplies float32 in one way only: precision=ieee",
        ),
        (
            cell.precision != "ieee" and cell.dtype not in (AS_IS, "float32"),
            f"{cell.dtype} has one precision: precision=ieee",
        ),
    )


def _of_the_workload(cell: Cell, model: Model) -> Iterable[tuple[bool, str]]:
    """Return what a workload cannot do with a model: whether that is asked for, and how not to."""
    workload = WORKLOADS[cell.workload]
    headless = workload.splits_head and model.head is None
    beheaded = workload.splits_head and _lacks(model, model.head)
    lengths = [
        f"{name}={AXES[name].default}"
        for name in LENGTHS
        if getattr(cell, name) != AXES[name].default
    ]
    unlike_images = _unlike_images(model) if cell.memory_format == "channels_last" else ""
    return (
        (
            workload.mode_inside and cell.entry == "per_call",
            f"{cell.workload} enters its mode in each step as it is: entry=held",
        ),
        (
            cell.optimizer != "sgd" and not workload.optimizes,
            f"{cell.workload} makes no optimizer step: optimizer=sgd",
        ),
        (
            workload.generates and model.generation is None,
            f"{cell.workload} makes tokens, and {cell.model} does not say how: give its "
            "gradbench.Model a Generation",
        ),
        (
            bool(lengths) and not workload.generates,
            f"{cell.workload} takes a batch and no prompt: {', '.join(lengths)}",
        ),
        (
            cell.checkpointing != "off" and not workload.optimizes,
            f"{cell.workload} makes no backward pass that could compute blocks again: "
            "checkpointing=off",
        ),
        (
            cell.world_size > 1 and not cell.in_ranks,
            f"{cell.workload} is a step of one process: world_size=1",
        ),
        (
            cell.in_ranks and cell.compile != "off",
            f"{cell.workload} is measured as torch runs it operator by operator: compile=off",
        ),
        (
            bool(unlike_images),
            f"channels_last needs images (B, C, H, W): {cell.model} takes {unlike_images}",
        ),
        (
            headless,
            f"{cell.workload} trains a head, and {cell.model} names none"
            f"{_would_do(model) if headless else ''}",
        ),
        (
            beheaded,
            f"{cell.model} has no submodule {model.head!r}{_would_do(model) if beheaded else ''}",
        ),
    )


@cache
def _unlike_images(model: Model) -> str:
    """Return in words what a model takes that has no images among it, "" for one that has."""
    try:
        batch = Batch.of(model.batch(1))
    except (Exception, SystemExit):  # noqa: BLE001 # the measuring process says what is wrong with it
        return ""
    dimensions = [one.dim() for _, one in tensors((batch.args, batch.kwargs))]
    if 4 in dimensions:
        return ""
    return f"{', '.join(map(str, dict.fromkeys(dimensions)))}-dimensional input"


def _lacks(model: Model, head: str | None) -> bool:
    """Return whether a head is named that is none of a model's submodules, as far as is known."""
    if head is None or model in MODELS.values():
        return False
    parts = _parts(model)
    return parts is not None and head not in parts.submodules


def _would_do(model: Model) -> str:
    """Return in words which of a model's parts could be the head, "" where that is not known."""
    parts = _parts(model)
    likely = parts.children[:0:-1][:MOST_HEADS] if parts else ()  # what comes first has no features
    if not likely:
        return ""
    others = f", or {', '.join(likely[1:])}" if likely[1:] else ""
    return f": --head {likely[0]} would do{others}"


class _Parts(NamedTuple):
    """Names of a model's submodules: of all, and of its children that have parameters."""

    submodules: tuple[str, ...]
    children: tuple[str, ...]


@cache
def _parts(model: Model) -> _Parts | None:
    """Return a model's parts; None where they are not known.

    They are asked in a child of this process, on ``meta``: building is the user's code.
    """

    def ask(_say: Callable[[int], None]) -> _Parts:
        with torch.device("meta"):
            module = model.build()
        children = module.named_children()
        return _Parts(
            tuple(name for name, _ in named_parts(module)),
            tuple(name for name, part in children if next(parameters(part), None) is not None),
        )

    try:
        return Children(device=devices.find("cpu"), forks=here().forks).run(ask)
    except Exception:  # noqa: BLE001 # nor can it be built there, or it ended the child
        return None


def portable(name: str, model: Model) -> bytes:
    """Return the model pickled for another process; raise `BadModel` when that cannot be.

    What lives in a module travels by its name; a lambda, a closure or anything of a script's or
    notebook's own travels by value, with cloudpickle.
    """
    with suppress(Exception):  # a user's object may raise anything: then by value, if at all
        by_name = pickle.dumps(model)
        if b"__main__" not in by_name:
            return by_name
    try:
        import cloudpickle

        return bytes(cloudpickle.dumps(model))
    except Exception as error:  # as above
        words = in_one_line(error)
        raise BadModel(f"model {name!r} cannot be sent to another process: {words}") from error
