"""Distributed workloads: ranks that start, meet and end together, and what they read as one."""

import os
import pickle
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jobs
import psutil
import pytest
import torch
from builders import cell
from patience import PATIENCE_S
from torch import nn

from gradbench import Matrix, Measurement, Plan, Skipped, devices, supervisor
from gradbench.devices.cpu import CPU
from gradbench.errors import GradbenchError
from gradbench.experiment.matrix import GRAD_MODES, OF_RANKS
from gradbench.records.measurements import Breakdown, Reading
from gradbench.runner import attempts, bench, rank_processes, ranks, run, visits
from gradbench.runner.preflight import check, obstacle
from gradbench.runner.rank_outcomes import combined
from gradbench.runner.ranks import Rank, hold_that_nobody_started_ranks
from gradbench.workloads.models import MODELS, Model

pytestmark = pytest.mark.usefixtures("shared_fork_servers")

PLAN = Plan(budget_s=0.05, warmup_s=0.01, limit_s=PATIENCE_S)
PARAMETERS_BYTES = sum(one.nbytes for one in MODELS["mlp_tiny"].build().parameters())


def outcomes(cells, *, meters, plan=PLAN, models=MODELS):
    found = [
        r for r in run(cells, plan=plan, models=models, meters=meters) if isinstance(r, Reading)
    ]
    return {(o.cell.workload, o.cell.grad_mode, o.meter): o for o in found}


@pytest.fixture(scope="module")
def memory():
    cells = [
        *Matrix(
            models=["mlp_tiny"],
            workloads=OF_RANKS,
            grad_modes=["global_on", "inference_mode"],
            batch_sizes=[8],
            world_sizes=[2],
        ),
        cell("global_on", workload="training"),
        cell("inference_mode"),
    ]
    return outcomes(cells, meters=["peak_allocated", "breakdown", "leaked", "predicted_peak"])


@pytest.mark.parametrize("workload", OF_RANKS)
def test_every_rank_has_a_peak_and_their_sum_is_noted(memory, workload):
    peak = memory[workload, "global_on", "peak_allocated"]
    each = [
        int(one.removesuffix(" B").replace(",", "")) for one in peak.notes["by_rank"].split("; ")
    ]
    assert len(each) == 2
    assert peak.values == (max(each),)
    assert peak.notes["of_all_ranks"] == sum(each)
    assert peak.exact


def test_replicas_need_what_one_process_does_and_buckets_as_large_as_the_gradients(memory):
    for workload, mode in (("training", "global_on"), ("inference", "inference_mode")):
        (alone,) = memory[workload, mode, "peak_allocated"].values
        (replica,) = memory[f"{workload}_ddp", mode, "peak_allocated"].values
        assert replica == alone + PARAMETERS_BYTES


