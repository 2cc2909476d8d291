"""The experiment as a whole: exactly one outcome each, whatever the steps do."""

import threading
from dataclasses import replace

import jobs
import pytest
import torch
from patience import PATIENCE_S
from torch import nn

import gradbench
from gradbench import Matrix, Measurement, Plan, Skipped
from gradbench.errors import BadModel, GradbenchError, Impossible, StoreError, UnknownName
from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.records.measurements import Ended, Environment, Reading, Started
from gradbench.runner import run
from gradbench.runner.bench import Bench
from gradbench.runner.job_process import JobError, WorkerDied
from gradbench.runner.meters import METERS
from gradbench.runner.preflight import DEFAULT_METERS, check, obstacle, portable
from gradbench.workloads.models import MODELS, Model

pytestmark = pytest.mark.usefixtures("shared_fork_servers")

PLAN = Plan(budget_s=0.05, warmup_s=0.01, limit_s=PATIENCE_S)
MISBEHAVIOURS = (
    "",
    "crash under inference_mode",
    "raise under no grad",
    "hang",
    "out of memory",
)


class Misbehaving:
    """A picklable factory."""

    def __init__(self, when):
        self.when = when

    def __call__(self):
        return jobs.Net(self.when)


def outcomes(records):
    return [r for r in records if isinstance(r, Reading)]


def misbehave(when, *, meters=("step_time",), plan=PLAN, **axes):
    models = {"net": Model(Misbehaving(when), jobs.batch, head="layer")}
    matrix = Matrix(models=["net"], batch_sizes=[2], **axes)
    found = outcomes(run(matrix, plan=plan, models=models, meters=meters))
    return {(o.cell.grad_mode, o.meter): o for o in found}


@pytest.fixture(scope="module")
def records():
    matrix = Matrix(
        models=["mlp_tiny", "cnn_small"],
        workloads=["inference", "training"],
        devices=["cpu", "cuda"],
        batch_sizes=[1],
    )
    return list(matrix), list(run(matrix, plan=PLAN))


def test_every_cell_and_meter_has_exactly_one_outcome(records):
    cells, found = records
    pairs = [(o.cell, o.meter) for o in outcomes(found)]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {(cell, meter) for cell in cells for meter in DEFAULT_METERS}


def test_a_run_says_what_it_does_first_and_where_its_time_went_last(records):
    cells, found = records
    first, second, *_, last = found
    assert isinstance(first, Started)
    assert first.cells == tuple(cells)
    assert isinstance(second, Environment)
    assert isinstance(last, Ended)
    assert {"build", "warm-up", "timing", "memory passes", "harness"} <= last.seconds.keys()
    assert all(seconds >= 0 for seconds in last.seconds.values())


def test_the_environment_has_no_empty_fact(records):
    facts = records[1][1].facts
    assert {"torch", "python", "cpu", "cores", "os", "load_before", "git_commit"} <= facts.keys()
    assert all(fact is not None and fact != "" for fact in facts.values())


def test_rounds_of_a_block_are_pairs(records):
    timed = [
        o
        for o in outcomes(records[1])
        if isinstance(o, Measurement) and o.meter == "step_time" and o.cell.workload == "inference"
    ]
    for model in ("mlp_tiny", "cnn_small"):
        block = [o for o in timed if o.cell.model == model]
        assert [o.cell.grad_mode for o in block] == list(GRAD_MODES)
        assert len({(len(o.values), o.iterations) for o in block}) == 1
        assert min(min(o.values) for o in block) > 0
        assert block[0].notes["stopped_by"] in ("precision", "budget", "rounds")


