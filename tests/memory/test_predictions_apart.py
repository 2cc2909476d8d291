"""A prediction is made in a child: what a step does to its process reaches no other prediction."""

import os
from functools import partial

import pytest
import torch
from torch import nn

from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.experiment.plan import Plan
from gradbench.memory.predict import EndsItsProcess, Predictor
from gradbench.records.measurements import Measurement, Skipped
from gradbench.runner.memory_pass import predict_block
from gradbench.workloads.models import Model

REMEMBERED = {}


class Ends(nn.Linear):
    def forward(self, x):
        if not torch.is_grad_enabled():
            os._exit(0)
        return super().forward(x)


class Widens(nn.Linear):
    def forward(self, x):
        before = torch.zeros(64).nbytes
        torch.set_default_dtype(torch.float64)
        return super().forward(x) + torch.zeros(before)[: x.shape[0], None].to(x.dtype)


class Remembers(nn.Linear):
    def forward(self, x):
        if "scale" not in REMEMBERED:
            REMEMBERED["scale"] = torch.ones(8)
        return super().forward(x) * REMEMBERED["scale"]


def predicted(module, modes=GRAD_MODES):
    """What a block's predictions are, by mode, made in the order of the modes."""
    model = Model(build=lambda: module(8, 8), batch=lambda n: torch.ones(n, 8))
    cells = [Cell(model="mine", workload="inference", grad_mode=m, batch_size=4) for m in modes]
    found = predict_block(cells, model, Plan(), ["predicted_peak"])
    return {o.cell.grad_mode: o for o in found if isinstance(o, Measurement | Skipped)}


def test_a_step_that_ends_its_process_costs_its_own_prediction_alone():
    outcomes = predicted(Ends)
    assert isinstance(outcomes["global_on"], Measurement)
    for mode in GRAD_MODES[1:]:
        assert outcomes[mode].cause == "crashed"
        assert outcomes[mode].reason == "its step ended its process: ended early with exit status 0"


@pytest.mark.parametrize("module", [Widens, Remembers])
def test_a_prediction_is_the_same_whichever_modes_were_predicted_before(module):
    forth, back = predicted(module), predicted(module, GRAD_MODES[::-1])
    assert {mode: o.values for mode, o in forth.items()} == {m: o.values for m, o in back.items()}
    assert forth["global_off"].values == forth["no_grad"].values
    assert torch.get_default_dtype() is torch.float32
    assert REMEMBERED == {}


def test_what_ends_the_child_is_said_to_the_caller():
    model = Model(build=partial(os._exit, 3), batch=lambda n: torch.ones(n, 8))
    cell = Cell(model="mine", workload="inference", grad_mode="no_grad", batch_size=4)
    with pytest.raises(EndsItsProcess, match="its step ended its process: ended early"):
        Predictor("cpu").predict(cell, model)
