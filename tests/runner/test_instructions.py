"""Instructions counted under valgrind: what is asked, what is read, and every way to have none."""

import json
import os
import pickle
import platform
import shutil
import sys
from contextlib import contextmanager

import jobs
import pytest
from patience import PATIENCE_S

from gradbench import Matrix, Measurement, Plan, Skipped
from gradbench.devices import Unreadable
from gradbench.devices.cuda import CUDA
from gradbench.runner import callgrind, instructions_pass, run
from gradbench.runner.attempts import Refusal
from gradbench.runner.callgrind import Requests, read_dumps
from gradbench.runner.instructions_pass import ChildReport, count_block, figure_of
from gradbench.runner.meters import METERS
from gradbench.runner.preflight import DEFAULT_METERS, portable
from gradbench.runner.visits import Start, VisitedArm
from gradbench.workloads.models import MODELS, Model

PLAN = Plan(limit_s=PATIENCE_S)
on_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="requests are x86-64 code")


def block(**axes):
    return list(Matrix(**{"models": ["mlp_tiny"], "batch_sizes": [1]} | axes))


def counted(cells, model=MODELS["mlp_tiny"], plan=PLAN):
    """Return the outcomes of a block's cells in their order, one each."""
    found = [
        message
        for message in count_block(cells, portable("m", model), plan, ["instructions"])
        if isinstance(message, Measurement | Skipped)
    ]
    assert [o.cell for o in found] == cells
    assert {o.meter for o in found} == {"instructions"}
    return found


def assert_unreadable(found, words):
    assert {type(o) for o in found} == {Skipped}
    assert {o.cause for o in found} == {"unreadable"}
    assert len({o.reason for o in found}) == 1
    assert words in found[0].reason


@pytest.fixture
def instead(monkeypatch):
    """Return a function that has plain Python run some code where valgrind would run ours."""

    def replace(code):
        monkeypatch.setattr(callgrind, "command", lambda _: [sys.executable, "-c", code])

    return replace


def test_they_are_counted_only_when_asked_for():
    assert "instructions" not in DEFAULT_METERS
    assert set(METERS) - set(DEFAULT_METERS) == {"instructions"}
    assert METERS["instructions"].exact


# Valgrind


@on_x86_64
def test_python_runs_under_callgrind_which_counts_nothing_yet(monkeypatch):
    monkeypatch.setattr(shutil, "which", "/usr/bin/{}".format)
    first, *options, last = callgrind.command(["python"])
    assert (first, last) == ("/usr/bin/valgrind", "python")
    assert {"--tool=callgrind", "--instr-atstart=no"} <= set(options)


@on_x86_64
def test_without_valgrind_there_is_a_reason(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert_unreadable(counted(block()), "valgrind is not on the PATH: install it")


def test_on_another_processor_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert_unreadable(counted(block()), "known for x86_64: not riscv64")


@on_x86_64
def test_outside_of_valgrind_requests_do_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask = Requests()
    for request in (ask.start, ask.zero, ask.dump("0 step")):
        assert request() == 0
    assert list(tmp_path.iterdir()) == []


def write_dump(folder, number, *, name="0 step", total=None, trigger="Client Request"):
    lines = ["version: 1", f"desc: Trigger: {trigger}: {name}", "events: Ir", "fn=(1) main", "1 9"]
    lines += [f"totals: {total}"] if total is not None else []
    suffix = f".{number}" if number else ""
    (folder / f"dump{suffix}").write_text("\n".join(lines) + "\n", "utf-8")


def test_dumps_are_read_by_name_in_the_order_they_were_written(tmp_path):
    for number in (10, 9, 2, 1):
        write_dump(tmp_path, number, name="0 step", total=number)
    write_dump(tmp_path, 3, name="12 empty", total=30)
    assert read_dumps(tmp_path) == {"0 step": [1, 2, 9, 10], "12 empty": [30]}


def test_a_dump_that_was_cut_short_and_the_one_at_the_end_count_for_nothing(tmp_path):
    write_dump(tmp_path, 1, total=None)
    write_dump(tmp_path, 2, trigger="Program termination", total=5)
    write_dump(tmp_path, 0, trigger="Program termination", total=6)
    (tmp_path / "dump.3").write_bytes(b"")
    assert read_dumps(tmp_path) == {}


# A block


def test_on_cuda_there_is_a_reason_before_anything_starts(instead):
    instead("raise SystemExit('started')")
    assert_unreadable(counted(block(devices=["cuda"])), "CUDA does not run under valgrind")


def test_the_cuda_device_refuses_valgrind_itself():
    with pytest.raises(Unreadable, match="does not run under valgrind"):
        CUDA("cuda").check_valgrind()


def test_threads_that_wait_by_spinning_are_refused(instead):
    instead("raise SystemExit('started')")
    assert_unreadable(counted(block(threads=[2])), "2 threads wait for one another by spinning")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit('no such tool')", "ended early with exit status 1 (no such tool)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "killed by SIGILL"),
        ("pass", "ended early with exit status 0"),
    ],
)
def test_when_valgrind_fails_every_cell_has_the_reason(instead, code, words):
    instead(code)
    assert_unreadable(counted(block()), f"the process under valgrind: {words}")


