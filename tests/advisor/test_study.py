"""A study of real models: a run that is sealed, findings with cures, batches that fit, a screen."""

import re
import threading
from dataclasses import replace

import pytest
import torch
from batches import unlabelled
from patience import PATIENCE_S
from rich.console import Console
from torch import nn

import gradbench
from gradbench import MODELS, Cell, Model, Store
from gradbench.advisor import Question, study
from gradbench.advisor.advised import Advised, Example
from gradbench.advisor.findings import look_at
from gradbench.advisor.study import METERS
from gradbench.advisor.trials import in_turns
from gradbench.analysis.advice import Advice
from gradbench.errors import BadModel
from gradbench.experiment.plan import Plan
from gradbench.report.advice import advice_html
from gradbench.runner import host_system
from gradbench.terminal.advice_screen import COLUMNS, advice_screen
from gradbench.workloads.trees import Batch

pytestmark = pytest.mark.usefixtures("shared_fork_servers")

CELL = Cell(model="mlp_d1_w8", workload="inference", grad_mode="no_grad", batch_size=4)
PLAN = Plan(budget_s=0.2, warmup_s=0.01, limit_s=PATIENCE_S)


@pytest.fixture(scope="module")
def studied(tmp_path_factory, shared_fork_servers):
    said = []
    store = Store(tmp_path_factory.mktemp("results"))
    question = Question(cell=CELL, model=MODELS[CELL.model], plan=PLAN, memory_bytes=2**20)
    return study(question, store, say=said.append), store, said


def screen(advice):
    console = Console(width=COLUMNS, color_system=None)
    with console.capture() as capture:
        console.print(advice_screen(advice))
    return capture.get()


def test_a_study_is_a_sealed_run_of_one_block_with_a_number_for_each_meter(studied):
    found, store, _ = studied
    run = store.load_all()[0][0]
    assert run.sealed
    assert run.name == found.run.name
    assert {cell.grad_mode for cell in found.cells} == set(gradbench.MODES)
    assert set(run.header.meters) == set(METERS)
    assert len(run.done) == len(run.header.cells) * len(METERS)


def test_the_largest_batches_are_those_of_a_fit(studied):
    found, _, _ = studied
    batches = {one.purpose: one.fit.batch_size for one in found.batches}
    weights, sample = (8 * 8 + 8 + 8 * 10 + 10) * 4, (8 * 4 + 8)
    adds = (8 + 10) * 4  # the last layer's input and output
    assert batches["inference, grad left on"] == (2**20 - weights) // (sample + adds)
    best, *_ = (size for purpose, size in batches.items() if purpose.startswith("inference, "))
    assert best >= batches["inference, grad left on"] >= batches["training"] > 0


def test_its_screen_has_eighty_columns_and_every_answer(studied):
    found, _, said = studied
    shown = screen(Advice(found))
    assert max(map(len, shown.splitlines())) <= COLUMNS
    assert "…" not in shown
    for words in ("outputs ", "sure ", "found ", "batch ", "try "):
        assert any(line.startswith(words) for line in shown.splitlines()), words
    assert "the same to the bit in all modes" in shown
    assert any("looking at the model" in words for words in said)


def test_its_command_is_one_line_that_can_be_copied_however_long(studied):
    found, _, _ = studied
    thorough = f"{found.thorough} --prompt {'1' * COLUMNS}"
    shown = repr(Advised(Advice(replace(found, thorough=thorough))))
    assert shown.splitlines()[-1] == thorough
    assert thorough.startswith("gradbench run --model mlp_d1_w8 --workload inference,training")


def test_a_notebook_shows_the_modes_in_a_table_with_a_number_in_each_column(studied):
    found, _, _ = studied
    page = str(advice_html(Advice(found)))
    assert "the same to the bit in all modes" in page
    (body,) = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    assert len(rows) == len(found.cells)
    for row in rows:
        numbers = re.findall(r"<td [^>]*>\s*([^<]*?)\s*</td>", row)
        assert len(numbers) == 5
        assert all(numbers)


