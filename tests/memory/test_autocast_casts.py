"""The copies that autocast makes, counted by hand: of weights and inputs, in each grad mode."""

import gc
from functools import partial

import pytest
import torch
from batches import unlabelled
from torch import nn

from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.experiment.plan import Plan
from gradbench.memory.predict import Predictor
from gradbench.records.measurements import Breakdown, Measurement
from gradbench.runner import memory_pass
from gradbench.workloads.losses import mean_square
from gradbench.workloads.models import MODELS, Model

pytestmark = pytest.mark.usefixtures("measured_here")

HALF = 2  # bytes
WIDE, BATCH, DEPTH = 64, 4, 3


def cell(**axes):
    return Cell(
        **{"model": "it", "workload": "inference", "grad_mode": "no_grad", "batch_size": BATCH}
        | {"autocast": "bfloat16"}
        | axes
    )


def read(member, model):
    gc.collect()  # what an earlier test left must not be freed while this one counts
    messages = memory_pass.memory_block([member], model, Plan(), ("breakdown", "peak_allocated"))
    return {m.meter: m for m in messages if isinstance(m, Measurement | Breakdown)}


class Twice(nn.Module):
    """Layers without bias, each called twice, and a conversion of the model's own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDE, WIDE, bias=False) for _ in range(DEPTH))

    def forward(self, x):
        for layer in self.layers:
            x = layer(layer(x))
        return x.to(torch.float64)


def twice():
    return Model(Twice, partial(unlabelled, shape=(WIDE,)), loss=mean_square)


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_weights_are_cast_once_a_step_where_they_are_cached_and_in_each_call_elsewhere(mode):
    """Autocast's cache keeps each weight's copy to the end of the region, with grad on and off;
    inference mode has none, and each copy is gone when its product is done. The batch is cast once:
    from there on everything is bfloat16. What the model converts itself is no cast."""
    found = read(cell(grad_mode=mode), twice())
    weight, batch = WIDE * WIDE * HALF, BATCH * WIDE * HALF
    cached = mode != "inference_mode"
    breakdown = found["breakdown"]
    assert breakdown.casts == 1 + (DEPTH if cached else 2 * DEPTH)
    held = max(breakdown.timeline["casts"])
    if mode == "global_on":
        assert held == DEPTH * weight + batch  # the graph keeps the batch's copy
    elif cached:
        assert held == DEPTH * weight  # the batch's copy is gone before the second weight's
    else:
        assert held == weight + batch  # in the first call
    assert sum(breakdown.parts.values()) == found["peak_allocated"].values[0]


def test_without_autocast_there_are_no_casts():
    found = read(cell(autocast="off"), twice())
    assert found["breakdown"].casts == found["breakdown"].parts["casts"] == 0


class Converting(nn.Module):
    """Blocks that convert their input themselves."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDE, WIDE)

        def forward(self, x):
            return self.layer(x.float().sin())

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(self.Block() for _ in range(DEPTH)))

    def forward(self, x):
        return self.blocks(x)


CELLS = {
    **{mode: (twice(), {"grad_mode": mode}) for mode in (GRAD_MODES[0], GRAD_MODES[-1])},
    "training": (twice(), {"workload": "training", "grad_mode": "global_on"}),
    "checkpointed": (
        Model(Converting, partial(unlabelled, shape=(WIDE,)), loss=mean_square),
        {"workload": "training", "grad_mode": "global_on", "checkpointing": "blocks"},
    ),
    "float16": (MODELS["cnn_small"], {"autocast": "float16"}),
}
REPRESENTATIVE = ("inference_mode", "checkpointed")


@pytest.mark.parametrize(
    ("model", "axes"),
    [
        pytest.param(*row, id=name, marks=[pytest.mark.slow] * (name not in REPRESENTATIVE))
        for name, row in CELLS.items()
    ],
)
def test_casts_are_predicted_to_the_byte(model, axes):
    member = cell(**axes)
    found, predicted = read(member, model), Predictor("cpu").predict(member, model)
    assert predicted.how == ""
    assert predicted.peak_bytes == found["peak_allocated"].values[0]
    assert predicted.breakdown.parts == found["breakdown"].parts
    assert predicted.breakdown.casts == found["breakdown"].casts > 0


def test_the_loss_is_in_the_region_of_the_forward():
    """Where the forward has cast the weight, the loss has it from the cache: one cast of it in all,
    and one of the batch."""
    layer = nn.Linear(WIDE, WIDE, bias=False)
    model = Model(
        lambda: layer,
        partial(unlabelled, shape=(WIDE,)),
        loss=lambda output, _: nn.functional.linear(output, layer.weight).float().mean(),
    )
    found = read(cell(workload="training", grad_mode="global_on"), model)
    assert found["breakdown"].casts == 2