def test_a_valgrind_that_does_not_start_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(callgrind, "command", lambda _: [str(tmp_path / "valgrind")])
    assert_unreadable(counted(block()), "could not be started: [Errno 2]")


def test_a_hang_ends_at_the_limit(instead):
    instead("import time; time.sleep(600)")
    found = counted(block(), plan=Plan(limit_s=0.5))
    assert_unreadable(found, "killed at its time limit of 0.5 s")


def test_outside_of_callgrind_there_are_no_counts(instead):
    instead("import gradbench.runner.instructions_pass as i; i.main()")
    found = counted(block(grad_modes=["no_grad"]))
    assert_unreadable(found, "ended early with exit status 0")


COUNT_WITH_FAKE_REQUESTS = "import jobs; jobs.count_with_fake_requests()"


@pytest.fixture
def counting(servers, monkeypatch):
    """Count with fake requests where valgrind would count, in a fork of a loaded process."""

    def counted_in(_command, folder, job, *, limit_s, **_):
        list(servers("time").run(jobs.count_in, str(folder), job, limit_s=limit_s))
        return "ended early with exit status 0"

    monkeypatch.setattr(callgrind, "command", lambda _: ["valgrind"])
    monkeypatch.setattr(instructions_pass, "_run", counted_in)


@pytest.mark.usefixtures("counting")
def test_a_step_s_count_is_less_what_counting_costs():
    for index, found in enumerate(counted(block())):
        assert (found.values, found.iterations, found.unit) == (
            (1000 * (index + 1),),
            1,
            "instructions",
        )
        assert found.exact
        assert found.notes["steps"] == instructions_pass.COUNTED_ROUNDS
        assert found.notes["cpu_capability"]


@pytest.mark.usefixtures("counting")
def test_training_where_nothing_is_recorded_is_refused_in_torchs_words():
    first, *others = counted(block(workloads=["training"]))
    assert isinstance(first, Measurement)
    assert {o.cause for o in others} == {"cannot_train"}
    assert {o.reason for o in others} == {
        "element 0 of tensors does not require grad and does not have a grad_fn"
    }


@pytest.mark.usefixtures("counting")
def test_an_exception_is_reported_in_its_own_words_and_the_others_are_counted():
    model = Model(jobs.raises_under_no_grad, jobs.batch)
    first, *others = counted(block(), model)
    assert isinstance(first, Measurement)
    assert {(o.cause, o.reason) for o in others} == {("failed", "ValueError: not like this")}


@pytest.mark.usefixtures("counting")
def test_a_factory_that_fails_is_a_reason():
    found = counted(block(), Model(jobs.refuse_to_build, jobs.batch))
    assert {(o.cause, o.reason) for o in found} == {("failed", "RuntimeError: no weights here")}


@pytest.mark.slow
def test_a_run_that_is_asked_for_them_has_one_outcome_each(instead):
    instead(COUNT_WITH_FAKE_REQUESTS)
    cells = block(workloads=["inference", "training"], memory_formats=["contiguous"])
    records = run(cells, plan=PLAN, meters=["instructions"])
    found = [o for o in records if isinstance(o, Measurement | Skipped)]
    assert [o.cell for o in found] == cells
    assert [type(o) for o in found] == [Measurement] * 5 + [Skipped] * 3


def test_what_was_counted_before_the_end_is_kept():
    counts = {"0 step": [2000] * 14, "0 empty": [100] * 14, "1 step": [2000], "1 empty": [100]}
    sent = ChildReport({}, {})
    assert figure_of(0, counts, sent, "was killed").value == 1900
    assert figure_of(1, counts, sent, "was killed").reason == (
        "the process under valgrind: was killed"
    )


def test_rounds_before_steps_settle_and_single_costly_steps_do_not_count():
    steps = [9000, 5000, 3000, *[2000, 2002, 2001] * 3, 90_000, 2001]
    counts = {"0 step": steps, "0 empty": [150, 140, 130, *[100] * 11]}
    figure = figure_of(0, counts, ChildReport({}, {}), "")
    assert figure.value == 1901
    assert (figure.notes["least"], figure.notes["most"]) == (1900, 89_900)


