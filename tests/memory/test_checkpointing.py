"""What checkpointed blocks keep, counted by hand: their inputs, and the states of generators."""

import gc
from functools import partial

import pytest
import torch
from batches import unlabelled
from torch import nn

from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.experiment.plan import Plan
from gradbench.memory.predict import Predictor
from gradbench.records.measurements import Breakdown, Measurement, Skipped
from gradbench.runner import memory_pass, prediction_pass
from gradbench.workloads.losses import mean_square
from gradbench.workloads.models import MODELS, Model, Residual

pytestmark = pytest.mark.usefixtures("measured_here")

FLOAT = 4  # bytes
WANTED = ("peak_allocated", "saved_for_backward", "breakdown", "predicted_peak")


def cell(**axes):
    return Cell(
        **{"model": "it", "workload": "training", "grad_mode": "global_on", "batch_size": 16} | axes
    )


def read(member, model):
    gc.collect()  # what an earlier test left must not be freed while this one counts
    messages = list(memory_pass.memory_block([member], model, Plan(), WANTED[:3]))
    messages += prediction_pass.predict_block([member], model, Plan(), WANTED[3:])
    return {m.meter: m for m in messages if isinstance(m, Measurement | Breakdown | Skipped)}


def feed_forward(width, inner):
    return nn.Sequential(nn.Linear(width, inner), nn.Tanh(), nn.Linear(inner, width))


def chain(width, inner, depth):
    return nn.Sequential(*(feed_forward(width, inner) for _ in range(depth)))


def chains(*, width, inner, depth):
    make = partial(chain, width, inner, depth)
    return Model(make, partial(unlabelled, shape=(width,)), loss=mean_square)


@pytest.mark.parametrize("inner", [8, 256], ids=["narrow-inside", "wide-inside"])
def test_blocks_keep_their_inputs_and_one_block_at_a_time_what_it_computes(inner):
    """The first block's input is the batch, which is there anyway. The loss saves its input. While
    a block is computed again, the tanh's result is saved, which the second layer has for input."""
    width, depth, batch = 32, 5, 16
    model = chains(width=width, inner=inner, depth=depth)
    between, inside = batch * width * FLOAT, batch * inner * FLOAT
    kept = read(cell(), model)
    again = read(cell(checkpointing="blocks"), model)
    assert kept["saved_for_backward"].values == (depth * (between + inside),)
    assert again["saved_for_backward"].values == (
        max(depth * between, (depth - 1) * between + inside),
    )


def test_each_block_keeps_the_state_of_the_generator():
    """Of the CPU's, which lies in a tensor: nobody saves it, so it is among the others. Blocks of
    one feature have nothing else to speak of."""
    depth, state = 7, torch.get_rng_state().nbytes
    model = chains(width=1, inner=1, depth=depth)
    axes = {"batch_size": 1, "checkpointing": "blocks"}
    found = read(cell(**axes), model)
    parts = found["breakdown"].parts
    assert depth * state <= parts["other"] < (depth + 3) * state  # two more while one is put back
    assert sum(parts.values()) == found["peak_allocated"].values[0]


class Images(nn.Sequential):
    """Residual blocks, with BatchNorm and dropout."""

    def __init__(self):
        super().__init__(Residual(3, 8, 1), nn.Dropout(), Residual(8, 8, 2))


CELLS = {
    "segments": ("mlp_tiny", {}),
    "blocks": ("images", {}),
    "frozen": ("mlp_tiny", {"workload": "frozen_backbone"}),
    "adamw": ("chains", {"optimizer": "adamw"}),
    **{
        mode: ("chains", {"workload": "training_reenabled", "grad_mode": mode})
        for mode in (GRAD_MODES[0], GRAD_MODES[-1])
    },
}
REPRESENTATIVE = ("blocks", "inference_mode")
MADE = {**MODELS, "images": Model(Images, partial(unlabelled, shape=(3, 8, 8)), loss=mean_square)}
MADE["chains"] = chains(width=32, inner=64, depth=3)


@pytest.mark.parametrize(
    ("model", "axes"),
    [
        pytest.param(*row, id=name, marks=[pytest.mark.slow] * (name not in REPRESENTATIVE))
        for name, row in CELLS.items()
    ],
)
def test_checkpointed_cells_are_predicted_to_the_byte(model, axes):
    member = cell(**{"model": model, "batch_size": 4, "checkpointing": "blocks"} | axes)
    found = read(member, MADE[model])
    predicted = Predictor("cpu").predict(member, MADE[model])
    assert found["predicted_peak"].values == found["peak_allocated"].values
    assert found["predicted_peak"].notes == {}
    assert predicted.breakdown.parts["saved"] == found["breakdown"].parts["saved"]
    assert "checkpointed" in found["peak_allocated"].notes


def test_a_model_without_blocks_is_impossible_in_every_figure():
    model = Model(partial(nn.Linear, 4, 4), partial(unlabelled, shape=(4,)), loss=mean_square)
    found = read(cell(checkpointing="blocks"), model)
    assert {outcome.cause for outcome in found.values()} == {"impossible"}
    assert {outcome.reason for outcome in found.values()} == {
        "it has no blocks to compute again: no module made of others, and no Sequential: "
        "checkpointing=off"
    }
