"""Predictions of CPU cells where a GPU is there, which is asked for beside them or not at all."""

import json

import pytest
import torch
from simulated_gpu.stand_in import in_child
from typer.testing import CliRunner

from gradbench.cli import app

pytestmark = pytest.mark.simulated_cuda

CELL = ("--model", "mlp_tiny", "--workload", "training", "--grad-mode", "global_on")
OPTIMIZERS = ("sgd", "adamw")


def predicted(*devices):
    """Return the predicted peaks by device, those of a step with SGD and of one with AdamW."""
    axes = ("--batch-size", "8", "--optimizer", ",".join(OPTIMIZERS))
    command = ["predict", *CELL, *axes, "--device", ",".join(devices), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, repr(result.exception)
    rows = json.loads(result.stdout)
    return {
        device: [
            row.get("peak_bytes", row.get("reason")) for row in rows if row["device"] == device
        ]
        for device in devices
    }


@in_child
def test_cells_of_the_cpu_are_predicted_alike_beside_those_of_the_gpu_and_alone():
    alone = predicted("cpu")
    assert not torch.cuda.is_initialized()
    both = predicted("cuda", "cpu")
    assert torch.cuda.is_initialized()
    assert both["cpu"] == alone["cpu"]
    assert all(isinstance(peak, int) for peaks in both.values() for peak in peaks), both
    assert both["cuda"][0] == both["cpu"][0]  # with SGD; AdamW steps lists of tensors there
