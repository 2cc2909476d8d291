"""Comparisons and budgets where a GPU is: CPU cells beside CUDA cells, and limits that find it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_gpu.stand_in import in_child

from gradbench.comparison.checkouts import Version
from gradbench.comparison.replicate_effort import Replication
from gradbench.comparison.replication import Replicator
from gradbench.errors import Impossible
from gradbench.experiment.matrix import Cell
from gradbench.experiment.model_source import ModelSource

pytestmark = pytest.mark.simulated_cuda

ROOT = Path(__file__).parents[2]
QUICK = Replication(cell_s=0.01, least_rounds=2, warm_up_s=0.01)

ASKS_ON_IMPORT = """
import torch
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STARTED = torch.zeros(1, device=DEVICE)

def make():
    return nn.Linear(16, 10)
"""

BUDGETS = """
import pytest, torch
from torch import nn

@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).cuda()

@pytest.mark.memory_budget(saved=0)
def test_with_a_graph(model):
    model(torch.zeros(8, 64, device="cuda"))

@pytest.mark.memory_budget(saved=0, peak="16 KiB")
def test_without_one(model):
    with torch.inference_mode():
        model(torch.zeros(8, 64, device="cuda"))

@pytest.mark.memory_budget(saved=0, device="cpu")
def test_on_the_wrong_device(model):
    model(torch.zeros(8, 64, device="cuda"))

def test_the_fixture(model, memory_budget):
    x = torch.zeros(8, 64, device="cuda")
    assert memory_budget(model, x, peak="16 KiB").saved_bytes == 8 * 64 * 4
"""


def training(device, model="mlp_tiny"):
    axes = {"grad_mode": "global_on", "optimizer": "adamw", "device": device}
    return Cell(model=model, workload="training", batch_size=8, **axes)


def replicated(cells, paths, sources):
    versions = [
        Version(name=name, python=sys.executable, paths=paths, tree=paths[0])
        for name in ("base", "candidate")
    ]
    replicator = Replicator(*versions, replication=QUICK, sources=sources)
    replicator.examine(cells)
    for _ in range(2):
        replicator.replicate(cells)
    return replicator.results


@in_child
def test_cpu_cells_that_train_are_compared_beside_cuda_cells():
    cells = [training("cuda"), training("cpu")]
    found = replicated(cells, (ROOT,), {})
    assert (found.failures, found.apart) == ({}, {})
    made = {cell: len(replicates) for cell, replicates in found.replicates.items()}
    assert made == dict.fromkeys(cells, 2)


@in_child
def test_a_module_that_starts_cuda_when_it_is_imported_is_compared_on_both(tmp_path):
    (tmp_path / "asks.py").write_text(ASKS_ON_IMPORT)
    cells = [training(device, "asks:make") for device in ("cuda", "cpu")]
    found = replicated(
        cells, (tmp_path, ROOT), {"asks:make": ModelSource(build="asks:make", input=("B,8,16",))}
    )
    assert (found.failures, found.apart) == ({}, {})
    assert set(found.replicates) == set(cells)


def test_budgets_hold_the_device_that_a_test_works_on(tmp_path):
    (tmp_path / "test_budgets.py").write_text(BUDGETS)
    plugin = ["-p", "gradbench.pytest_plugin.cells", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", *plugin, "test_budgets.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = ended.stdout
    assert "PASSED test_budgets.py::test_without_one" in lines, lines + ended.stderr
    assert "PASSED test_budgets.py::test_the_fixture" in lines
    assert re.search(r"4,096 B\) saved for backward exceed the limit of 0 B", lines), lines
    assert "the call works on cuda:0" in lines
    assert "2 failed, 2 passed" in lines


@in_child
def test_a_gpu_that_takes_one_process_is_refused_and_no_regression(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SIMULATED_CUDA_COMPUTE_MODE", "3")
    with pytest.raises(Impossible, match=r"takes one process at a time.*nvidia-smi -c DEFAULT"):
        replicated([training("cuda")], (ROOT,), {})
