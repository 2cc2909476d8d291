"""What is compiled for each mode of a block, what that takes, and why it cannot be."""

import os
from pathlib import Path

import pytest
import torch
from batches import unlabelled
from torch import nn

from gradbench import Matrix, Measurement, Plan, Skipped, scratch
from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.runner import run
from gradbench.runner.compilation import CACHE, NOTHING, Compilations, nothing_cached
from gradbench.runner.preflight import obstacle
from gradbench.workloads.models import Model

pytestmark = pytest.mark.usefixtures("shared_fork_servers")

PLAN = Plan(budget_s=0.05, warmup_s=0.01, limit_s=500)


def cell(**axes):
    return Cell(**{"model": "mlp_tiny", "workload": "inference", "grad_mode": "no_grad"} | axes)


class Broken(nn.Module):
    """Its graph breaks between two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


def four_wide(size):
    return unlabelled(size, shape=(4,))


def read(matrix, *, models=None, meters=("compile_time",)):
    models = {"models": models} if models else {}
    found = run(matrix, plan=PLAN, meters=meters, **models)
    return {o.cell.grad_mode: o for o in found if isinstance(o, Measurement | Skipped)}


def test_where_nothing_is_compiled_there_is_no_compile_time_but_a_reason():
    found = read(Matrix(models=["mlp_tiny"], batch_sizes=[1], grad_modes=["no_grad"]))
    assert isinstance(found["no_grad"], Skipped)
    assert (found["no_grad"].cause, found["no_grad"].reason) == (
        "not_applicable",
        "nothing is compiled: compile=off",
    )


@pytest.mark.slow
def test_each_mode_that_sets_other_bits_is_compiled_again_and_the_others_find_it_there():
    """And every graph breaks where the model breaks it: so two functions are compiled."""
    found = read(
        Matrix(models=["broken"], batch_sizes=[2], compile=["default"]),
        models={"broken": Model(Broken, four_wide)},
    )
    notes = {mode: found[mode].notes for mode in GRAD_MODES}
    assert notes["global_on"] == {"graphs": 2, "graph_breaks": 1, "recompilations": 0}
    assert notes["no_grad"] == {"graphs": 0, "graph_breaks": 0, "recompilations": 0}
    for mode in ("global_off", "inference_mode"):
        assert notes[mode]["recompilations"] == notes[mode]["graphs"] == 2
    assert found["global_on"].values[0] > found["no_grad"].values[0]


@pytest.mark.slow
def test_compiled_training_has_checkpoints_and_a_peak():
    (found,) = read(
        Matrix(
            models=["mlp_tiny"],
            workloads=["training"],
            grad_modes=["global_on"],
            batch_sizes=[2],
            compile=["default"],
            checkpointing=["blocks"],
        ),
        meters=("peak_allocated",),
    ).values()
    assert isinstance(found, Measurement), found
    assert "checkpointed" in found.notes


def test_what_was_done_since_is_what_counts():
    earlier, later = Compilations(2, 3, 1), Compilations(5, 4, 1)
    assert later.since(earlier).notes(first=False) == {
        "graphs": 1,
        "graph_breaks": 0,
        "recompilations": 3,
    }
    assert NOTHING.notes(first=True) == {"graphs": 0, "graph_breaks": 0, "recompilations": 0}


def test_the_compiler_finds_an_empty_cache_and_the_user_s_is_as_before(monkeypatch):
    monkeypatch.setenv(CACHE, "mine")
    with nothing_cached([cell()]):
        assert os.environ[CACHE] == "mine"
    with nothing_cached([cell(compile="default")]):
        folder = Path(os.environ[CACHE])
        assert [path.name for path in folder.iterdir()] == [scratch.OWNER]
    assert os.environ[CACHE] == "mine"
    assert not folder.exists()


def test_graphs_are_replayed_where_a_device_has_them():
    cause, reason = obstacle(cell(compile="reduce-overhead"))
    assert cause == "impossible"
    assert reason.startswith("cpu has no graphs of its own that reduce-overhead could replay")
    assert obstacle(cell(compile="max-autotune")) is None


@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_without_a_compiler_of_cpp_the_reason_says_what_to_do(mode, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    cause, reason = obstacle(cell(compile=mode))
    assert cause == "unavailable"
    assert "there is no compiler no-such-compiler here: install one" in reason
    assert obstacle(cell()) is None