# Inside the process


class FakeArm:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def step(self):
        self.log.append(f"{self.name} steps")

    @contextmanager
    def held(self):
        self.log.append(f"enter {self.name}")
        yield
        self.log.append(f"leave {self.name}")


class LoggedRequests:
    def __init__(self, log):
        self.start, self.zero = (lambda: log.append("start")), (lambda: log.append("zero"))
        self._log = log

    def dump(self, name):
        return lambda: self._log.append(f"dump {name}")


def test_a_visit_counts_one_step_inside_the_mode_after_one_that_is_not_counted():
    log = []
    instructions_pass.Counter.of(FakeArm("arm", log), 3, LoggedRequests(log)).visit()
    assert log == [
        "enter arm",
        "arm steps",
        "zero",
        "arm steps",
        "dump 3 step",
        "zero",
        "dump 3 empty",
        "leave arm",
    ]


class Still:
    """A state that nothing changes, and numbers that nobody draws."""

    drawn_from = ()

    def forget(self):
        return False

    def put_back(self, *, forgetting=True):
        pass

    def used(self):
        return self


def test_every_round_visits_every_mode_that_runs_and_counting_starts_after_warm_up(monkeypatch):
    log, sent = [], []
    monkeypatch.setattr(instructions_pass, "settle", lambda _: None)
    monkeypatch.setattr(instructions_pass.gc, "disable", lambda: log.append("no collector"))

    def first_steps(cell, *, count):
        if cell.grad_mode == "global_off":
            return Refusal("failed", "x")
        log.append(f"{count} steps")
        return VisitedArm(FakeArm(cell.grad_mode, log), Still(), Still())

    begun = object.__new__(Start)
    begun.first_steps, begun.numbers = first_steps, Still()
    monkeypatch.setattr(instructions_pass, "start", lambda *_: begun)
    instructions_pass.count(block(), None, PLAN, ask=LoggedRequests(log), tell=sent.append)
    rounds = instructions_pass.SETTLING_ROUNDS + instructions_pass.COUNTED_ROUNDS
    assert log[:5] == ["20 steps"] * 3 + ["no collector", "start"]
    assert [entry for entry in log if entry.startswith("dump") and "step" in entry] == [
        "dump 0 step",
        "dump 2 step",
        "dump 3 step",
    ] * rounds
    assert sent[1:] == [{"cell": 1, "refused": Refusal("failed", "x")}]


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "x" * 1000)
    monkeypatch.setenv("SSH_CONNECTION", "here there")
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    return instructions_pass._environment


def test_the_process_gets_what_torch_reads_and_nothing_of_the_session(environment):
    found = environment("time")
    assert found["MKL_ENABLE_INSTRUCTIONS"] == "AVX2"
    assert found["PATH"] == os.environ["PATH"]
    assert not {"PYTEST_CURRENT_TEST", "SSH_CONNECTION"} & found.keys()


def test_the_process_has_one_thread_one_hash_seed_and_the_block_s_malloc(environment):
    assert environment("time")["OMP_NUM_THREADS"] == "1"
    assert environment("time")["PYTHONHASHSEED"] == "0"
    assert environment("time")["MALLOC_MMAP_MAX_"] == "0"
    assert "MALLOC_MMAP_MAX_" not in environment("system")


def test_the_job_comes_by_standard_input_and_what_it_has_to_say_is_written_as_it_goes(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(callgrind, "Requests", lambda: None)
    monkeypatch.setattr(instructions_pass, "count", lambda *_, ask, tell: tell({"cell": 0}))
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps((block(), pickle.dumps(None), PLAN)))
    with job.open("rb") as stdin:
        monkeypatch.setattr(sys, "stdin", type("In", (), {"buffer": stdin}))
        instructions_pass.main()
    assert json.loads((tmp_path / instructions_pass.REPORT).read_text()) == {"cell": 0}


# The real thing


@pytest.mark.slow
@on_x86_64
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="there is no valgrind here")
def test_counts_repeat_exactly_and_recording_a_graph_costs_instructions(monkeypatch):
    """Two processes under valgrind, half a minute each."""
    cells = block(grad_modes=["global_on", "no_grad"])
    once = counted(cells, plan=Plan())
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "another " * 100)
    again = counted(cells, plan=Plan())
    assert once == again
    with_graph, without = (o.values[0] for o in once)
    assert 1.1 < with_graph / without < 1.5
    assert without > 100_000
