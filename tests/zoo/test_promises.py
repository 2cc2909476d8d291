"""The promises of docs/measuring.md, held on modules that people have: a row a module.

A module is a row of `ROWS`, a way in is a row of `WAYS`, and a promise is a test. All is tiny: what
a figure is worth is not asked here, only whether it is one.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from patience import PATIENCE_S
from typer.testing import CliRunner

import gradbench
from gradbench.cli import app
from gradbench.errors import GradbenchError
from gradbench.exit_status import ExitStatus
from gradbench.experiment.matrix import GRAD_MODES, Cell, Matrix
from gradbench.experiment.plan import Plan
from gradbench.gate.decide import decide
from gradbench.memory.predict import Predictor
from gradbench.memory.usage import memory_usage
from gradbench.observation import observe
from gradbench.pytest_plugin.memory_budget import OverBudget
from gradbench.records.measurements import Breakdown, Ended, Environment, Measurement, Skipped
from gradbench.records.run import Run
from gradbench.runner import run
from gradbench.stats.verdicts import Verdict
from gradbench.workloads.grad_modes import MODES
from gradbench.workloads.own_models import from_path
from gradbench.workloads.trees import tensors

pytestmark = [
    pytest.mark.usefixtures("shared_fork_servers"),
    pytest.mark.filterwarnings("ignore"),
]

COMMAND = (sys.executable, "-m", "gradbench")
ENVIRONMENT = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
BATCH, WIDTH = 4, 16
PLAN = Plan(budget_s=0.02, warmup_s=0.002, min_rounds=6, max_rounds=8, limit_s=PATIENCE_S)
EXACT = ("peak_allocated", "first_peak_allocated", "saved_for_backward", "leaked", "breakdown")
TIMED = ("step_time", "latency")


@dataclass(frozen=True)
class Row:
    """A module of `zoo.modules`, and what is known of it."""

    name: str
    workload: str = "inference"
    steps: tuple[str, ...] = GRAD_MODES  # modes in which it can be stepped
    note: str = ""  # that its figures must bear
    cause: str = "failed"  # why it cannot be stepped in the others
    words: str = ""  # in the reason
    unseen: str = ""  # words for why no meter sees its bytes

    @property
    def path(self) -> str:
        return f"zoo.modules:{self.name}"

    @property
    def id(self) -> str:
        return f"{self.name}-{self.workload}"


ON = ("global_on",)
TRAINED = {"workload": "training", "steps": ON, "cause": "cannot_train", "words": "require grad"}
ROWS = (
    Row("Plain"),
    Row("Plain", **TRAINED),
    Row("Lone"),
    Row("READY"),
    Row("Rotary", **TRAINED),
    Row("Growing"),
    Row("Bounded"),
    Row("Carrying", **TRAINED),
    Row("Stepping"),
    Row("Dropping"),
    Row("Averaging", **TRAINED),
    Row("SwitchesOff", note="grad_left"),
    Row("Serving"),
    Row("Particular", steps=ON, words="mat1 and mat2"),
    Row("Particular", workload="training", steps=ON, words="mat1 and mat2"),
    Row("Hungry", steps=(), cause="out_of_memory"),
    Row("Quits", steps=GRAD_MODES[:3], words="SystemExit: enough of this"),
    Row("TrainsItself"),
    Row("TrainsItself", **TRAINED),
    Row("Fixed"),
    Row("Fixed", workload="training", steps=(), cause="impossible", words="no parameters to train"),
    Row("frozen", workload="training", steps=(), words="require grad"),
    Row("Complex"),
    Row("Complex", **TRAINED),
    Row("Halved"),
    Row("double"),
    Row("MixedDtypes"),
    Row("Graph"),
    Row("SparseGradients", **TRAINED),
    Row("Lazy", **TRAINED),
    Row("Ragged"),
    Row("FromNumpy"),
    Row("Mapped"),
    Row("Tied"),
    Row("Littering"),
    Row("Greedy", note="model_set"),
    Row("Pooled"),
    Row("Pooled", **TRAINED),
    Row("KeptPool"),
    Row("InTurn"),
    Row("OwnWorker", unseen="in a thread that was there before the step"),
    Row("Raw", unseen="in a thread that was there before the step"),
    Row("Hidden"),
    Row("Functional"),
    Row("Encoder"),
    Row("Recurrent", **TRAINED),
    Row("Looking"),
    Row("Streaming", note="nothing_computed"),
    Row("Silent", note="nothing_computed"),
    Row("Answering"),
    Row("Branching", **TRAINED),
    Row("Promising", note="nothing_computed"),
    Row("Profiling", unseen="it runs torch's profiler itself"),
    Row("Thrifty", **TRAINED),
    Row("Normed", **TRAINED),
    Row("Shadowed", **TRAINED),
    Row("Forgetful", **TRAINED),
    Row("Rewritten"),
    Row("Remembering"),
    Row("Tabled"),
    Row("Tabled", **TRAINED),
    Row("Counting"),
    Row("Selling", **TRAINED),
    Row("Closed"),
    Row("HooksOff"),
    Row("Skeleton", **TRAINED),
    Row("Logging"),
    Row("UnderMode"),
    Row("Weighing"),
    Row("Sorted", **TRAINED),
    Row("Ensemble", **TRAINED),
    Row("Called", **TRAINED),
    Row("Skipping"),
    Row("Local"),
    Row("Curt", **TRAINED),
    Row("Mutating"),
    Row("Strict", note="model_set"),
    Row("Late", **TRAINED),
    Row("Adapting"),
    Row("Pulling"),
    Row("Holding"),
    Row("Borrowing"),
    Row("Talking"),
    Row("scripted"),
    Row("scripted", **TRAINED),
    Row("partly_scripted"),
    Row("Forks"),
    Row("forking", unseen="its TorchScript forks"),
    Row("exported"),
    Row("exported", **TRAINED),
    Row("quantized"),
    Row("refuses", steps=(), words="weights.bin is not here"),
    Row("no_module", steps=(), words="returned str"),
)
QUICK = (
    *("Plain-training", "Growing-inference", "SwitchesOff-inference", "Quits-inference"),
    *("FromNumpy-inference", "OwnWorker-inference", "refuses-inference"),
)
"""Rows for every run of the tests."""
KINDS = (
    *QUICK,
    *("Rotary-training", "SparseGradients-training", "Hidden-inference", "Functional-inference"),
    "Streaming-inference",
)
"""Rows that stand for their kinds."""
IN_CI = (
    *KINDS,
    *("Particular-inference", "Greedy-inference", "Pooled-inference", "Lone-inference"),
)
"""Rows for `-m slow`, which CI runs; the others are for the night: `-m thorough`."""


def marks(row):
    """Return when a row is run, as marks."""
    if row.id in QUICK:
        return []
    return [pytest.mark.slow] if row.id in IN_CI else [pytest.mark.slow, pytest.mark.thorough]


@contextmanager
def settings_as_before():
    """Put back what a module sets that is built in this process."""
    deterministic, dtype = torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_default_dtype(dtype)


@pytest.fixture(autouse=True)
def _settings_as_before():
    with settings_as_before():
        yield


@pytest.fixture(autouse=True)
def _few_batches(monkeypatch):
    """Let a search give up soon where no batch works: each that is tried takes three children."""
    monkeypatch.setattr("gradbench.memory.batch_fit.SMALLEST", (2, 1))


each = pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.id, marks=marks(row)) for row in ROWS],
)


def model_of(row):
    return from_path(row.path, shape=(WIDTH,))


def measured(row, *, modes=GRAD_MODES, meters=(*TIMED, *EXACT, "predicted_peak")):
    """Return a run of the row's cells."""
    matrix = Matrix(
        models=[row.path], workloads=[row.workload], grad_modes=modes, batch_sizes=[BATCH]
    )
    records = run(matrix, plan=PLAN, models={row.path: model_of(row)}, meters=list(meters))
    return Run(row.id, tuple(records), sealed=True)


