"""Modes draw the same random numbers, in timed rounds too, and the record says whose."""

import queue
import random

import numpy as np
import pytest
import torch
from batches import unlabelled
from torch import nn

from gradbench.experiment.matrix import GRAD_MODES, Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Measurement
from gradbench.runner import memory_pass, time_pass
from gradbench.workloads.models import Model

pytestmark = pytest.mark.usefixtures("measured_here")

DRAWN = queue.SimpleQueue()  # no container: those of a model's file are put back between modes


class Sampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        kept = nn.functional.dropout(torch.ones(32), training=True)
        DRAWN.put(((grad, inference), kept.sum().item(), random.random(), np.random.random()))
        return self.layer(x)


class Dropping(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.Dropout(0.5))


def drawn():
    """Yield what the steps drew since the last call."""
    while not DRAWN.empty():
        yield DRAWN.get()


def measured(job, build, meter, *, modes=GRAD_MODES, workload="inference"):
    model = Model(build, lambda size: unlabelled(size, shape=(4,)))
    cells = Matrix(models=["it"], workloads=[workload], grad_modes=list(modes), batch_sizes=[2])
    plan = Plan(budget_s=0.1, warmup_s=0.01)
    found = [m for m in job(list(cells), model, plan, [meter]) if isinstance(m, Measurement)]
    return {m.cell.grad_mode: m for m in found}


def test_every_timed_step_of_a_mode_draws_what_the_other_modes_draw():
    assert not list(drawn())
    modes = ("global_on", "no_grad", "inference_mode")
    found = measured(time_pass.time_block, Sampling, "step_time", modes=modes)
    assert len(found) == 3
    by_mode = {}
    for mode, *numbers in drawn():
        by_mode.setdefault(mode, []).append(numbers)
    first, second, third = by_mode.values()
    assert first == second == third
    rounds = len(found["no_grad"].values)
    assert len({tuple(numbers) for numbers in first}) >= rounds  # no round draws what another did


@pytest.mark.parametrize(
    ("job", "meter"),
    [(time_pass.time_block, "step_time"), (memory_pass.memory_block, "peak_allocated")],
)
def test_the_record_says_whose_numbers_were_the_same(job, meter):
    found = measured(job, Sampling, meter)
    for mode in GRAD_MODES:
        assert found[mode].notes["same_random_numbers_of"] == "torch, python, numpy"


def test_dropout_is_noted_where_it_drops_alone():
    trained = measured(time_pass.time_block, Dropping, "step_time", workload="training")
    assert trained["global_on"].notes["same_random_numbers_of"] == "torch"
    served = measured(time_pass.time_block, Dropping, "step_time")
    assert "same_random_numbers_of" not in served["no_grad"].notes
