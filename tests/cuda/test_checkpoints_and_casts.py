"""Checkpointed and autocast steps on the GPU: saved, cast and predicted as on the CPU."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from gradbench.experiment.matrix import Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Breakdown, Measurement
from gradbench.runner import run

pytestmark = pytest.mark.simulated_cuda

METERS = ("peak_requested", "predicted_peak", "saved_for_backward", "breakdown")
TRAINING = {"workloads": ["training"], "grad_modes": ["global_on"]}
CHECKPOINTED = {"checkpointing": ["off", "blocks"], **TRAINING}
CAST = {"autocasts": ["bfloat16"]}


def figures(axes, device):
    """Return what each meter reads of each cell, in order; of a breakdown the casts."""
    cells = list(Matrix(models=["mlp_d4_w64"], batch_sizes=[16], devices=[device], **axes))
    found = {}
    for record in run(cells, plan=Plan(budget_s=0.2), meters=METERS):
        if isinstance(record, Measurement):
            found[record.cell, record.meter] = record.values[0]
        elif isinstance(record, Breakdown):
            most = max(record.timeline["casts"])
            found[record.cell, "breakdown"] = (record.casts, most, sum(record.parts.values()))
    return [{meter: found.get((cell, meter)) for meter in METERS} for cell in cells]


def in_a_process(axes, device):
    """Return the figures from a child: it asks for GPUs, and could not fork for later tests."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(figures, axes, device).result()


def test_what_is_saved_between_segments_is_the_cpu_s_and_the_peak_is_predicted():
    """The states of generators lie on the host: they are no bytes of the GPU."""
    there, here = (in_a_process(CHECKPOINTED, device) for device in ("cuda", "cpu"))
    saved = [[cell["saved_for_backward"] for cell in side] for side in (there, here)]
    assert saved[0] == saved[1]
    assert saved[0][0] > saved[0][1] > 0
    assert all(cell["peak_requested"] for cell in there)
    assert [cell["peak_requested"] for cell in there] == [cell["predicted_peak"] for cell in there]


def test_casts_are_made_and_kept_as_on_the_cpu():
    there, here = (in_a_process(CAST, device) for device in ("cuda", "cpu"))
    numbers = [[cell["breakdown"][0] for cell in side] for side in (there, here)]
    assert numbers[0] == numbers[1]
    assert numbers[0] == [11] * 4  # five weights, five biases, the batch
    most = [cell["breakdown"][1] for cell in there]
    assert most[0] > most[1] == most[2] > most[3] > 0