def test_training_where_nothing_is_recorded_is_torchs_own_words(records):
    refused = [
        o
        for o in outcomes(records[1])
        if o.cell.workload == "training"
        and o.cell.device == "cpu"
        and o.cell.grad_mode != "global_on"
        and METERS[o.meter].about_workload("training")
    ]
    assert {type(o) for o in refused} == {Skipped}
    assert {o.cause for o in refused} == {"cannot_train"}
    assert {o.reason for o in refused} == {
        "element 0 of tensors does not require grad and does not have a grad_fn"
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_here_is_a_reason(records):
    absent = [o for o in outcomes(records[1]) if o.cell.device == "cuda"]
    assert {o.cause for o in absent} == {"unavailable"}


def test_a_crash_is_charged_to_its_cell_and_the_others_are_measured():
    found = misbehave("crash under inference_mode", meters=["step_time", "peak_allocated"])
    for meter in ("step_time", "peak_allocated"):
        assert found["inference_mode", meter].cause == "crashed"
        assert "SIGSEGV" in found["inference_mode", meter].reason
        for mode in GRAD_MODES[:3]:
            assert isinstance(found[mode, meter], Measurement)


def test_an_exception_is_reported_in_its_own_words_and_the_others_are_measured():
    found = misbehave("raise under no grad")
    assert isinstance(found["global_on", "step_time"], Measurement)
    assert found["no_grad", "step_time"].cause == "failed"
    assert found["no_grad", "step_time"].reason == "ValueError: not like this"


def test_an_exception_that_has_no_words_is_a_reason_all_the_same():
    found = misbehave("raise what has no words", grad_modes=["no_grad"])
    assert found["no_grad", "step_time"].reason == (
        "RuntimeError: Mute, whose words cannot be had: ValueError"
    )


def test_a_hang_ends_at_the_limit_and_the_run_goes_on():
    found = misbehave("hang", meters=["step_time", "peak_rss"], plan=replace(PLAN, limit_s=0.5))
    assert {o.cause for o in found.values()} == {"timed_out"}
    assert len(found) == 2 * len(GRAD_MODES)


def test_running_out_of_memory_is_called_by_its_name():
    found = misbehave("out of memory", grad_modes=["no_grad"])
    assert found["no_grad", "step_time"].cause == "out_of_memory"


@pytest.mark.parametrize("meter", ["step_time", "peak_allocated", "peak_rss"])
def test_a_factory_that_fails_is_a_reason_in_every_pass(meter):
    models = {"net": Model(jobs.refuse_to_build, jobs.batch)}
    found = outcomes(run(Matrix(models=["net"]), plan=PLAN, models=models, meters=[meter]))
    assert {(o.cause, o.reason) for o in found} == {("failed", "RuntimeError: no weights here")}
    assert len(found) == 4


def test_a_model_made_on_the_spot_travels_by_value():
    width = 5
    local = Model(lambda: nn.Linear(4, width), jobs.batch)
    matrix = Matrix(models=["mine"], grad_modes=["no_grad"], batch_sizes=[2])
    found = outcomes(
        run(matrix, plan=PLAN, models={**MODELS, "mine": local}, meters=["peak_transient"])
    )
    assert [o.values for o in found] == [(2 * width * 4,)]


def test_a_model_that_cannot_travel_is_found_before_anything_runs():
    lock = threading.Lock()
    with pytest.raises(BadModel, match="cannot be sent to another process"):
        portable("mine", Model(lambda: lock, jobs.batch))


class Refusing:
    """Refuses to be pickled in words of its own."""

    def __call__(self, size):
        return torch.zeros(size, 4)

    def __reduce__(self):
        raise RuntimeError("I stay here")


def test_a_model_that_refuses_to_travel_is_a_line_in_its_words():
    with pytest.raises(BadModel, match="cannot be sent to another process: RuntimeError: I stay"):
        portable("mine", Model(nn.Identity, Refusing()))


def test_names_are_checked_before_the_first_record():
    with pytest.raises(UnknownName, match="did you mean 'mlp_tiny'"):
        next(iter(run(Matrix(models=["mlp_tinny"]))))
    with pytest.raises(UnknownName, match="did you mean 'step_time'"):
        next(iter(run(Matrix(models=["mlp_tiny"]), meters=["steptime"])))
    with pytest.raises(Impossible, match="meters is empty"):
        next(iter(run(Matrix(models=["mlp_tiny"]), meters=[])))
    with pytest.raises(UnknownName, match="unknown device 'cpu:1'"):
        check(Matrix(models=["mlp_tiny"], devices=["cpu:1"]))


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"memory_format": "channels_last"}, "channels_last needs images"),
        ({"threads": 4096}, "may use"),
        ({"workload": "frozen_backbone", "model": "headless"}, "names none"),
        (
            {"workload": "frozen_backbone", "model": "mistaken"},
            "mistaken has no submodule 'nosuch': --head ",
        ),
    ],
)
def test_combinations_that_cannot_be_are_reported_without_running(axes, words):
    tiny = MODELS["mlp_tiny"]
    models = {**MODELS, "headless": replace(tiny, head=None)}
    models["mistaken"] = replace(tiny, head="nosuch")
    cell = Cell(**{"model": "mlp_tiny", "workload": "inference", "grad_mode": "no_grad"} | axes)
    cause, reason = obstacle(cell, models)
    assert cause in ("impossible", "unavailable")
    assert words in reason


def test_many_threads_are_refused_on_a_crowded_machine(monkeypatch):
    monkeypatch.setattr("gradbench.runner.environment.busy_cores", lambda _: 64.0)
    matrix = Matrix(models=["mlp_tiny"], threads=[2], grad_modes=["no_grad"])
    monkeypatch.setattr("gradbench.runner.bench.obstacle", lambda *_: None)
    (found,) = outcomes(run(matrix, plan=PLAN, meters=["step_time"]))
    assert found.cause == "unavailable"
    assert "keep 64.0 busy" in found.reason