_RUNS: dict[Row, Run] = {}


@pytest.fixture
def whole(row):
    """The run of all modes, made once for all promises."""
    if row not in _RUNS:
        _RUNS[row] = measured(row)
    return _RUNS[row]


def readings(one):
    found = (*one.outcomes, *one.breakdowns.values())
    return {(o.cell.grad_mode, o.meter): o for o in found}


def exact_values(one):
    return {
        key: o.values if isinstance(o, Measurement) else dict(o.parts)
        for key, o in readings(one).items()
        if key[1] in EXACT and isinstance(o, Measurement | Breakdown)
    }


@each
def test_a_run_comes_to_its_end_with_a_number_or_a_reason_for_each_cell(row, whole):
    assert isinstance(whole.records[-1], Ended)
    found = readings(whole)
    assert set(found) == {
        (mode, meter) for mode in GRAD_MODES for meter in (*TIMED, *EXACT, "predicted_peak")
    }
    for (mode, meter), outcome in found.items():
        if mode in row.steps:
            if meter == "step_time" or (meter == "peak_allocated" and not row.unseen):
                assert isinstance(outcome, Measurement), outcome
        elif meter in ("peak_allocated", "step_time"):
            assert isinstance(outcome, Skipped), outcome
            assert outcome.cause == row.cause
            assert row.words in outcome.reason
        if isinstance(outcome, Skipped):
            assert "\n" not in outcome.reason
            assert "Traceback" not in outcome.reason
            assert "gradbench/" not in outcome.reason


