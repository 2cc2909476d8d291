"""What is held of any model: figures that add up, an independent count, an equal prediction."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from gradbench.experiment.matrix import OF_BATCHES, Cell
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Breakdown, Measurement, Skipped
from gradbench.runner.memory_pass import memory_block
from gradbench.runner.prediction_pass import predict_block
from gradbench.workloads.arms import build
from gradbench.workloads.models import Model

EXACT = ("peak_allocated", "peak_transient", "saved_for_backward", "leaked", "breakdown")
BATCH = 2
MODES = {
    "inference": ("global_on", "inference_mode"),
    "training": ("global_on",),
    "training_reenabled": ("inference_mode",),
    "frozen_backbone": ("no_grad",),
    "evaluate_then_train": ("no_grad",),
}


@dataclass(frozen=True)
class Family:
    """A model, and what it cannot do: workload -> words of the reason."""

    model: Model
    cannot: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)  # modes -> words, in inference
    counted: bool = True  # does a pack hook of the test see all that is saved at once?
    batch: int = BATCH


def cells(family: Family, workload: str) -> list[Cell]:
    axes = {"model": "it", "workload": workload, "batch_size": family.batch}
    return [Cell(grad_mode=mode, **axes) for mode in MODES[workload]]


def outcomes(family: Family, workload: str) -> dict[tuple[str, str], object]:
    """Return what each meter says, by mode and meter."""
    asked = cells(family, workload)
    threads = torch.get_num_threads()
    torch.set_num_threads(asked[0].threads)  # as a measuring process: kernels need other memory
    try:
        messages = list(memory_block(asked, family.model, Plan(), EXACT))
        if torch.distributed.is_initialized():  # predictions are made in forks of another process
            torch.distributed.destroy_process_group()
        messages += predict_block(asked, family.model, Plan(), ["predicted_peak"])
    finally:
        torch.set_num_threads(threads)
    found = [m for m in messages if isinstance(m, Measurement | Breakdown | Skipped)]
    return {(one.cell.grad_mode, one.meter): one for one in found}


def hold(family: Family, workload: str) -> None:
    """Assert what must be true of a family's figures in a workload."""
    found = outcomes(family, workload)
    for mode in MODES[workload]:
        peak = found[mode, "peak_allocated"]
        refused = family.cannot.get(workload)
        if workload == "inference":
            refused = family.refused.get(mode, refused)
        if refused is not None:
            assert isinstance(peak, Skipped), peak
            assert refused in peak.reason
            assert "\n" not in peak.reason
            continue
        assert isinstance(peak, Measurement), peak
        _hold_parts(found[mode, "breakdown"], peak)
        _hold_prediction(found[mode, "predicted_peak"], peak)
        if workload == "inference" and mode == "global_on" and family.counted:
            _hold_saved(family, found[mode, "saved_for_backward"])
        if workload == "inference" and mode == "inference_mode":
            assert found[mode, "saved_for_backward"].values == (0,)


def _hold_parts(parts: object, peak: Measurement) -> None:
    """Parts sum to the peak; without them there is a reason."""
    if isinstance(parts, Skipped):
        assert parts.reason
        assert "\n" not in parts.reason
    else:
        assert sum(parts.parts.values()) == peak.values[0]


def _hold_prediction(predicted: object, peak: Measurement) -> None:
    """A prediction is equal, or marked as measured, or a reason."""
    if isinstance(predicted, Skipped):
        assert predicted.reason
        assert "\n" not in predicted.reason
    elif "measured_at_batches" not in predicted.notes:
        assert predicted.values == peak.values


def _hold_saved(family: Family, saved: object) -> None:
    counted = saved_bytes(family)
    if isinstance(saved, Skipped):
        assert saved.reason
    else:
        assert saved.values == (counted,)


def saved_bytes(family: Family) -> int:
    """Count by a hook of our own what a forward in eval() saves beside what is there anyway."""
    cell = cells(family, "inference")[0]
    subject = build(cell, family.model, seed=0)
    with suppress(NotImplementedError):  # exported
        subject.module.eval()
    call = subject.call()
    call()  # what is cached at first
    there = {_place(tensor) for tensor in subject.resident()}
    storages: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach()
        if _place(plain) not in there and plain.untyped_storage().nbytes():
            storages[_place(plain)] = plain.untyped_storage().nbytes()
            held.append(plain)
        return plain

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    del output
    return sum(storages.values())


def _place(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, lazy
        return id(tensor)


assert set(MODES) == set(OF_BATCHES)
