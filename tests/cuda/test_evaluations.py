"""Training after an evaluation on a GPU, what first steps keep there, and a card that fills up."""

import queue
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from batches import unlabelled
from simulated_gpu.stand_in import in_child
from torch import nn

from gradbench.experiment.matrix import GRAD_MODES, Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Measurement, Skipped
from gradbench.runner import run
from gradbench.runner.time_pass import time_block
from gradbench.workloads.models import Model

pytestmark = pytest.mark.simulated_cuda

TABLES = 4 * 16 * 16 * 4  # of each layer cosines and sines: tokens, a head's size, float32
MIB = 2**20
EVALUATED = list(
    Matrix(
        models=["attention_rotary"],
        devices=["cuda"],
        workloads=["evaluate_then_train"],
        batch_sizes=[2],
    )
)
TRAINED = list(
    Matrix(
        models=["mlp_tiny"],
        devices=["cuda"],
        workloads=["training"],
        grad_modes=["global_on"],
        batch_sizes=[2],
        optimizers=["adamw"],
    )
)
METERS = ("peak_requested", "kept_after_first", "leaked", "left_by_evaluation")


@pytest.fixture(scope="module")
def found():
    """The outcomes by cell and meter; a child drives the run, for it asks which GPUs there are."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(_outcomes).result()


def _outcomes():
    records = run([*EVALUATED, *TRAINED], plan=Plan(budget_s=0.2), meters=METERS)
    return {(o.cell, o.meter): o for o in records if isinstance(o, Measurement | Skipped)}


@pytest.mark.parametrize("cell", EVALUATED, ids=GRAD_MODES)
def test_an_evaluation_leaves_the_bytes_that_arithmetic_says(found, cell):
    left = found[cell, "left_by_evaluation"]
    assert left.values == (TABLES,)
    assert ("inference tensors" in left.notes["made"]) == (cell.grad_mode == "inference_mode")


@pytest.mark.parametrize("cell", EVALUATED, ids=GRAD_MODES)
def test_training_fails_after_inference_mode_alone_and_the_tables_are_what_is_kept(found, cell):
    peak, kept = found[cell, "peak_requested"], found[cell, "kept_after_first"]
    if cell.grad_mode == "inference_mode":
        assert peak.cause == kept.cause == "cannot_train"
        assert peak.reason.startswith("Inference tensors cannot be saved for backward")
        return
    assert isinstance(peak, Measurement)
    assert kept.values == (TABLES,)
    assert "0.rotary RotaryTables.cos, .sin" in kept.notes["kept"]


def test_optimizer_state_gradients_and_workspaces_are_nothing_that_is_kept(found):
    assert found[TRAINED[0], "kept_after_first"].values == (0,)
    assert found[TRAINED[0], "leaked"].values == (0,)


KEPT = queue.SimpleQueue()  # no container: those of a model's file are put back between modes


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        if not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            KEPT.put(torch.empty(2 * MIB, dtype=torch.uint8, device=x.device))
        return self.layer(x)


@in_child
def test_a_mode_that_fills_the_card_is_stopped_and_its_siblings_keep_their_rounds():
    modes = ["global_on", "no_grad", "inference_mode"]
    cells = list(Matrix(models=["it"], devices=["cuda"], grad_modes=modes, batch_sizes=[4]))
    model = Model(Keeping, lambda size: unlabelled(size, shape=(4,)))
    plan = Plan(budget_s=2.0, warmup_s=0.1)
    messages = time_block(cells, model, plan, ["step_time"])
    found = {m.cell.grad_mode: m for m in messages if isinstance(m, Measurement | Skipped)}
    assert found["no_grad"].cause == "out_of_memory"
    assert "B of cuda:0's memory in" in found["no_grad"].reason
    assert torch.cuda.memory_allocated() < 1024 * MIB  # of 2 GiB
    for mode in ("global_on", "inference_mode"):
        assert len(found[mode].values) >= plan.min_rounds