@each
def test_a_figure_is_the_same_with_that_mode_alone(row, whole):
    alone = [mode for mode in row.steps if mode in ("global_on", "inference_mode")][-1:]
    for mode in alone:
        expected = {key: found for key, found in exact_values(whole).items() if key[0] == mode}
        assert exact_values(measured(row, modes=[mode], meters=EXACT)) == expected


@each
def test_modes_that_set_the_same_flag_read_the_same(row, whole):
    found = exact_values(whole)
    for meter in EXACT:
        assert found.get(("global_off", meter)) == found.get(("no_grad", meter))
    assert not any(
        "unlike_equal_mode" in o.notes for o in whole.outcomes if isinstance(o, Measurement)
    )


@each
def test_equal_code_gates_as_equal_with_modes_in_another_order(row, whole):
    again = measured(row, modes=GRAD_MODES[:0:-1], meters=EXACT)
    result = decide([whole], [again])
    assert {figure.verdict for figure in result.figure_verdicts} <= {Verdict.SAME}


@each
def test_a_graph_excludes_zero_bytes_saved(row, whole):
    if row.workload != "inference" or "global_on" not in row.steps:
        pytest.skip("no inference in a mode that records")
    modes = row.steps[:1] if row.name in SCRIPTED else row.steps
    for mode in modes:
        torch.manual_seed(0)
        with settings_as_before():
            net, x = forward_of(row)
        net.training = False
        with MODES[mode].hold():
            output = net(x)
        graph = any(tensor.requires_grad for _, tensor in tensors(output))
        saved = readings(whole)[mode, "saved_for_backward"]
        if graph and row.name not in (*LEAN, "SwitchesOff"):
            assert isinstance(saved, Skipped) or saved.values[0] > 0
        if not graph and row.name not in BY_ITSELF:
            assert isinstance(saved, Skipped) or saved.values == (0,)


SCRIPTED = ("scripted", "partly_scripted", "forking")
"""Rows that in one process go on as they began: TorchScript keeps to the first graph it ran."""

LEAN = ("Lone",)
"""Modules whose graph keeps nothing but parameters and inputs."""


BY_ITSELF = ("Adapting", "Pulling")
"""Modules that build a graph in each mode, and use it up themselves."""


@each
def test_what_its_figures_do_not_show_is_noted(row, whole):
    noted = [
        set(o.notes) & {"grad_left", "nothing_computed", "model_set", "steps_set"}
        for o in whole.outcomes
        if isinstance(o, Measurement)
        and (o.cell.grad_mode, o.meter)
        in {("global_on", "step_time"), ("global_on", "peak_allocated")}
    ]
    assert noted == [{row.note} if row.note else set()] * len(noted)


@each
def test_what_a_peak_is_made_of_adds_up_and_no_part_is_negative(row, whole):
    found = readings(whole)
    for mode in row.steps:
        breakdown, peak = found[mode, "breakdown"], found[mode, "peak_allocated"]
        if isinstance(breakdown, Breakdown):
            assert sum(breakdown.parts.values()) == peak.values[0]
            assert min(breakdown.parts.values()) >= 0
            assert breakdown.parts["unknown"] == 0 or row.name in STATEFUL