class Traps(nn.Module):
    """Builds a graph in spite of the mode, keeps a tensor, starts a thread."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.kept = None

    def forward(self, x):
        self.kept = x * 2
        thread = threading.Thread(target=lambda: x + 1)
        thread.start()
        thread.join()
        with torch.enable_grad():
            return self.norm(self.inner(x))


class Frozen(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        self.requires_grad_(False)


class Leaves(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x):
        torch.set_grad_enabled(not torch.is_grad_enabled())
        return super().forward(x)


@pytest.fixture
def here(monkeypatch):
    """Let what a measuring process does be done in this one, which keeps its settings."""
    monkeypatch.setattr(host_system, "bind", lambda _: None)
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(grad)


def findings(module, monkeypatch):
    """Return what is found in a module, by what it says; this process keeps its settings."""
    monkeypatch.setattr(host_system, "bind", lambda _: None)
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    model = Model(module, lambda size: unlabelled(size, shape=(4,)))
    try:
        return {one.what: one for one in look_at(CELL, model, PLAN)}
    finally:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)


def test_what_costs_or_breaks_is_found_with_its_line_and_its_cure(monkeypatch):
    found = findings(Traps, monkeypatch)
    train = found["1 BatchNorm1d is in train mode as the model is built"]
    assert "eval()" in train.cure
    graph = found["a graph is built under no_grad"]
    assert graph.line.startswith("test_study.py:")
    assert "enable_grad" in graph.cure
    (left,) = (one for what, one in found.items() if "an evaluation in inference_mode" in what)
    assert "leaves (model) Traps.kept (inference tensor, " in left.what
    assert left.what.endswith("a training step after it works all the same")
    thread = next(
        one for what, one in found.items() if what.startswith("another thread works with grad on")
    )
    assert thread.line.startswith("test_study.py:")


class Tabled(nn.Linear):
    """Multiplies by a table that is made at the first call."""

    def __init__(self):
        super().__init__(4, 4)
        self.table = None

    def forward(self, x):
        if self.table is None:
            self.table = torch.ones(4)
        return super().forward(x) * self.table


def test_an_evaluation_after_which_training_fails_is_found_in_torchs_words(monkeypatch):
    ((what, found),) = findings(Tabled, monkeypatch).items()
    left = "an evaluation in inference_mode leaves (model) Tabled.table (inference tensor, 16 B)"
    assert what.startswith(f"{left}, and training after it fails: Inference tensors cannot be")
    assert "no_grad" in found.cure


def test_frozen_parameters_are_found(monkeypatch):
    (found,) = findings(Frozen, monkeypatch)
    assert found == "no parameter requires grad, so nothing is recorded in any mode"


def test_a_mode_that_is_left_switched_is_found(monkeypatch):
    found = findings(Leaves, monkeypatch)
    (left,) = (one for what, one in found.items() if "left with grad off" in what)
    assert left.line.startswith("test_study.py:")
    assert "with statement" in left.cure


def test_nothing_is_found_in_a_model_without_traps(monkeypatch):
    assert findings(lambda: nn.Linear(4, 4), monkeypatch) == {}


def test_a_changed_step_takes_turns_with_the_step_as_it_is(here):
    plain = replace(CELL, model="cnn_d1_w4_r8", grad_mode="inference_mode")
    model, changed = MODELS[plain.model], replace(plain, memory_format="channels_last")
    (turns,) = in_turns(plain, model, PLAN, changed=changed)
    assert len(turns.plain_ns) == len(turns.changed_ns) >= PLAN.min_rounds
    assert min(*turns.plain_ns, *turns.changed_ns) > 0


class Whole(nn.Linear):
    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise ValueError("no halves")
        return super().forward(x)


def test_a_change_with_which_the_step_raises_says_so(here):
    model = Model(lambda: Whole(4, 4), lambda size: unlabelled(size, shape=(4,)))
    plain = replace(CELL, model="m", grad_mode="inference_mode")
    (refused,) = in_turns(plain, model, PLAN, changed=replace(plain, autocast="bfloat16"))
    assert "ValueError: no halves" in refused.reason


def test_an_example_makes_batches_of_other_sizes_of_its_own_samples():
    example = Example.of(Batch((torch.tensor([[1], [2]]),), {"scale": torch.tensor(3), "n": 5}))
    assert (example.size, example.device) == (2, "cpu")
    larger = example(5)
    assert larger.args[0].tolist() == [[1], [2], [1], [2], [1]]
    assert (larger.kwargs["scale"].item(), larger.kwargs["n"]) == (3, 5)
    assert example(2) is example.batch


def test_an_example_without_samples_or_a_module_is_refused_in_one_line():
    with pytest.raises(BadModel, match="no tensor with a dimension for its samples"):
        Example.of(Batch((torch.tensor(3),)))
    with pytest.raises(BadModel, match="advise takes a module"):
        gradbench.advise(torch.relu, torch.zeros(1))
    with pytest.raises(BadModel, match="the batch holds no sample"):
        gradbench.advise(nn.Linear(8, 2), torch.zeros(0, 8))


class Parallel(nn.parallel.DistributedDataParallel):
    """Stands for one that was made in a process group."""

    def __init__(self):
        nn.Module.__init__(self)


def test_a_module_that_works_with_other_processes_is_refused_before_a_copy_waits_for_them():
    with pytest.raises(BadModel, match=r"Parallel works with other processes.*inference_ddp"):
        gradbench.advise(nn.Sequential(Parallel()), torch.zeros(1, 8))