def test_a_rank_holds_its_share_of_sharded_parameters_alone(memory):
    sharded = memory["training_fsdp2", "global_on", "breakdown"]
    assert isinstance(sharded, Breakdown)
    share = -(-PARAMETERS_BYTES // 2)
    assert share <= sharded.parts["parameters"] <= share + 512  # rows are not cut: some are padded
    assert memory["training_ddp", "global_on", "breakdown"].parts["parameters"] == PARAMETERS_BYTES


@pytest.mark.parametrize("workload", OF_RANKS)
@pytest.mark.parametrize("mode", ["global_on", "inference_mode"])
def test_a_peak_is_predicted_without_the_other_ranks(memory, workload, mode):
    predicted = memory[workload, mode, "predicted_peak"]
    measured = memory[workload, mode, "peak_allocated"]
    if isinstance(measured, Skipped):
        assert (predicted.cause, predicted.reason) == (measured.cause, measured.reason)
    else:
        assert predicted.values == measured.values


class Buffered(nn.Module):
    """Has buffers of two dtypes, beside which all else is small."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        for name in ("first", "second"):
            self.register_buffer(name, torch.zeros(2048))

    def forward(self, x):
        return self.norm(self.layer(x)) + self.first.sum()


class WithUnused(nn.Module):
    """Has a layer that its forward leaves out."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x)


class Tied(nn.Module):
    """Has two blocks that share a weight."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
        self.blocks[1][0].weight = self.blocks[0][0].weight

    def forward(self, x):
        for one in self.blocks:
            x = one(x)
        return x


def frozen():
    return nn.Linear(4, 3).requires_grad_(requires_grad=False)


def four_numbers(size):
    return torch.randn(size, 4)


def peaks(build, workload, modes, *, world_size=2):
    """Return for each mode what the peak of a model is, and what it was predicted to be."""
    models = {"own": Model(build, four_numbers)}
    cells = [cell(mode, model="own", workload=workload, world_size=world_size) for mode in modes]
    found = outcomes(cells, meters=["peak_allocated", "predicted_peak"], models=models)
    return [
        [found[workload, mode, meter] for meter in ("peak_allocated", "predicted_peak")]
        for mode in modes
    ]


def test_buffers_are_sent_before_a_forward_that_follows_a_recorded_one_as_is_predicted():
    both = peaks(Buffered, "inference_ddp", ["global_on", "inference_mode"])
    for measured, predicted in both:
        assert predicted.values == measured.values
    (recorded, _), (not_recorded, _) = both
    assert recorded.values[0] - not_recorded.values[0] > 2048 * 4


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["training_ddp", "training_fsdp2"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_peaks_are_predicted_at_other_world_sizes_and_with_buffers(workload, world_size):
    ((measured, predicted),) = peaks(Buffered, workload, ["global_on"], world_size=world_size)
    assert predicted.values == measured.values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "workload", "mode", "words"),
    [
        (WithUnused, "training_ddp", "global_on", "Expected to have finished reduction in the"),
        (frozen, "inference_ddp", "no_grad", "DistributedDataParallel is not needed when a module"),
        (Tied, "inference_fsdp2", "no_grad", "is shared with a parameter already managed by"),
    ],
)
def test_what_torch_refuses_to_spread_is_a_reason_in_its_words_and_is_not_predicted(
    build, workload, mode, words
):
    ((measured, predicted),) = peaks(build, workload, [mode])
    for refused in (measured, predicted):
        assert isinstance(refused, Skipped)
        assert words in refused.reason
        assert "\n" not in refused.reason


@pytest.mark.parametrize("workload", OF_RANKS)
def test_what_a_peak_is_made_of_adds_up_to_it(memory, workload):
    parts = memory[workload, "global_on", "breakdown"].parts
    assert (sum(parts.values()),) == memory[workload, "global_on", "peak_allocated"].values


@pytest.mark.parametrize("workload", OF_RANKS)
def test_what_other_threads_free_is_not_taken_for_a_leak(memory, workload):
    assert memory[workload, "global_on", "leaked"].values == (0,)


@pytest.mark.parametrize("workload", ["training_ddp", "training_fsdp2"])
def test_training_where_nothing_is_recorded_fails_in_every_rank_in_torchs_words(memory, workload):
    refused = memory[workload, "inference_mode", "peak_allocated"]
    assert isinstance(refused, Skipped)
    assert refused.cause == "cannot_train"
    assert refused.reason.startswith("element 0 of tensors does not require grad")


def test_all_modes_are_timed_in_the_same_rounds_by_the_slowest_rank(monkeypatch):
    monkeypatch.setattr(bench, "_crowded", lambda _: None)
    cells = [cell(mode, workload="inference_ddp", world_size=2) for mode in GRAD_MODES]
    found = outcomes(cells, meters=["step_time", "host_time"])
    times = [found["inference_ddp", mode, "step_time"] for mode in GRAD_MODES]
    assert all(isinstance(one, Measurement) for one in times)
    assert len({len(one.values) for one in times}) == 1
    assert len({one.iterations for one in times}) == 1
    assert found["inference_ddp", "no_grad", "host_time"].cause == "unreadable"


class Misbehaving(nn.Module):
    """Does something in one rank alone, in inference mode."""

    def __init__(self, what, folder):
        super().__init__()
        self.layer, self.what = nn.Linear(4, 3), what
        # Ranks meet when the model is spread, so each has left its pid before one of them fails.
        if "RANK" in os.environ:
            (folder / str(os.getpid())).touch()

    def forward(self, x):
        if torch.is_inference_mode_enabled() and os.environ.get("RANK") == "1":
            match self.what:
                case "is killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "raises":
                    raise ValueError("not in this rank")
                case "hangs":
                    time.sleep(600)
        return self.layer(x)


class Factory:
    def __init__(self, what, folder):
        self.what, self.folder = what, folder

    def __call__(self):
        return Misbehaving(self.what, self.folder)


def misbehave(what, folder, *, modes=GRAD_MODES[2:], limit_s=PATIENCE_S):
    models = {"mlp_tiny": Model(Factory(what, folder), lambda size: torch.randn(size, 4))}
    cells = [cell(mode, workload="inference_ddp", world_size=2) for mode in modes]
    plan = replace(PLAN, limit_s=limit_s)
    found = outcomes(cells, meters=["peak_allocated"], plan=plan, models=models)
    return [found["inference_ddp", mode, "peak_allocated"] for mode in modes]


def hold_that_all_ended(folder, *, ranks):
    pids = [int(one.name) for one in folder.iterdir()]
    assert len(pids) == ranks
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.parametrize(
    ("what", "cause", "words"),
    [
        ("is killed", "out_of_memory", "ended, for rank 1 was killed by SIGKILL"),
        ("raises", "crashed", "rank 1 could not go on where others did: ValueError: not in this"),
    ],
)
def test_a_rank_that_fails_alone_is_a_reason_and_other_modes_go_on(what, cause, words, tmp_path):
    fine, refused = misbehave(what, tmp_path)
    assert isinstance(fine, Measurement)
    assert (refused.cause, words in refused.reason) == (cause, True), refused
    hold_that_all_ended(tmp_path, ranks=4)


def test_ranks_that_wait_for_one_that_hangs_end_at_the_time_limit(servers, tmp_path):
    """However far they have come by then."""
    list(servers("memory").run(jobs.count, 0, limit_s=PATIENCE_S))  # loaded
    there = set(supervisor.descendants(os.getpid()))
    (refused,) = misbehave("hangs", tmp_path, modes=["inference_mode"], limit_s=6)
    assert refused.cause == "timed_out"
    assert set(supervisor.descendants(os.getpid())) == there


class FailingAt(nn.Module):
    """Raises in the second rank at one point: when it is built, or in its nth step.

    What its ``eval()`` raises ends nothing, in no rank: see `workloads.steps.switch`.
    """

    def __init__(self, point):
        super().__init__()
        self.layer, self.point, self.steps = nn.Linear(4, 3), point, 0
        self.reach("built")

    def reach(self, point):
        if point == self.point and os.environ.get("RANK") == "1":
            raise ValueError(f"not when {point} in this rank")

    def forward(self, x):
        self.steps += 1
        self.reach(f"step {self.steps}")
        return self.layer(x)


class FactoryOfFailing:
    def __init__(self, point):
        self.point = point

    def __call__(self):
        return FailingAt(self.point)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("meter", "workload", "point"),
    [
        ("peak_allocated", "inference_ddp", "built"),
        *(("peak_allocated", "inference_ddp", f"step {number}") for number in range(1, 6)),
        *(("step_time", "inference_ddp", f"step {number}") for number in (1, 2, 4)),
        # there the other rank hangs in a collective, as all do whose gradients are summed up
        *(("peak_allocated", "training_ddp", f"step {number}") for number in (2, 5)),
    ],
)
def test_wherever_one_rank_fails_alone_its_words_are_the_reason(
    meter, workload, point, monkeypatch
):
    monkeypatch.setattr(bench, "_crowded", lambda _: None)
    models = {"mlp_tiny": Model(FactoryOfFailing(point), lambda size: torch.randn(size, 4))}
    plan = replace(PLAN, limit_s=40)
    found = outcomes(
        [cell("no_grad" if workload == "inference_ddp" else "global_on", workload=workload,
              world_size=2)],
        meters=[meter], plan=plan, models=models,
    )  # fmt: skip
    (refused,) = found.values()
    assert isinstance(refused, Skipped)
    assert (
        f"rank 1 could not go on where others did: ValueError: not when {point}" in refused.reason
    )
    assert refused.cause == "crashed"  # nobody waits for the limit


class OtherRank:
    """A leader who has heard the same from the other rank; what this one says is kept."""

    def __init__(self):
        self.heard = []

    def send(self, message):
        self.heard.append(message[1])

    def recv(self):
        return [self.heard[-1].value] * 2


@pytest.fixture
def leader(monkeypatch):
    leader = OtherRank()
    monkeypatch.setattr(ranks, "_here", Rank(0, 2, leader))
    return leader


def fail():
    raise ValueError("not here")


ARM = SimpleNamespace(cell=cell(), step=fail)


@pytest.mark.parametrize(
    "point",
    [
        lambda: attempts.guarded(fail, CPU()),
        lambda: attempts.guarded(partial(partial(fail)), CPU()),
        lambda: attempts.try_to_build(cell(), Model(fail, None), CPU(), seed=0),
        lambda: attempts.try_to_arm(cell(), None, CPU()),
        lambda: visits.start(cell(), Model(fail, None), CPU(), PLAN),
        lambda: visits.losing([ARM], CPU(), "in a test")(0, ValueError("not here")),
    ],
    ids=["guarded", "partial", "build", "arm", "start", "round"],
)
def test_a_rank_that_fails_says_so_to_the_others_before_it_goes_on(leader, point):
    point()
    assert leader.heard
    assert leader.heard[-1].refused


def test_a_rank_whose_memory_runs_out_between_steps_says_so_before_its_pass_ends(leader):
    def messages():
        raise MemoryError
        yield

    (skipped,) = attempts.survived(messages(), [cell()], ["step_time"])
    assert skipped.cause == "out_of_memory"
    assert leader.heard[-1].refused


def test_ranks_meet_where_each_could_have_failed(leader):
    assert attempts.guarded(lambda: 3, CPU()) == 3
    assert [(one.value, one.refused) for one in leader.heard] == [(False, "")]


def test_ranks_that_cannot_reach_one_another_are_a_reason_in_one_line(leader, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("no interface is called eth9\nand a second line")

    for name in rank_processes._as_torchrun_sets(0, 2):
        monkeypatch.setenv(name, "")  # to be put back
    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    one = cell(workload="inference_ddp", world_size=2)
    task = rank_processes._Task(None, [one], b"", PLAN, ["step_time", "latency"])
    skipped = list(rank_processes._as_rank(0, task, "file:///nowhere"))
    assert [(each.meter, each.cause) for each in skipped] == [
        ("step_time", "unavailable"),
        ("latency", "unavailable"),
    ]
    words = "ranks cannot reach one another by gloo: RuntimeError: no interface is called eth9"
    assert {each.reason for each in skipped} == {words}
    assert leader.heard[-1].refused == words  # the others need not wait


def test_a_rank_is_on_its_own_device_before_torch_would_choose_one_by_its_number(
    leader, monkeypatch
):
    order = []

    class Numbered(CPU):
        def prepare(self):
            order.append("its own device")

    @contextmanager
    def group(*_args, **_kwargs):
        order.append("process group")
        yield
        order.append("left")

    for name in rank_processes._as_torchrun_sets(0, 2):
        monkeypatch.setenv(name, "")  # to be put back
    monkeypatch.setattr(devices, "find", lambda _: Numbered())
    monkeypatch.setattr(rank_processes, "process_group", group)
    one = cell(workload="inference_ddp", world_size=2)
    task = rank_processes._Task(lambda *_: iter(()), [one], pickle.dumps(None), PLAN, [])
    assert list(rank_processes._as_rank(0, task, "file:///nowhere")) == []
    assert order == ["its own device", "process group", "left"]


@pytest.mark.parametrize("missing", ["is_available", "is_backend_available"])
def test_a_torch_without_what_ranks_talk_by_is_a_reason(missing, monkeypatch):
    monkeypatch.setattr(torch.distributed, missing, lambda *_: False)
    cause, why = obstacle(cell(workload="training_fsdp2", world_size=2))
    assert cause == "unavailable"
    assert why.startswith("this torch was built without")
    assert obstacle(cell()) is None


@pytest.mark.slow
def test_ranks_are_measured_where_no_process_can_be_forked(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADBENCH_START", "spawn")
    fine, refused = misbehave("raises", tmp_path)
    assert isinstance(fine, Measurement)
    assert "rank 1 could not go on where others did: ValueError" in refused.reason
    hold_that_all_ended(tmp_path, ranks=4)


def test_cores_are_divided_among_ranks_where_there_are_enough():
    shares = [Rank(number, 2, None).own_share([0, 1, 2, 3, 4]) for number in range(2)]
    assert shares == [[0, 1], [2, 3]]
    assert Rank(1, 4, None).own_share([0, 1]) == [0, 1]


def test_more_threads_than_cores_are_not_timed():
    crowded = bench._crowded(cell(workload="training_ddp", world_size=1000, threads=2))
    assert crowded.startswith("1000 ranks of 2 threads each on ")


def measured(*values, notes=None, meter="peak_allocated", unit="bytes"):
    return Measurement(
        cell=cell(),
        meter=meter,
        unit=unit,
        values=values,
        iterations=1,
        exact=unit == "bytes",
        notes=notes or {},
    )


def test_bytes_of_ranks_are_the_largest_with_each_and_their_sum():
    one = combined([measured(10, notes={"kept": 1}), measured(30, notes={"kept": 2})])
    assert one.values == (30,)
    assert one.notes == {"kept": 2, "by_rank": "10 B; 30 B", "of_all_ranks": 40}


def test_times_of_ranks_are_those_of_the_slowest_in_each_round():
    times = [
        measured(5, 9, 7, meter="latency", unit="ns"),
        measured(6, 8, meter="latency", unit="ns"),
    ]
    assert combined(times).values == (6, 9)


def test_words_that_differ_are_each_ranks():
    notes = [{"kept": "a", "same": "x"}, {"kept": "b", "same": "x"}]
    one = combined([measured(1, notes=notes[0]), measured(1, notes=notes[1])])
    assert one.notes["kept"] == "rank 0: a; rank 1: b"
    assert one.notes["same"] == "x"


def test_a_figure_that_one_rank_lacks_nobody_has():
    lacking = Skipped(cell=cell(), meter="peak_allocated", cause="failed", reason="no room")
    assert combined([measured(1), lacking]).reason == "rank 1: no room"
    assert combined([lacking, lacking]).reason == "no room"
    other = replace(lacking, reason="no file")
    assert combined([lacking, measured(1), other]).reason == "rank 0: no room; rank 2: no file"


def test_a_workload_of_one_process_has_no_ranks():
    assert obstacle(cell(world_size=2)) == (
        "impossible",
        "inference is a step of one process: world_size=1",
    )
    compiled = cell(workload="training_ddp", world_size=2, compile="default")
    assert obstacle(compiled)[0] in ("impossible", "unavailable")


def test_under_torchrun_nothing_is_measured(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    with pytest.raises(GradbenchError, match="without torchrun; --world-size 4 starts the ranks"):
        check([cell()])
    hold_that_nobody_started_ranks({"WORLD_SIZE": "4"})  # of something else
