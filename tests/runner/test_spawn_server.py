"""Where nothing of Linux is had: fresh processes, and what follows is named. Tried on Linux."""

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jobs
import plain_jobs
import psutil
import pytest
from builders import cell, environment, run_of, started
from patience import PATIENCE_S, is_gone, wait_until

from gradbench import own_python
from gradbench.analysis.diagnosis import possible_interference
from gradbench.comparison import versions
from gradbench.comparison.checkouts import Version
from gradbench.errors import GradbenchError, Impossible
from gradbench.experiment.matrix import Cell
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import (
    NOT_GUARANTEED,
    NOTHING_TO_READ,
    Breakdown,
    Measurement,
    Skipped,
)
from gradbench.runner import host_system, meters, processes, spawn_server
from gradbench.runner.bench import Bench
from gradbench.runner.fork_server import ForkServer, JobError, WorkerDied, settings
from gradbench.runner.preflight import DEFAULT_METERS
from gradbench.runner.spawn_server import SpawnServer


@pytest.fixture(autouse=True)
def _spawning(monkeypatch):
    monkeypatch.setenv(host_system.START, "spawn")


def run(job, *arguments, limit_s=PATIENCE_S):
    return list(SpawnServer("time").run(job, *arguments, limit_s=limit_s))


def test_items_come_in_order_from_a_process_of_their_own():
    *items, pid = run(plain_jobs.counted, 3)
    assert items == [0, 1, 2]
    assert pid != os.getpid()
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
def test_what_a_job_raises_comes_as_its_traceback():
    with pytest.raises(JobError, match="ValueError: no such luck"):
        run(plain_jobs.raising)


@pytest.mark.parametrize(
    ("job", "arguments", "cause", "words"),
    [
        (plain_jobs.exiting, [3], "crashed", r"exit status 3 \(last words\)"),
        pytest.param(*(plain_jobs.killed, [], "out_of_memory", "SIGKILL"), marks=pytest.mark.slow),
    ],
)
def test_a_process_that_ends_early_is_named_with_its_cause(job, arguments, cause, words):
    with pytest.raises(WorkerDied, match=words) as death:
        run(job, *arguments)
    assert death.value.cause == cause


def test_a_job_that_hangs_is_killed_with_all_that_it_started():
    pids = []
    with pytest.raises(WorkerDied, match="time limit") as death:
        pids.extend(SpawnServer("time").run(plain_jobs.hanging, limit_s=0.1))
    assert death.value.cause == "timed_out"
    messages = SpawnServer("time").run(plain_jobs.hanging, limit_s=PATIENCE_S)
    grandchild = next(messages)
    messages.close()  # nobody listens any more
    wait_until(lambda: is_gone(grandchild))


@pytest.mark.slow
def test_a_death_whose_daemon_holds_the_pipe_is_the_death_it_is():
    with pytest.raises(WorkerDied, match="exit status 3") as death:
        run(jobs.leave_a_daemon_and_die)
    assert death.value.cause == "crashed"


def test_what_a_process_said_before_it_ended_is_heard_though_it_comes_late(monkeypatch):
    monkeypatch.setattr(spawn_server, "LOOK_S", 0.01)
    inbox, ended = queue.SimpleQueue(), SimpleNamespace(poll=lambda: 0)
    threading.Timer(0.05, inbox.put, [("done", b"")]).start()
    said = spawn_server._next(inbox, ended, time.monotonic() + PATIENCE_S)
    assert said == ("done", b"")