STATEFUL = (
    *("Growing", "Bounded", "Carrying", "Rotary", "Local"),
    *("READY", "quantized", "exported", "scripted", "Mapped", "Tabled", "Counting"),
)
"""Modules with tensors that are no parameters, buffers or inputs, and so are unknown to all."""


@each
def test_a_prediction_is_the_peak_or_says_what_it_does_not_count(row, whole):
    found = readings(whole)
    for mode in row.steps:
        predicted, peak = found[mode, "predicted_peak"], found[mode, "peak_allocated"]
        if row.unseen:
            assert isinstance(peak, Skipped)
            assert row.unseen in peak.reason
            if row.name not in SEEN_ON_FAKES:
                assert row.unseen in predicted.reason
            continue
        if isinstance(predicted, Skipped) or predicted.notes or row.name in INEXACT:
            continue
        assert predicted.values == peak.values


SEEN_ON_FAKES = ("OwnWorker", "Profiling")
"""Modules whose step on fake tensors is seen whole: their threads are of the step there."""

INEXACT = {
    "Mapped": "the rest of the file is mapped, too",
}
"""Modules whose prediction may differ, and why."""


# --- the ways in that run in the caller's own process -----------------------------------------


def in_prediction(row):
    for mode in ("global_on", "no_grad"):
        cell = Cell(model=row.path, workload=row.workload, grad_mode=mode, batch_size=BATCH)
        Predictor("cpu").predict(cell, model_of(row))


def in_fit(row):
    cell = Cell(model=row.path, workload=row.workload, grad_mode="global_on", batch_size=1)
    fit = Predictor("cpu").largest(cell, model_of(row), 2**17)
    assert fit.batch_size == 0 or fit.peak_bytes <= 2**17


def forward_of(row):
    net = model_of(row).build()
    dtype = getattr(net, "dtype", None)
    return net, torch.randn(BATCH, WIDTH, dtype=dtype)


def in_observation(row):
    net, x = forward_of(row)
    with torch.no_grad():
        seen = observe(net, x)
    assert seen.saved_bytes == 0
    assert repr(seen)


def in_usage(row):
    net, x = forward_of(row)
    with torch.no_grad():
        assert memory_usage(net, x).peak_bytes >= 0


def in_comparison(row):
    net, x = forward_of(row)
    call = partial(net, x)
    found = gradbench.compare(call, call, budget_s=0.02)
    assert found.change.point > 0


WAYS: dict[str, Callable[[Row], None]] = {
    "predict": in_prediction,
    "predict --fit": in_fit,
    "observe": in_observation,
    "memory_usage": in_usage,
    "compare": in_comparison,
}
OWN = (FileNotFoundError, SystemExit)


@pytest.mark.parametrize("way", WAYS)
@each
def test_no_error_that_reaches_a_user_is_raised_by_gradbench_itself(row, way):
    """The model's own errors pass; those that gradbench raises on purpose are of its own kind."""
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    try:
        WAYS[way](row)
    except (GradbenchError, gradbench.devices.Unreadable):
        pass
    except BaseException as error:  # noqa: BLE001 # whose it is is the question
        frames = traceback.extract_tb(error.__traceback__)
        # observe looks at each operator, and so stands between the model and torch.
        *_, last = (frame for frame in frames if frame.name != "__torch_function__")
        ours = str(Path(gradbench.__file__).parent)
        assert not last.filename.startswith(ours), "".join(traceback.format_exception(error))
    finally:
        torch.set_grad_enabled(grad)
        torch.set_num_threads(threads)


@each
def test_a_budget_holds_or_fails_in_words_that_name_a_place(row, memory_budget):
    """With no budget at all, a call that allocates fails, or its author's error is raised."""
    net, x = forward_of_row_or_skip(row)
    modules = type(net).__module__
    with torch.no_grad():
        try:
            used = memory_budget(net, x, peak="1 GiB")
        except pytest.fail.Exception as failure:
            assert "\n" not in str(failure)
            return
        except RuntimeError:
            assert row.steps != GRAD_MODES  # in some mode it raises
            return
        if not used.peak_bytes:
            return
        with pytest.raises(OverBudget) as over:
            memory_budget(net, x, peak=0)
    assert "exceeds the limit of 0 B; at the peak: " in str(over.value)
    if modules.startswith("zoo") and used.held:
        assert "modules.py:" in str(over.value)


