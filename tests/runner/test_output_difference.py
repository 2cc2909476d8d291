"""How far the modes' outputs lie apart: 0 where they are equal to the bit, the figure where not."""

import math

import pytest
import torch
from batches import unlabelled
from builders import block
from patience import PATIENCE_S
from torch import nn
from torch.nn import functional

from gradbench import Measurement, Model, Skipped
from gradbench.experiment.plan import Plan
from gradbench.runner import run
from gradbench.runner.output_difference import NAME, NO_TENSOR, PPT, Difference, compared

pytestmark = pytest.mark.usefixtures("shared_fork_servers")

STEP = 2.0**-10  # exact in float32


class DrawsInEveryCall(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.5, training=True)


class OtherwiseInInferenceMode(nn.Module):
    def forward(self, x):
        return torch.ones_like(x) * (1 + STEP if torch.is_inference_mode_enabled() else 1.0)


class LosesItsNumbersWithoutGrad(nn.Module):
    def forward(self, x):
        return x if torch.is_grad_enabled() else x / 0


class ReturnsNothing(nn.Module):
    def forward(self, x):
        x.sum()


def read(module, *, modes=("global_on", "no_grad", "inference_mode"), **axes):
    """Return what the meter reads of a module by mode."""
    cells = block(modes, model="m", **{"batch_size": 3} | axes)
    models = {"m": Model(module, lambda size: unlabelled(size, shape=(4,)))}
    records = run(cells, plan=Plan(limit_s=PATIENCE_S), models=models, meters=[NAME])
    return {one.cell.grad_mode: one for one in records if isinstance(one, Measurement | Skipped)}


def test_a_module_that_draws_draws_the_same_in_every_mode():
    found = read(DrawsInEveryCall)
    assert {mode: one.values for mode, one in found.items()} == {
        "global_on": (0,),
        "no_grad": (0,),
        "inference_mode": (0,),
    }
    assert all(one.exact and not one.notes for one in found.values())


def test_a_mode_that_changes_the_result_has_how_far():
    found = read(OtherwiseInInferenceMode)
    assert found["no_grad"].values == (0,)
    relative = STEP / (1 + STEP)  # to the largest number of either side
    assert found["inference_mode"].values == (math.ceil(relative * PPT),)
    assert found["inference_mode"].notes == {"absolute": STEP, "relative": relative}


def test_numbers_that_are_lost_in_a_mode_are_a_failure_and_not_a_difference():
    found = read(LosesItsNumbersWithoutGrad)
    assert found["no_grad"].cause == "failed"
    assert found["no_grad"].reason == (
        "output is not finite where global_on's is, or the other way round"
    )


def test_without_a_tensor_or_a_reference_there_is_a_reason():
    assert read(ReturnsNothing)["no_grad"].reason == NO_TENSOR.format("None")
    (alone,) = read(DrawsInEveryCall, modes=["no_grad"]).values()
    assert alone.reason == "global_on, which outputs are held against, was not run"


def test_equal_tensors_of_any_kind_do_not_differ():
    tensors = {
        "floats": torch.tensor([1.0, math.nan, math.inf]),
        "whole": torch.tensor([3, -4]),
        "truth": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j]),
        "none": torch.empty(0),
    }
    again = {name: tensor.clone() for name, tensor in tensors.items()}
    assert compared(tensors, again) == Difference(0.0, 0.0)


def test_the_largest_differences_are_found_wherever_they_are():
    expected = {"a": torch.tensor([1.0, 100.0]), "b": torch.tensor([2, 4])}
    found = {"a": torch.tensor([1.0, 104.0]), "b": torch.tensor([3, 4])}
    assert compared(expected, found) == Difference(4.0, 0.25)
    assert compared(expected, {"a": found["a"]}) == (
        "its output is a [2], and global_on's is a [2], b [2]"
    )


def test_a_difference_is_never_written_down_as_none():
    assert Difference(1e-30, 1e-30).ppt() == 1
