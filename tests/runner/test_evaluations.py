"""An evaluation before training: which modes it can use, and what it leaves in the model."""

import re

import pytest
import torch
from batches import unlabelled
from patience import PATIENCE_S
from rich.console import Console
from torch import nn

from gradbench.analysis import evaluations
from gradbench.analysis.run_view import View
from gradbench.experiment.matrix import GRAD_MODES, Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Measurement, Reading, Skipped
from gradbench.records.run import Run
from gradbench.report.page import render
from gradbench.runner import evaluation_pass, run
from gradbench.runner.preflight import DEFAULT_METERS
from gradbench.terminal.run_tables import run_tables
from gradbench.workloads.models import Model

pytestmark = pytest.mark.usefixtures("shared_fork_servers", "measured_here", "collected")

TABLE_BYTES = 16 * 16 * 4  # tokens, a head's size, float32
LEFT = "left_by_evaluation"
NOT_OF_THE_CPU = ("host_time", "device_time", "energy", "peak_requested", "peak_reserved")


@pytest.fixture(scope="module")
def measured():
    cells = Matrix(models=["attention_rotary"], workloads=["evaluate_then_train"], batch_sizes=[2])
    plan = Plan(budget_s=0.05, warmup_s=0.01, limit_s=PATIENCE_S)
    return Run(name="it", records=tuple(run(cells, plan=plan)), sealed=True)


def outcomes(measured, mode):
    found = (one for one in measured.records if isinstance(one, Reading))
    return {one.meter: one for one in found if one.cell.grad_mode == mode}


@pytest.mark.parametrize("mode", GRAD_MODES[:3])
def test_training_works_after_an_evaluation_in_the_modes_that_make_ordinary_tensors(measured, mode):
    found = outcomes(measured, mode)
    assert set(found) == set(DEFAULT_METERS)
    reasons = {name: one for name, one in found.items() if isinstance(one, Skipped)}
    assert reasons.pop("compile_time").cause == "not_applicable"
    assert {one.cause for one in reasons.values()} == {"unreadable"}
    assert not reasons.keys() & {"step_time", "peak_allocated", "predicted_peak", "breakdown"}
    assert found["predicted_peak"].values == found["peak_allocated"].values


def test_training_after_inference_mode_fails_in_torchs_words_in_every_pass(measured):
    found = outcomes(measured, "inference_mode")
    reasons = {(one.cause, one.reason) for name, one in found.items() if name != LEFT}
    ((cause, reason),) = reasons
    assert cause == "cannot_train"
    assert reason.startswith("Inference tensors cannot be saved for backward")
    assert "\n" not in reason


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_what_the_evaluation_left_is_named_by_module_class_and_attribute(measured, mode):
    left = outcomes(measured, mode)[LEFT]
    assert left.values == (4 * TABLE_BYTES,)
    kind = "inference tensors, " if mode == "inference_mode" else ""
    tables = f"RotaryTables.cos, .sin ({kind}{2 * TABLE_BYTES:,} B)"
    assert left.notes == {"made": f"0.rotary {tables}; 2.rotary {tables}"}


def test_a_sentence_says_which_modes_an_evaluation_can_use(measured):
    (sentence,) = evaluations.sentences(View(measured))
    assert "can use `global_on`, `global_off` or `no_grad` before training" in sentence
    assert "not `inference_mode`, which leaves 0.rotary RotaryTables.cos" in sentence
    assert sentence.endswith("Inference tensors cannot be saved for backward.")


def test_table_and_page_name_what_was_left_and_where_training_fails(measured):
    console = Console(width=110, color_system=None, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123 # nobody reads it
    with console.capture() as capture:
        console.print(run_tables(measured, reference="global_on"))
    table = re.sub(r"\s+", " ", capture.get())
    assert "left by the evaluation in inference_mode: 0.rotary RotaryTables.cos" in table
    assert "left by the evaluation in global_on, global_off, no_grad: 0.rotary" in table
    page = render(measured)
    section = page[page.index("Training after an evaluation</h2>") :]
    rows = re.findall(r"<tr>.*?</tr>", section, re.DOTALL)[1:5]
    assert [("works" in row, "fails" in row) for row in rows] == [(True, False)] * 3 + [
        (False, True)
    ]
    assert all("0.rotary RotaryTables.cos" in row for row in rows)


KEPT_FOR_ALL = {}


class Leaving(nn.Module):
    """Leaves something of its evaluation in every way that one may."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("counts", torch.zeros(4))
        self.caches = [{}]

    def eval(self):
        return self  # its statistics go on in evaluation, too

    def forward(self, x):
        hidden = self.norm(self.layer(x))
        self.counts += 1
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.ones(4))
        self.caches[0].setdefault("keys", hidden)
        KEPT_FOR_ALL.setdefault(torch.is_grad_enabled(), torch.ones(6))
        return hidden


def left_by(build, mode):
    model = Model(build, lambda size: unlabelled(size, shape=(4,)))
    cells = Matrix(models=["it"], workloads=["evaluate_then_train"], grad_modes=[mode])
    messages = evaluation_pass.evaluation_block(list(cells), model, Plan(), [LEFT])
    (found,) = (one for one in messages if isinstance(one, Measurement))
    return found


@pytest.mark.parametrize("mode", ["global_on", "inference_mode"])
def test_buffers_caches_statistics_and_what_no_module_holds_are_found(monkeypatch, mode):
    KEPT_FOR_ALL.clear()
    monkeypatch.setattr("gradbench.memory.left_behind.NAMED", 9)
    found = left_by(Leaving, mode)
    line = Leaving.forward.__code__.co_firstlineno + 6
    made = str(found.notes["made"])
    if mode == "inference_mode":
        both = "(model) Leaving.caches[0]['keys'], .mask (inference tensors, 528 B)"
        assert both in made
    else:
        assert "(model) Leaving.caches[0]['keys'] (tensor with its graph, 512 B)" in made
        assert "(model) Leaving.mask (16 B)" in made
    assert f"made by aten::ones in (model) at test_evaluations.py:{line} in forward (24 B)" in made
    changed = "norm BatchNorm1d.running_mean, .running_var, .num_batches_tracked"
    assert changed in str(found.notes["changed"])
    assert "(model) Leaving.counts" in str(found.notes["changed"])


def test_an_evaluation_that_leaves_nothing_reads_0_without_a_note():
    found = left_by(lambda: nn.Linear(4, 4), "inference_mode")
    assert (found.values, found.notes) == ((0,), {})