def forward_of_row_or_skip(row):
    try:
        return forward_of(row)
    except (FileNotFoundError, GradbenchError) as error:
        pytest.skip(f"it cannot be built: {error}")


@pytest.mark.slow
@pytest.mark.thorough
def test_the_command_compare_ends_with_a_verdict_or_a_reason_for_each_module(tmp_path):
    """A repository of the modules, compared with its own commit: equal code, and one command."""
    source = Path(__file__).parent / "modules.py"
    (tmp_path / "people_have.py").write_text(source.read_text("utf-8"), "utf-8")
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=e@e", "commit", "-qm", "modules"],
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    names = dict.fromkeys(row.name for row in ROWS if row.id in KINDS)
    models = [f"people_have:{name}" for name in names]
    chosen = [argument for model in models for argument in ("--model", model)]
    chosen += ["--input", f"{BATCH},{WIDTH}", "--workload", "inference", "--grad-mode", "global_on"]
    ended = subprocess.run(
        [*COMMAND, "compare", "--base", "HEAD", "--processes", "3", "--all", "--json", *chosen],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode in (0, 3), ended.stderr[-2000:]
    assert "Traceback" not in ended.stderr
    found = json.loads(ended.stdout)
    said = {one["cell"]["model"] for one in (*found["verdicts"], *found["not_compared"])}
    assert said == {f"people_have.{name}" for name in names}
    assert all("\n" not in one["reason"] for one in found["not_compared"])


# --- what is not made does not pass -----------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--meter", "step_time", "--no-semantics", "--budget", "0.1"],
        ["predict"],
        ["predict", "--fit", "1MiB"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_where_nothing_is_measured_the_command_says_so_by_its_status(
    arguments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    chosen = ["--model", "zoo.modules:refuses", "--input", "4,16", "--workload", "inference"]
    chosen += ["--grad-mode", "no_grad"]
    ended = CliRunner().invoke(app, [*arguments, *chosen, "--preset", "tiny"])
    assert ended.exit_code == ExitStatus.NOTHING_MEASURED, ended.output
    assert isinstance(ended.exception, SystemExit)
    assert "Traceback" not in ended.output


def test_what_a_module_makes_when_it_is_imported_is_not_in_its_peak():
    row = Row("Plain")
    found = readings(measured(row, modes=["no_grad"], meters=["peak_allocated", "breakdown"]))
    parameters = 4 * (WIDTH * 32 + 32 + 32 * 4 + 4)
    assert found["no_grad", "peak_allocated"].values[0] < parameters + 4096
    assert found["no_grad", "breakdown"].parts["parameters"] == parameters


def test_a_ready_module_is_used_as_it_stands_and_left_as_it_is():
    from zoo import modules

    before = modules.READY.first.weight.clone()
    in_prediction(Row("READY"))
    in_usage(Row("READY"))
    assert modules.READY.first.weight.equal(before)
    assert type(modules.READY.first.weight.data) is torch.Tensor


def test_rounds_survive_a_kill():
    path = "zoo.modules:Sleeper"
    model = from_path(path, shape=(WIDTH,))
    cells = Matrix(models=[path], grad_modes=["no_grad"], batch_sizes=[BATCH])
    plan = replace(
        PLAN, limit_s=6, budget_s=60, max_rounds=4000, warmup_s=0.01, precision_long=1e-9
    )
    outcomes = [
        r
        for r in run(cells, plan=plan, models={path: model}, meters=["step_time"])
        if isinstance(r, Measurement | Skipped)
    ]
    (outcome,) = outcomes
    assert isinstance(outcome, Measurement), outcome
    assert outcome.notes["stopped_by"] == "limit"
    assert len(outcome.values) >= 1


def test_the_zoo_is_in_json():
    """Notes and reasons of the oddest models can be written down."""
    if not _RUNS:
        pytest.skip("no model was measured before it")
    for one in _RUNS.values():
        for record in one.records:
            if not isinstance(record, Environment):
                json.dumps(getattr(record, "notes", {}))
