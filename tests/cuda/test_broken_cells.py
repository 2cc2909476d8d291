"""A whole run on a GPU where one cell runs out of memory and another breaks the device for good."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradbench.exit_status import ExitStatus
from gradbench.records.measurements import Measurement, Skipped
from gradbench.store.jsonl import load

pytestmark = pytest.mark.simulated_cuda

ROOT = Path(__file__).parents[2]
METERS = ("step_time", "host_time", "saved_for_backward", "peak_requested")
BROKEN = "inference_mode"
MODES = ("no_grad", BROKEN)
NETS = """
import os
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        if torch.is_inference_mode_enabled():
            self.fail(x)
        return torch.relu(self.layer(x)) + 1

    def fail(self, x):
        pass


class Greedy(Net):
    def fail(self, x):
        torch.empty(3 * 2**30, dtype=torch.uint8, device=x.device)  # of a card with 2 GiB


class Asserting(Net):
    def fail(self, x):
        os.environ["SIMULATED_CUDA_FAIL"] = "cudaLaunchKernel=710@1"  # an index out of bounds, say
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The command's end, and what it recorded."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "nets.py").write_text(NETS)
    models = ("--model", "nets:Greedy,nets:Asserting,nets:Net", "--input", "8,16")
    axes = ("--workload", "inference", "--device", "cuda", "--grad-mode", ",".join(MODES))
    options = ("--budget", "0.1", "--no-semantics", "--meter", ",".join(METERS))
    command = subprocess.run(
        [sys.executable, "-m", "gradbench", "run", *models, *axes, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    (file,) = (folder / "results").glob("*.jsonl")
    return command, load(file)


def outcomes(run, model, mode):
    return {
        outcome.meter: outcome
        for outcome in run.outcomes
        if outcome.cell.model.endswith(model) and outcome.cell.grad_mode == mode
    }


def test_the_run_goes_on_to_its_end_without_a_traceback(ended):
    command, run = ended
    assert command.returncode == ExitStatus.OK, command.stderr
    assert "Traceback" not in command.stdout + command.stderr
    assert run.ended is not None
    assert not [o for o in run.outcomes if isinstance(o, Skipped) and "Traceback" in o.reason]


@pytest.mark.parametrize(
    ("model", "cause", "words"),
    [
        ("Greedy", "out_of_memory", "OutOfMemoryError: CUDA out of memory"),
        ("Asserting", "crashed", "device-side assert triggered"),
    ],
)
def test_the_cell_that_broke_has_its_reason_at_every_meter(ended, model, cause, words):
    broken = outcomes(ended[1], model, BROKEN)
    assert broken.keys() == set(METERS)
    for outcome in broken.values():
        assert isinstance(outcome, Skipped), outcome
        assert outcome.cause == cause
        assert words in outcome.reason


@pytest.mark.parametrize("model", ["Greedy", "Asserting", "Net"])
def test_every_other_cell_has_its_numbers(ended, model):
    for mode in MODES:
        if (model, mode) in (("Greedy", BROKEN), ("Asserting", BROKEN)):
            continue
        found = outcomes(ended[1], model, mode)
        assert found.keys() == set(METERS)
        assert all(isinstance(outcome, Measurement) for outcome in found.values()), found
