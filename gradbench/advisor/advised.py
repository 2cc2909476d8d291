"""``gradbench.advise``: a module and an example batch in, advice out that shows itself."""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from .. import devices
from ..analysis.advice import Advice
from ..errors import BadModel
from ..experiment.matrix import Cell
from ..store.jsonl import Store
from ..terminal.advice_screen import COLUMNS, advice_screen, at_length
from ..terminal.screen import Screen
from ..workloads.models import Model
from ..workloads.trees import Batch, mapped, tensors
from .study import Question, study

MODEL: Final = "model"
"""How the records name a module that was given in Python."""

SHARDED: Final = ("FullyShardedDataParallel", "FSDPModule")
"""Classes of modules whose parameters are spread over processes."""


class Advised:
    """Advice on a model: prints itself, and shows itself in a notebook.

    ``advice`` has the verdicts and figures, ``advice.study.run`` the run that they are from.
    """

    def __init__(self, advice: Advice) -> None:
        self.advice = advice

    def __repr__(self) -> str:
        console = Screen(width=COLUMNS, color_system=None)
        with console.capture() as capture:
            console.print(advice_screen(self.advice))
        lines = [line.rstrip() for line in capture.get().splitlines()]
        return "\n".join([*lines, *at_length(self.advice)])

    def _repr_html_(self) -> str:
        from ..report.advice import advice_html

        return advice_html(self.advice)


def advise(model: nn.Module, *args: Any, **kwargs: Any) -> Advised:
    """Say which grad mode to use for a module's inference on this batch, in about a minute.

    ``args`` and ``kwargs`` are what the module is called with; their device is the one measured
    on. The modes are measured in turns, the model is looked at, and the largest batches that fit
    are found. The module itself is not touched: copies of it run, in processes of their own. The
    records are sealed in ``results/studies/``: ``gradbench show`` and ``gradbench report`` take
    their path. Raise `BadModel` for what is no module, for one that works with other processes
    (DDP, FSDP), and for a batch without a sample.
    """
    if not isinstance(model, nn.Module):
        raise BadModel(f"advise takes a module and a batch, not {type(model).__name__}")
    _hold_that_it_works_alone(model)
    example = Example.of(Batch(args, kwargs))
    cell = Cell(
        model=MODEL,
        workload="inference",
        grad_mode="inference_mode",
        device=example.device,
        batch_size=example.size,
    )
    question = Question(cell=cell, model=Model(partial(_itself, model), example))
    return Advised(Advice(study(question, Store("results").studies, say=lambda _: None)))


def _hold_that_it_works_alone(model: nn.Module) -> None:
    """Raise `BadModel` where a part works with other processes: its copy would wait for them."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # what is sharded has imported it
    kinds = [nn.parallel.DistributedDataParallel]
    kinds += [getattr(fsdp, name) for name in SHARDED] if fsdp is not None else []
    for part in model.modules():
        if isinstance(part, tuple(kinds)):
            raise BadModel(
                f"{type(part).__name__} works with other processes, and a copy of it would wait "
                "for them: give advise the module that it was made of; gradbench run --workload "
                "inference_ddp measures several ranks"
            )


def _itself(model: nn.Module) -> nn.Module:
    """Return the module: in a process of its own it is a copy."""
    return model


@dataclass(frozen=True, slots=True, eq=False)  # tensors have no order, dicts no hash
class Example:
    """A batch, and batches of other sizes made of its samples."""

    batch: Batch
    size: int
    device: str

    @classmethod
    def of(cls, batch: Batch) -> "Example":
        """Return the example; its size is that of the first dimension of its first tensor."""
        found = [tensor for _, tensor in tensors((batch.args, batch.kwargs))]
        sized = [tensor for tensor in found if tensor.dim()]
        if not sized:
            raise BadModel("the batch holds no tensor with a dimension for its samples")
        if not len(sized[0]):
            raise BadModel(
                "the batch holds no sample: the first dimension of its first tensor is 0"
            )
        device = sized[0].device
        host: Batch = mapped(batch, lambda tensor: tensor.detach().cpu())
        return cls(host, len(sized[0]), _name(device))

    def __call__(self, size: int) -> Batch:
        """Return a batch of that size: the samples over and over."""
        if size == self.size:
            return self.batch
        sized: Batch = mapped(self.batch, partial(_repeated, size=size, of=self.size))
        return sized


def _repeated(tensor: Tensor, *, size: int, of: int) -> Tensor:
    """Return a tensor with so many samples, or as it is where its first dimension has others."""
    if not tensor.dim() or len(tensor) != of:
        return tensor
    return tensor[torch.arange(size) % of]


def _name(device: torch.device) -> str:
    name = device.type if device.index in (None, 0) else f"{device.type}:{device.index}"
    devices.find(name).check()
    return name
