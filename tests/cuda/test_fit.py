"""The largest batch that fits is predicted to the byte, on a card as large as the budget too."""

import json

import pytest
from simulated_gpu.stand_in import in_child
from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.devices.accelerator import CONTEXT_BYTES

pytestmark = pytest.mark.simulated_cuda

BUDGET = 2**30


def confirmed(monkeypatch, tmp_path, *cells, card_bytes):
    """Return the row of what fits, where a context takes just what is kept for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMULATED_CUDA_BYTES", str(card_bytes))
    monkeypatch.setenv("SIMULATED_CUDA_CONTEXT_BYTES", str(CONTEXT_BYTES))
    arguments = ("predict", *cells, "--grad-mode", "global_on", "--device", "cuda")
    answer = CliRunner().invoke(app, [*arguments, "--fit", "1GiB", "--confirm", "--json"])
    assert answer.exit_code == 0, answer.output
    (row,) = json.loads(answer.stdout)
    assert row["batch_size"] > 1
    assert row["not_counted_inside"] == row["run_otherwise"] == []
    assert row["measured"] == row["peak_bytes"] <= BUDGET < row["next_bytes"]
    return row


@pytest.mark.slow
@in_child
def test_the_batch_that_is_named_and_the_next_one_take_what_is_predicted(monkeypatch, tmp_path):
    cells = ("--model", "cnn_small", "--workload", "training")
    row = confirmed(monkeypatch, tmp_path, *cells, card_bytes=2 * BUDGET)
    assert row["measured_next"] == row["next_bytes"]


@in_child
def test_on_a_card_of_the_budget_the_batch_is_had_and_the_next_one_is_not(monkeypatch, tmp_path):
    cells = ("--model", "mlp_d8_w512", "--workload", "inference")
    row = confirmed(monkeypatch, tmp_path, *cells, card_bytes=BUDGET)
    assert "out of memory" in row["measured_next"]