def test_a_process_ends_when_its_owner_lets_go_of_its_input():
    """As the system does for an owner that is killed."""
    job = pickle.dumps((jobs.hang, ()))
    with subprocess.Popen(
        own_python.calling("gradbench.runner.spawn_server", "main()"),
        env={**os.environ, own_python.VARIABLE: own_python.loading_path()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdin.write(len(job).to_bytes(8, "big") + job)
        process.stdin.flush()
        kind, _ = pickle.load(process.stdout)
        assert kind == "item"
        process.stdin.close()
        assert process.wait(timeout=PATIENCE_S) == 1


def test_one_place_decides_how_processes_start(monkeypatch):
    assert isinstance(processes.start("time"), SpawnServer)
    monkeypatch.delenv(host_system.START)
    server = processes.start("time")
    assert isinstance(server, ForkServer)
    server.close()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_guarantee_less_and_each_guarantee_has_words(monkeypatch, platform):
    monkeypatch.delenv(host_system.START)
    assert host_system.here().missing() == {}
    monkeypatch.setattr(sys, "platform", platform)
    assert host_system.here() == host_system.OTHER
    assert len(host_system.here().missing()) == len(host_system.GUARANTEES) == 4
    monkeypatch.setenv(host_system.START, "fork")
    with pytest.raises(GradbenchError, match="needs Linux"):
        host_system.here()


def test_a_way_to_start_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv(host_system.START, "teleport")
    with pytest.raises(GradbenchError, match="fork or spawn, not 'teleport'"):
        host_system.here()


def test_without_glibc_no_malloc_is_pinned(monkeypatch):
    assert not [name for name in settings("time") if name.startswith("MALLOC")]
    monkeypatch.delenv(host_system.START)
    assert [name for name in settings("time") if name.startswith("MALLOC")]


def test_a_resident_peak_that_cannot_be_reset_says_what_it_is(monkeypatch):
    steps = []
    peak, words = meters.peak_rss(lambda: steps.append(1), steps=2)
    assert steps == [1, 1]
    assert peak >= psutil.Process().memory_info().rss // 2
    assert "whole process" in words
    monkeypatch.setattr(host_system, "peak_resident", lambda: None)
    with pytest.raises(meters.Unreadable, match="does not say"):
        meters.peak_rss(lambda: None, steps=1)


def test_windows_has_no_resource_module_and_counts_its_own_peak(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # an import of it raises
    assert host_system.page_faults() is None
    assert host_system.peak_resident() is None
    memory = type("pmem", (), {"peak_wset": 123})
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: memory)
    assert host_system.peak_resident() == 123


def test_comparing_versions_needs_forks_and_says_so(tmp_path):
    here = Version(name="candidate", python=sys.executable, paths=(tmp_path,), tree=tmp_path)
    with pytest.raises(Impossible, match="fork"):
        versions.compare([cell()], base=here, candidate=here)


@pytest.mark.slow
def test_every_meter_has_a_number_or_a_reason_and_the_run_names_what_is_missing():
    one = Cell(model="mlp_tiny", workload="inference", grad_mode="no_grad", batch_size=2)
    plan = Plan(budget_s=0.05, warmup_s=0.01, limit_s=PATIENCE_S)
    with Bench(plan=plan, meters=DEFAULT_METERS) as bench:
        here = bench.environment(["cpu"])
        outcomes = [outcome for outcomes in bench.measure([one]) for outcome in outcomes]
    assert sorted(outcome.meter for outcome in outcomes) == sorted(DEFAULT_METERS)
    for outcome in outcomes:
        assert isinstance(outcome, Measurement | Breakdown | Skipped)
        if isinstance(outcome, Skipped):
            assert outcome.cause in NOTHING_TO_READ, outcome
            assert outcome.reason
    read = {outcome.meter: outcome for outcome in outcomes if isinstance(outcome, Measurement)}
    assert {"step_time", "latency", "peak_allocated", "predicted_peak", "peak_rss"} <= read.keys()
    assert "whole process" in str(read["peak_rss"].notes["bias"])
    assert here.facts["process_start"] == "spawn"
    missing = [name for name in here.facts if name.startswith(NOT_GUARANTEED)]
    assert len(missing) == len(host_system.GUARANTEES)
    header = started([one], meters=DEFAULT_METERS)
    said = possible_interference(run_of([header, environment(**here.facts), *outcomes]))
    assert [name for name in missing if any(line.startswith(name) for line in said)] == missing
