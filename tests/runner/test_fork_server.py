"""Measuring processes: fresh, single-threaded, with the allocator asked for, and mortal."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import jobs
import psutil
import pytest
from patience import PATIENCE_S, is_gone, wait_until
from servers import LentServer

from gradbench import supervisor
from gradbench.process_end import last_words, tail
from gradbench.process_tree import Lifeline
from gradbench.runner import fork_server, job_process
from gradbench.runner.fork_server import ForkServer, JobError, WorkerDied
from gradbench.runner.job_process import content

REACHED_S = 3
"""A limit that is waited for, and by which a job says on a busy machine, too, which it is."""


@pytest.fixture
def server(servers) -> LentServer:
    return servers("time")


def run(server: LentServer | ForkServer, job, *arguments, limit_s=PATIENCE_S):
    return list(server.run(job, *arguments, limit_s=limit_s))


def test_a_job_sends_what_it_yields(server):
    assert run(server, jobs.count, 3) == [0, 1, 2]


def test_jobs_in_quick_succession_do_not_meet(server):
    assert [run(server, jobs.count, n) for n in range(12)] == [list(range(n)) for n in range(12)]


def test_a_job_starts_with_one_thread_and_its_kinds_malloc(servers):
    assert run(servers("time"), jobs.threads_and_malloc) == [(1, "0")]
    assert run(servers("memory"), jobs.threads_and_malloc) == [(1, "unset")]


@pytest.mark.parametrize(
    ("job", "cause", "words"),
    [
        (jobs.segfault, "crashed", "SIGSEGV"),
        (jobs.kill_self, "out_of_memory", "SIGKILL"),
        (jobs.exit_early, "crashed", r"exit status 3.*\(the last words\)"),
    ],
)
def test_a_death_is_reported_with_its_cause_and_the_next_job_runs(server, job, cause, words):
    with pytest.raises(WorkerDied, match=words) as death:
        run(server, job)
    assert death.value.cause == cause
    assert run(server, jobs.count, 2) == [0, 1]


def test_a_hang_ends_at_the_time_limit_and_its_process_is_gone(server):
    stream = server.run(jobs.hang, limit_s=REACHED_S)
    pid = next(stream)
    with pytest.raises(WorkerDied, match=f"time limit of {REACHED_S} s") as death:
        next(stream)
    assert death.value.cause == "timed_out"
    wait_until(lambda: is_gone(pid))
    assert run(server, jobs.count, 1) == [0]


def test_a_job_that_takes_the_folder_for_temporary_files_away_takes_none_from_the_next(server):
    here = Path(tempfile.gettempdir())
    away = here.with_name(f"{here.name}-away")
    here.rename(away)
    try:
        with pytest.raises(WorkerDied, match="the last words"):
            run(server, jobs.exit_early)
        assert run(server, jobs.count, 2) == [0, 1]
    finally:
        away.rename(here)


def test_what_a_job_prints_takes_no_more_of_the_disk_than_its_share(tmp_path, monkeypatch):
    monkeypatch.setattr(job_process, "MOST_LOG_BYTES", 2**16)
    with (tmp_path / "log").open("w+b", buffering=0) as log:
        for _ in range(20):
            log.write(b"a line of many\n" * 1000)
            job_process.keep_small(log.fileno())
        log.write(b"the last words\n")
        assert os.fstat(log.fileno()).st_blocks * 512 <= 2**17
        assert last_words(tail(log.fileno())) == "the last words"


def test_an_exception_arrives_with_its_traceback(server):
    with pytest.raises(JobError, match=r"in fail\n.*\n.*ValueError: a bug"):
        run(server, jobs.fail)


def test_a_stream_that_is_abandoned_closes_the_fork_server_which_kills_the_job_that_runs():
    """Its messages would confuse the next job."""
    server = ForkServer("time")
    stream = server.run(jobs.hang, limit_s=600)
    pid = next(stream)
    stream.close()
    wait_until(lambda: is_gone(pid))
    assert not server.alive
    with pytest.raises(WorkerDied, match="gone"):
        run(server, jobs.count, 1)


@pytest.mark.parametrize(
    ("job", "limit_s", "cause", "words"),
    [
        (jobs.close_all_descriptors, REACHED_S, "timed_out", f"time limit of {REACHED_S} s"),
        (jobs.ignore_signals, REACHED_S, "timed_out", f"time limit of {REACHED_S} s"),
        (jobs.leave_a_daemon_and_hang, REACHED_S, "timed_out", f"time limit of {REACHED_S} s"),
        (jobs.write_over_all_descriptors, PATIENCE_S, "crashed", "it wrote over the pipe"),
        (jobs.close_the_pipe, PATIENCE_S, "crashed", "it had closed the pipe"),
        (jobs.leave_a_daemon_and_die, PATIENCE_S, "crashed", "exit status 3"),
    ],
)
def test_whatever_a_job_does_it_ends_in_time_and_with_all_it_started(
    server, job, limit_s, cause, words
):
    stream = server.run(job, limit_s=limit_s)
    pid = next(stream)
    with pytest.raises(WorkerDied, match=words) as death:
        next(stream)
    assert death.value.cause == cause
    wait_until(lambda: is_gone(pid))
    assert run(server, jobs.count, 1) == [0]


@pytest.mark.slow  # it waits for five seconds
def test_a_job_that_closes_its_pipe_and_goes_on_is_not_waited_for(server):
    """Its limit may be far: nothing that it still does can be known."""
    with pytest.raises(WorkerDied, match="it closed the pipe"):
        run(server, jobs.close_all_descriptors, limit_s=600)


@pytest.mark.parametrize("job", [jobs.leave_a_daemon, jobs.hang_at_the_end])
def test_nothing_outlives_a_job_that_is_done(server, job):
    (pid,) = run(server, job)
    wait_until(lambda: is_gone(pid))


def test_a_job_that_forks_and_returns_in_both_answers_once(server):
    assert run(server, jobs.fork_and_return) == [0, 1, 2]


def test_an_alarm_of_the_models_own_is_what_it_raises(server):
    with pytest.raises(JobError, match="TimeoutError: the model's own alarm") as error:
        run(server, jobs.interrupt_by_alarm)
    assert error.value.line.startswith("TimeoutError: the model's own alarm (File ")
    assert "\n" not in error.value.line


def test_an_item_that_cannot_be_read_is_a_death_with_its_reason():
    with pytest.raises(WorkerDied, match="sent what cannot be read: ValueError: invalid literal"):
        content(("item", pickle.dumps(jobs.Unreadable())))


def test_a_job_that_stops_its_parent_ends_at_its_limit_and_the_parent_goes_on(server):
    """The supervisor lets that go on at once."""
    run(server, jobs.count, 0)  # loaded
    top = server._server._tree._process.pid
    there = [top, *supervisor.descendants(top)]
    with pytest.raises(WorkerDied, match=r"time limit of 0.5 s"):
        run(server, jobs.stop_the_parent, limit_s=0.5)
    assert server.alive
    assert run(server, jobs.count, 2) == [0, 1]
    assert [top, *supervisor.descendants(top)] == there


def test_a_job_that_stops_all_above_it_ends_in_time_with_them(server, monkeypatch):
    """On this process's clock, which is put forward once they are stopped."""
    run(server, jobs.count, 0)  # loaded
    now_s = [time.monotonic()]
    monkeypatch.setattr(fork_server, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    top = server._server._tree._process.pid
    there = [top, *supervisor.descendants(top)]
    stream = server.run(jobs.stop_supervisor_and_parent, limit_s=PATIENCE_S)
    next(stream)
    wait_until(lambda: {psutil.Process(pid).status() for pid in there} == {psutil.STATUS_STOPPED})
    now_s[0] += PATIENCE_S + fork_server.OVERDUE_S
    with pytest.raises(WorkerDied, match=f"time limit of {PATIENCE_S} s"):
        next(stream)
    assert len(there) == 2
    wait_until(lambda: all(map(is_gone, there)))


def own_a_server(while_: str, say: int) -> NoReturn:
    """Measure as a command does, in a fork of this process, until somebody kills it."""
    try:
        Lifeline.let_go_of_all()
        server = ForkServer("time")
        os.write(say, b"%d\n" % server._tree._process.pid)
        if while_ == "measuring":
            for pid in server.run(jobs.leave_a_daemon_and_hang, limit_s=600):
                os.write(say, b"%d\n" % pid)
        time.sleep(600)
    finally:
        os._exit(1)


@pytest.mark.parametrize(
    ("while_", "count"),
    [pytest.param("loading", 2, marks=pytest.mark.slow), ("measuring", 4)],
)
def test_measuring_processes_end_when_their_owner_is_killed(while_, count):
    reader, writer = os.pipe()
    owner = os.fork()
    if owner == 0:
        own_a_server(while_, writer)
    os.close(writer)
    try:
        with os.fdopen(reader) as said:
            first = int(said.readline())
            if while_ == "measuring":
                int(said.readline())
            wait_until(lambda: len(supervisor.descendants(first)) == count - 1)
            there = [first, *supervisor.descendants(first)]
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    wait_until(lambda: all(map(is_gone, there)))


ASKS_NO_GPU = """
import torch

def asked(*_):
    raise AssertionError("a GPU was asked for before the fork")

places = [(torch.cuda, "is_available"), (torch.cuda, "device_count"), (torch.cuda, "_lazy_init"),
          (torch._C, "_cuda_getDeviceCount"), (torch._C, "_accelerator_getAccelerator")]
for module, name in places:
    if hasattr(module, name):  # a build without CUDA has no more than the first three
        setattr(module, name, asked)
from gradbench.runner import fork_server
for kind in fork_server._MALLOC:
    fork_server.load(kind)
try:
    torch.cuda.is_available()
except AssertionError as error:
    print(error)
"""


def test_what_is_loaded_before_the_fork_asks_for_no_gpu():
    """Whoever has asked the driver how many there are cannot use CUDA in a fork.

    In a process of its own: what this one has imported before would not be loaded again.
    """
    ended = subprocess.run(
        [sys.executable, "-c", ASKS_NO_GPU], capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.returncode) == ("a GPU was asked for before the fork\n", 0), (
        ended.stderr
    )
