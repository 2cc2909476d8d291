"""A cell made runnable: the block's one model and batch, and each mode's step over them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import BadModel
from ..experiment.matrix import AS_IS, Cell
from .checkpointing import blocks, compute_again, keep_everything
from .generation import Decoding, Generation, held_to_contract
from .grad_modes import MODES, GradMode
from .models import Model, StandIn
from .module_parts import parameters, tensors_of
from .state import RandomNumbers, seed_all
from .steps import OPTIMIZERS, WORKLOADS, Cut, Region, Step, Subject, Workload
from .trees import Batch, mapped, tensors
from .weight_files import naming


@dataclass(frozen=True, slots=True)
class CellArm:
    """A cell made runnable."""

    cell: Cell
    step: Step
    mode: GradMode
    workload: Workload
    subject: Subject

    def held(self) -> AbstractContextManager[object]:
        """Return the context to hold around steps."""
        return nullcontext() if self.cell.entry == "per_call" else self.workload.held(self.mode)

    def renew(self) -> None:
        """Make anew what a step begins with and uses up: before each whose memory counts."""
        if isinstance(self.step, Decoding):
            self.step.renew()

    def check(self) -> None:
        """Raise `Impossible` where a step does not begin as the one before it did."""
        if isinstance(self.step, Decoding):
            with self.held():
                self.step.check()

    def provided(self) -> list[Tensor]:
        """Return the tensors of what was made for the next step."""
        return self.step.provided() if isinstance(self.step, Decoding) else []


Layout = torch.memory_format | None
Convert = Callable[[nn.Module, str, torch.dtype | None, Layout], nn.Module]


def moved(module: nn.Module, device: str, dtype: torch.dtype | None, layout: Layout) -> nn.Module:
    """Return the module on the device, its real floating tensors of the dtype, if one is given.

    `torch.nn.Module.to` would make complex tensors real. What is as it should be is not touched,
    and what lies on meta beside others is a skeleton that its author wants there.
    """
    target = torch.device(device)
    tensors = list(tensors_of(module))
    if tensors and all(tensor.is_meta for tensor in tensors):
        raise BadModel(
            "its parameters are on meta, without numbers: a factory that keeps what it makes keeps "
            "what it was first asked for, so make the module anew in each call"
        )
    if any(_is_elsewhere(tensor, target) for tensor in tensors if not tensor.is_meta):
        if any(tensor.is_meta for tensor in tensors):
            module._apply(lambda one: one if one.is_meta else one.to(target))  # type: ignore[no-untyped-call] # torch leaves it untyped
        else:
            module = module.to(target)
    if dtype is not None and any(
        tensor.is_floating_point() and tensor.dtype != dtype for tensor in tensors
    ):
        module._apply(lambda one: one.to(dtype) if one.is_floating_point() else one)  # type: ignore[no-untyped-call] # torch leaves it untyped
    if layout is not None:
        module = module.to(memory_format=layout)  # type: ignore[call-overload] # torch's stub lacks it
    return module


def _is_elsewhere(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type != device.type or device.index not in (None, tensor.device.index)


def _only_dtype(module: nn.Module) -> torch.dtype | None:
    """Return the one dtype of the module's real floating parameters, if there is but one."""
    dtypes = {one.dtype for one in parameters(module) if one.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def build(cell: Cell, model: Model, *, seed: int) -> Subject:
    """Return the block's one model and one batch, the same for every process of the seed."""
    return assemble(cell, fed(cell, model), seed=seed)


def fed(cell: Cell, model: Model) -> Model:
    """Return the model as its workload builds it and feeds it."""
    return model.generating(cell) if WORKLOADS[cell.workload].generates else model


def assemble(cell: Cell, model: Model, *, seed: int, convert: Convert = moved) -> Subject:
    """Return the one model and one batch of a model as it is `fed`.

    With the dtype ``as_is`` both are as they were made, but that the inputs that are made here
    for a model named by its path follow its parameters.
    """
    seed_all(seed)
    name = model.dtype if cell.dtype == AS_IS else cell.dtype
    dtype = None if name == AS_IS else getattr(torch, name)
    layout = torch.channels_last if cell.memory_format == "channels_last" else None
    module = convert(built_module(cell, model), cell.device, dtype, layout)
    with naming(f"the batch of {cell.model!r} cannot be made"):
        given = model.batch(cell.batch_size)
    if dtype is None and model.batch_follows:
        dtype = _only_dtype(module)
    given = _placed(given, cell.device, dtype, layout)
    batch = Batch.of(given)
    _check_samples(batch, cell)
    if any(is_lazy(tensor) for tensor in tensors_of(module)):
        with torch.no_grad():
            module(
                *batch.args, **batch.kwargs
            )  # a lazy module has no parameters before it has seen a batch
    head, cut = None, None
    if WORKLOADS[cell.workload].splits_head and model.head is not None:
        head, cut = module.get_submodule(model.head), Cut()
        module.set_submodule(model.head, cut)
    notes: dict[str, str | int | float | bool] = {}
    keep_everything(module)  # one that stands ready made may have been another cell's
    if cell.checkpointing == "blocks":
        notes["checkpointed"] = compute_again(module)
    forward: Callable[..., Any] = module
    spread = WORKLOADS[cell.workload].spread
    if spread is not None:
        forward = spread(module, blocks(module).values(), cell.device)
    if cell.compile != "off":
        forward = torch.compile(forward, mode=cell.compile)
    return Subject(
        module,
        forward,
        given,
        _itself(model.loss),
        head,
        cut,
        OPTIMIZERS[cell.optimizer],
        notes=notes,
        region=None if cell.autocast == "off" else _autocast(cell),
        generation=_generation(cell, model),
        new_tokens=cell.new_tokens,
    )


def built_module(cell: Cell, model: Model) -> nn.Module:
    """Return what a model's factory makes; raise `BadModel` that names a file without weights."""
    with naming(f"model {cell.model!r} cannot be built"):
        return model.build()


def samples_given(cell: Cell, model: Model, given: Any) -> int | None:
    """Return how many samples are in a batch that is the same whatever size is asked for.

    They are the first dimension of its tensors, or where these do not agree what was asked for.
    None: the batch has the size that was asked for, or follows it in another way. To know that, a
    batch of another size is asked for and dropped.
    """
    shapes = _shapes(given)
    if not shapes or shapes[0][0] == cell.batch_size:
        return None
    numbers = RandomNumbers()
    try:
        others = _shapes(fed(cell, model).batch(cell.batch_size + 1))
    except (Exception, SystemExit):  # noqa: BLE001 # the user's function may know no other size
        return None
    finally:
        numbers.put_back()
    if others != shapes:
        return None
    firsts = {shape[0] for shape in shapes}
    return firsts.pop() if len(firsts) == 1 else cell.batch_size


def _shapes(given: Any) -> list[torch.Size]:
    """Return the shapes of what a model is called with, where tensors have a first dimension."""
    batch = Batch.of(given)
    found = (one for _, one in tensors((batch.args, batch.kwargs)))
    return [one.shape for one in found if one.dim() and not one.is_nested]


def _check_samples(batch: Batch, cell: Cell) -> None:
    """Raise `BadModel` where a batch holds no sample: whatever is computed of it is nothing."""
    sizes = [tensor.numel() for _, tensor in tensors((batch.args, batch.kwargs))]
    if sizes and not any(sizes):
        raise BadModel(
            f"the batch of {cell.model} has no sample where {cell.batch_size} were asked for: "
            f"{batch}"
        )


def _placed(given: Any, device: str, dtype: torch.dtype | None, layout: Layout) -> Any:
    """Return a batch on the device; its floating inputs, not its target, have the dtype."""

    def moved_input(tensor: Tensor) -> Tensor:
        new = tensor.to(device, dtype if tensor.is_floating_point() else None)
        if layout is not None and new.dim() == 4:
            new = new.contiguous(memory_format=layout)
        return new

    if not isinstance(given, Batch):
        return mapped(given, moved_input)
    args, kwargs = mapped((given.args, given.kwargs), moved_input)
    return Batch(args, kwargs, mapped(given.target, lambda tensor: tensor.to(device)))


def _generation(cell: Cell, model: Model) -> Generation | None:
    """Return how the model makes tokens, for workloads that do."""
    if not WORKLOADS[cell.workload].generates or model.generation is None:
        return None
    how = model.generation
    how = replace(how, prefill=_itself(how.prefill), decode=_itself(how.decode))
    return held_to_contract(how, size=cell.batch_size)


def _itself(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that one stands for, found once: a step must not look for it."""
    return function.function() if isinstance(function, StandIn) else function


def _autocast(cell: Cell) -> Region:
    """Return what makes the region in which a step's forward and loss run."""
    return partial(torch.autocast, cell.device.partition(":")[0], getattr(torch, cell.autocast))


def make_arm(cell: Cell, subject: Subject) -> CellArm:
    """Return the cell's step over the shared subject."""
    workload, mode = WORKLOADS[cell.workload], MODES[cell.grad_mode]
    step = workload.prepare(subject, mode)
    if cell.entry == "per_call":
        step = step.entering(mode.enter) if isinstance(step, Decoding) else entering(mode, step)
    return CellArm(cell, step, mode, workload, subject)


def same_step(cell: Cell) -> Cell:
    """Return the first cell whose step is the same program on any model: modes that are held alike.

    Held, ``no_grad`` and ``global_off`` are one construct, and nothing of either is in the step. A
    step that enters its mode, or begins with what was made inside, is its mode's own.
    """
    workload, mode = WORKLOADS[cell.workload], MODES[cell.grad_mode]
    if workload.mode_inside or workload.set_up_inside or cell.entry == "per_call":
        return cell
    alike = next(
        one for one in MODES.values() if (one.hold, one.reenable) == (mode.hold, mode.reenable)
    )
    return replace(cell, grad_mode=alike.name)


def entering(mode: GradMode, step: Step) -> Step:
    """Return a step that enters the mode itself, as code does that holds no mode around it."""
    enter = mode.enter

    def entered() -> object:
        with enter():
            return step()

    return entered


def steps(arm: CellArm, count: int) -> None:
    """Step a few times in the arm's mode and keep nothing."""
    with arm.held():
        for _ in range(count):
            arm.step()