def test_a_resumed_run_leaves_out_what_is_done_and_does_not_repeat_its_opening(tmp_path):
    matrix = Matrix(models=["mlp_tiny", "cnn_small"], batch_sizes=[1])
    meters = ["peak_allocated"]
    store = gradbench.Store(tmp_path)
    whole = list(run(matrix, plan=PLAN, meters=meters))
    with store.create() as writer:
        for record in whole[:7]:  # the opening, one block, and one cell of the next
            writer.write(record)
    writer, cut = store.resume("latest")
    with writer:
        rest = list(run(matrix, plan=PLAN, meters=meters, resumed=cut))
        for record in rest:
            writer.write(record)
        path = writer.seal()
    assert not any(isinstance(record, Started) for record in rest)
    assert {o.cell.model for o in outcomes(rest)} == {"cnn_small"}
    finished = gradbench.store.jsonl.load(path)
    assert finished.unfinished() == []
    assert sorted(map(repr, finished.outcomes)) == sorted(map(repr, outcomes(whole)))


@pytest.mark.parametrize("fact", ["torch", "python", "cpu_capability"])
def test_a_run_from_elsewhere_is_not_resumed_here(tmp_path, fact):
    matrix = Matrix(models=["mlp_tiny"])
    start, where, *_ = run(matrix, plan=PLAN, meters=["saved_for_backward"])
    moved = replace(where, facts={**where.facts, fact: "1.0"})
    with gradbench.Store(tmp_path).create() as writer:
        writer.write(start)
        writer.write(moved)
    writer, cut = gradbench.Store(tmp_path).resume("latest")
    with writer, pytest.raises(StoreError, match=rf"{fact} was '1.0', is "):
        list(run(matrix, plan=PLAN, resumed=cut))


def test_a_parent_that_is_gone_is_replaced_for_the_next_pass():
    cells = list(Matrix(models=["mlp_tiny"], grad_modes=["no_grad"]))
    with Bench(plan=PLAN, meters=["saved_for_backward"]) as bench:
        bench._servers["memory"].end()
        ((outcome,),) = bench.measure(cells)
        assert isinstance(outcome, Measurement)


def bench_whose_processes_die(monkeypatch, *, unless):
    """Return a bench in which each process dies that reads the facts of other devices."""
    asked = []

    def run(_self, _job, names, *, limit_s):
        asked.append((names, limit_s))
        if unless.get(len(asked)) != names:
            raise WorkerDied("crashed", "killed by SIGSEGV")
        yield Environment(facts={"host": "here"})

    bench = Bench(plan=replace(PLAN, limit_s=0.01), meters=["step_time"])
    bench._servers["time"] = type("Server", (), {"alive": True, "run": run})()
    return bench, asked


def test_a_death_while_the_facts_are_read_is_tried_again_with_time_enough(monkeypatch):
    """Time of its own: a limit on models of a hundredth of a second is none on us."""
    bench, asked = bench_whose_processes_die(monkeypatch, unless={2: ["cpu", "cuda"]})
    assert bench.environment(["cuda", "cpu"]).facts == {"host": "here"}
    assert [names for names, _ in asked] == [["cpu", "cuda"]] * 2
    assert all(limit_s >= 60 for _, limit_s in asked)


def test_a_device_whose_facts_kill_their_process_is_unavailable_and_the_rest_is_read(monkeypatch):
    bench, _ = bench_whose_processes_die(monkeypatch, unless={3: ["cpu"]})
    facts = bench.environment(["cuda", "cpu"]).facts
    assert facts == {"host": "here", "cuda": "unavailable: killed by SIGSEGV"}


def test_a_machine_whose_facts_cannot_be_read_costs_one_line(monkeypatch):
    bench, _ = bench_whose_processes_die(monkeypatch, unless={})
    with pytest.raises(GradbenchError, match=r"nothing was measured; .* so: killed by SIGSEGV"):
        bench.environment(["cpu"])


def test_a_fault_of_ours_is_a_reason_of_one_line(monkeypatch):
    traceback = 'Traceback (most recent call last):\n  File "a.py", line 3, in f\nKeyError: 1\n'

    def fail(*_, **__):
        raise JobError(traceback)
        yield

    bench = Bench(plan=PLAN, meters=["step_time"])
    bench._servers["time"] = type("Server", (), {"alive": True, "run": fail})()
    (found,) = bench.measure(list(Matrix(models=["mlp_tiny"])))
    assert {o.reason for o in found} == {'gradbench: KeyError: 1 (File "a.py", line 3, in f)'}


def test_cells_that_keep_dying_end_the_block_not_the_run(monkeypatch):
    def die(*_, **__):
        raise WorkerDied("crashed", "killed by SIGSEGV")
        yield

    monkeypatch.setattr("gradbench.runner.fork_server.ForkServer.run", die)
    cells = list(Matrix(models=["mlp_tiny"]))
    bench = Bench(plan=PLAN, meters=["step_time"])
    bench._servers["time"] = type("N", (), {"alive": True, "run": die})()
    (found,) = bench.measure(cells)
    assert [o.cause for o in found] == ["crashed"] * 4
