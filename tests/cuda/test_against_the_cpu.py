"""What tensors ask for is the same on both devices, but for what named operators take inside."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from gradbench.experiment.matrix import Matrix
from gradbench.experiment.plan import Plan
from gradbench.memory.predict import Predictor
from gradbench.records.allocations import Within, attribute_peak
from gradbench.records.measurements import Measurement
from gradbench.runner import run
from gradbench.workloads.models import MODELS

pytestmark = pytest.mark.simulated_cuda

TRAINING = {"workloads": ["training"], "grad_modes": ["global_on"]}
PLAIN = (
    {"models": ["mlp_deep"], "grad_modes": ["global_on", "no_grad"]},
    {"models": ["mlp_deep"], **TRAINING},
    {"models": ["mlp_tiny"], "optimizers": ["sgd_momentum"], **TRAINING},
    {"models": ["cnn_small"], "grad_modes": ["global_on"]},
)
"""Where the CPU's operators take nothing inside at the peak, either."""
CNN = ({"models": ["cnn_small"], "grad_modes": ["no_grad"]}, {"models": ["cnn_small"], **TRAINING})
RESNET = ({"models": ["resnet18_32"], "grad_modes": ["no_grad"]},)
"""Where they do: oneDNN's convolutions reorder images and weights, batch norm keeps sums."""
TAKE = {"aten::convolution", "aten::native_batch_norm"}


def cells(groups, device):
    return [c for axes in groups for c in Matrix(devices=[device], batch_sizes=[4], **axes)]


def in_a_process(function, *arguments):
    """Return what a child makes of it: it asks for GPUs, and could not fork for later tests."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def figures(groups, device):
    """Return peaks of what tensors ask for, and bytes saved, in the order of the cells."""
    peak = "peak_allocated" if device == "cpu" else "peak_requested"
    wanted = cells(groups, device)
    records = run(wanted, plan=Plan(budget_s=0.2), meters=[peak, "saved_for_backward"])
    found = {(r.cell, r.meter): r.values[0] for r in records if isinstance(r, Measurement)}
    return [(found[cell, peak], found[cell, "saved_for_backward"]) for cell in wanted]


def without_scratch(groups):
    """Return the CPU's peaks but for what operators take inside, and which take any."""
    predictor, bare, take = Predictor("cpu"), [], set()
    for cell in cells(groups, "cpu"):
        outline, unknown = predictor._filled(cell, MODELS[cell.model], 0, probing=True)
        assert unknown == ()
        entries = [entry for entry in outline.entries if not isinstance(entry, Within)]
        take |= {entry.op for entry in outline.entries if isinstance(entry, Within)}
        resident, before_bytes = outline.resident, outline.before_bytes
        peak = attribute_peak(entries, resident=resident, before_bytes=before_bytes)
        bare.append(peak.peak_bytes)
    return bare, take


def test_where_operators_are_the_same_the_bytes_are():
    there, here = (in_a_process(figures, PLAIN, device) for device in ("cuda", "cpu"))
    assert there == here
    assert any(saved for _, saved in there)


@pytest.mark.parametrize(
    "groups", [CNN, pytest.param(RESNET, marks=pytest.mark.slow)], ids=["cnn", "resnet"]
)
def test_where_the_cpu_needs_more_it_is_inside_its_own_operators(groups):
    bare, take = in_a_process(without_scratch, groups)
    assert take >= TAKE
    there, here = (in_a_process(figures, groups, device) for device in ("cuda", "cpu"))
    assert [peak for peak, _ in there] == bare
    assert [saved for _, saved in there] == [saved for _, saved in here]
