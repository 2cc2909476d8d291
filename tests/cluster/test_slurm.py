"""Shards as an array job: the script that Slurm gets, and what its tasks do."""

import os
import re
import signal
import stat
import time
from pathlib import Path

import psutil
import pytest
from builders import block, cell, counted, environment, timed
from typer.testing import CliRunner

from gradbench.cli import on_slurm
from gradbench.cli.app import app
from gradbench.cluster import shard_runs, slurm
from gradbench.errors import Impossible
from gradbench.exit_status import ExitStatus
from gradbench.experiment.model_source import ModelSource
from gradbench.experiment.plan import Plan
from gradbench.experiment.shards import Shard
from gradbench.runner import started
from gradbench.store.jsonl import Store, load
from gradbench.store.merge_shards import merge
from gradbench.workloads.own_models import models_of

NODES, ROOT = Path(__file__).parent / "nodes", Path(__file__).parents[2]
METERS = ("step_time", "peak_transient")
CELLS = [*block(batch_size=1), *block(batch_size=2), *block(batch_size=4)]
SHARDS = [Shard(1, 2), Shard(2, 2)]


def header(cells=CELLS, meters=METERS):
    return started(cells, plan=Plan(), meters=meters)


@pytest.fixture
def folders(tmp_path):
    return shard_runs.begin(header(), SHARDS, tmp_path)


def measured(cells):
    return [one for cell in cells for one in (timed(cell, (10, 11)), counted(cell, 4096))]


def go_on(folder, *, host, blocks):
    """Measure so many blocks of a shard on a host, and seal the run when there is no more."""
    (part,) = shard_runs.parts(folder)
    writer, run = Store(folder).resume(str(part))
    with writer:
        writer.write(environment(host=host))
        for one in run.unfinished()[:blocks]:
            for outcome in measured([c for c in run.header.cells if c.block == one]):
                writer.write(outcome)
        if len(run.unfinished()) <= blocks:
            writer.seal()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Put commands of Slurm on the path that submit nothing, and say so."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, line in (("sbatch", 'echo "Submitted batch job 42"'), ("srun", "exit 1")):
        (binaries / name).write_text(f"#!/bin/sh\n{line}\n")
        (binaries / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(binaries), prepend=":")
    return binaries


def tasks(folders):
    return [slurm.ShardTask(folder=folder, models=()) for folder in folders]


def test_the_script_asks_for_one_array_with_a_task_a_shard_that_may_be_requeued(
    cluster, folders, tmp_path
):
    given = slurm.options(["partition=gpu", "gres=gpu:1", "time=1:30:00", "exclusive"])
    jobs = slurm.submit(tasks(folders), tmp_path / "logs", given)
    script = (tmp_path / "logs" / "42_submission.sh").read_text("utf-8")
    lines = script.splitlines()
    assert [job.job_id for job in jobs] == ["42_0", "42_1"]
    for line in (
        *("--array=0-1%2", "--requeue", "--job-name=gradbench", "--nodes=1"),
        *("--partition=gpu", "--gres=gpu:1", "--time=1:30:00", "--exclusive"),
    ):
        assert f"#SBATCH {line}" in lines, script
    assert re.search(r"^srun .* -m submitit\.core\._submit \S+logs$", script, re.M)


def test_a_task_that_is_requeued_does_the_same_again(folders):
    (task, _) = tasks(folders)
    assert task.checkpoint().function == task


def test_what_sbatch_refuses_is_said_in_one_line(cluster, folders, tmp_path):
    (cluster / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: no such qos' >&2\nexit 1\n")
    with pytest.raises(Impossible, match=r"sbatch refused the job: .*no such qos"):
        slurm.submit(tasks(folders), tmp_path / "logs", {})


def test_an_answer_of_sbatch_without_a_number_is_said_in_one_line(cluster, folders, tmp_path):
    (cluster / "sbatch").write_text("#!/bin/sh\necho fine\n")
    with pytest.raises(Impossible, match=r"sbatch has not said which job it is: .*fine"):
        slurm.submit(tasks(folders), tmp_path / "logs", {})


def test_where_there_is_no_slurm_one_line_says_so(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Impossible, match="srun is not on the path"):
        slurm.submit(tasks(folders), tmp_path / "logs", {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partition=", "is not like"),
        ("=gpu", "is not like"),
        ("comment=a\n#SBATCH --uid=0", "two lines"),
        ("array=0-3", "for gradbench to say"),
        ("ntasks_per_node=2", "for gradbench to say"),
        ("arra=0-3", "for gradbench to say"),  # sbatch takes the beginning of a name too
        ("parsable", "for gradbench to say"),
        ("p=gpu", "is not like"),
    ],
)
def test_an_option_that_would_change_what_the_job_is_is_refused(text, words):
    with pytest.raises(Impossible, match=words):
        slurm.options([text])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1:30", 2), ("1:30:00", 90), ("1-12", 2160), ("1-0:30", 1470), ("0:01", 1)],
)
def test_times_are_read_as_slurm_reads_them(text, expected):
    assert slurm.minutes(text) == expected


def test_a_time_that_is_none_is_refused():
    with pytest.raises(Impossible, match="time=soon"):
        slurm.minutes("soon")


def test_a_task_leaves_alone_what_another_is_writing(folders):
    (task, _) = tasks(folders)
    writer, _ = Store(folders[0]).resume("latest")
    with writer:
        writer.write(environment(host="another"))
        with pytest.raises(slurm.TaskFailed, match="is being written by another task"):
            task()
    (part,) = shard_runs.parts(folders[0])
    assert load(part).environment.facts["host"] == "another"


def test_shards_hold_every_block_once(folders):
    cells = [
        c for folder in folders for p in shard_runs.parts(folder) for c in load(p).header.cells
    ]
    assert sorted(map(str, cells)) == sorted(map(str, CELLS))
    assert [shard_runs.blocks_done(folder) for folder in folders] == [(0, 2), (0, 1)]


def test_a_shard_that_moves_to_another_host_keeps_what_the_first_has_finished(folders):
    first, second = folders
    go_on(first, host="a", blocks=1)
    shard_runs.leave_host(first, "b")
    shard_runs.leave_host(first, "b")  # cut short or not
    assert shard_runs.blocks_done(first) == (1, 2)
    go_on(first, host="b", blocks=1)
    go_on(second, host="b", blocks=1)
    runs = shard_runs.runs(folders)
    assert sorted(run.environment.facts["host"] for run in runs) == ["a", "b", "b"]
    joined = merge(runs, different_machines=True).records
    assert len([one for one in joined if hasattr(one, "meter")]) == len(CELLS) * len(METERS)


def test_a_shard_that_moves_three_times_loses_no_block_and_has_none_twice(tmp_path):
    (folder,) = shard_runs.begin(header(), [Shard(1, 1)], tmp_path)
    for host in ("a", "b", "a"):
        shard_runs.leave_host(folder, host)
        go_on(folder, host=host, blocks=1)
    assert shard_runs.blocks_done(folder) == (3, 3)
    cells = [cell for run in shard_runs.runs([folder]) for cell in run.header.cells]
    assert sorted(map(str, cells)) == sorted(map(str, CELLS))


def test_a_shard_that_is_requeued_on_its_own_host_is_left_as_it_is(folders):
    go_on(folders[0], host="a", blocks=1)
    (part,) = shard_runs.parts(folders[0])
    before = part.read_bytes()
    shard_runs.leave_host(folders[0], "a")
    assert part.read_bytes() == before


def test_what_a_host_has_begun_and_not_finished_is_measured_anew(folders):
    go_on(folders[1], host="a", blocks=0)
    shard_runs.leave_host(folders[1], "b")
    (part,) = shard_runs.parts(folders[1])
    assert load(part).environment.facts == {}
    assert shard_runs.blocks_done(folders[1]) == (0, 1)


class FakeJob:
    """A task that ends after some looks."""

    def __init__(self, job_id, *states):
        self.job_id, self._states = job_id, list(states)

    @property
    def state(self):
        return self._states[0]

    @property
    def paths(self):
        return type("Paths", (), {"stderr": f"logs/{self.job_id}.err"})

    def done(self, force_check=False):
        if len(self._states) > 1:
            self._states.pop(0)
        return self.state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


def test_waiting_ends_with_the_last_task_and_names_each_shard_that_is_not_complete(folders):
    go_on(folders[0], host="a", blocks=1)
    go_on(folders[1], host="a", blocks=1)
    jobs = [FakeJob("42_0", "PENDING", "RUNNING", "TIMEOUT"), FakeJob("42_1", "COMPLETED")]
    said = []
    missing = slurm.wait(jobs, folders, say=lambda *words: said.append(words), pause=lambda: None)
    assert missing == [
        "shard-1 is not complete (1 of 2 blocks): task 42_0 is timeout; its log: logs/42_0.err"
    ]
    assert said[0] == (2, 3, {"running": 1, "completed": 1})
    assert said[-1] == (2, 3, {"timeout": 1, "completed": 1})


def run(*arguments):
    return CliRunner().invoke(app, ["run", "--on", "slurm", *map(str, arguments)])


OPTIONS = ("--preset", "tiny", "--model", "mlp_tiny", "--device", "cpu", "--no-semantics")


def test_a_submission_keeps_its_options_of_sbatch_for_those_who_go_on_with_it(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = ("--sbatch", "partition=gpu", "--sbatch", "exclusive")
    assert run(*OPTIONS, "--no-wait", "--tasks", 1, *given).exit_code == ExitStatus.OK
    asked = []
    monkeypatch.setattr(
        slurm,
        "submit",
        lambda _tasks, _logs, sbatch: asked.append(sbatch) or [FakeJob("7", "FAILED")],
    )
    monkeypatch.setattr(on_slurm.time, "sleep", lambda _: None)
    run("--resume", "latest")
    run("--resume", "latest", "--sbatch", "partition=long", "--sbatch", "exclusive")
    run("--resume", "latest")
    long = {"partition": "long", "exclusive": True}
    assert asked == [{"partition": "gpu", "exclusive": True}, long, long]
    (kept,) = (tmp_path / "results" / "slurm").glob("*/sbatch.json")
    kept.write_text('["comment=a\\n#SBATCH --uid=0"]', "utf-8")
    refused = run("--resume", "latest")
    assert refused.exit_code == ExitStatus.USAGE
    assert "two lines" in refused.output
    kept.write_text("{}", "utf-8")
    assert "is no list of options of sbatch" in run("--resume", "latest").output.replace("\n", " ")


def test_a_task_writes_no_page_for_the_joined_run_has_one(folders):
    (task, _) = tasks(folders)
    (part,) = shard_runs.parts(folders[0])
    assert "--no-page" in task._command(part)


def test_no_wait_prints_what_goes_on_and_what_joins(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = run(*OPTIONS, "--no-wait", "--tasks", 2)
    assert ended.exit_code == ExitStatus.OK, ended.output
    (folder,) = (tmp_path / "results" / "slurm").iterdir()
    assert f"gradbench run --on slurm --resume {folder.name} --results results\n" in ended.output
    assert "gradbench merge --allow-different-machines" in ended.output
    assert {one.name for one in folder.glob("shard-*")} == {"shard-1", "shard-2"}


def test_resume_submits_what_is_missing_and_joins_when_nothing_is(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = on_slurm.begin(header(), 2, results=tmp_path / "results")
    first, second = sorted(folder.glob("shard-*"))
    go_on(first, host="a", blocks=2)
    submitted = []
    monkeypatch.setattr(
        slurm, "submit", lambda tasks, *_: submitted.extend(tasks) or [FakeJob("7", "FAILED")]
    )
    monkeypatch.setattr(on_slurm.time, "sleep", lambda _: None)
    ended = run("--resume", "latest")
    assert ended.exit_code == ExitStatus.NOTHING_MEASURED
    assert "shard-2 is not complete (0 of 1 block): task 7 is failed" in ended.output
    assert [task.folder for task in submitted] == [second.resolve()]
    go_on(second, host="b", blocks=1)
    ended = run("--resume", folder.name, "--no-semantics")
    assert ended.exit_code == ExitStatus.OK, ended.output
    assert len(submitted) == 1
    joined = Store(tmp_path / "results").find("latest")
    assert load(joined).sealed and load(joined).unfinished() == []


def test_a_shard_that_is_being_measured_is_not_submitted_twice(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = on_slurm.begin(header(), 1, results=tmp_path / "results")
    writer, _ = Store(folder / "shard-1").resume("latest")
    with writer:
        ended = run("--resume", "latest")
    assert ended.exit_code == ExitStatus.USAGE
    assert "shard-1 is being measured" in ended.output


def test_a_job_that_waits_or_runs_is_not_submitted_again(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = tmp_path / "asked"
    squeue = f'#!/bin/sh\necho "$@" > {asked}\necho 42_[0-1] PENDING\n'
    (cluster / "squeue").write_text(squeue)
    (cluster / "squeue").chmod(stat.S_IRWXU)
    assert run(*OPTIONS, "--no-wait", "--tasks", 2).exit_code == ExitStatus.OK
    again = run("--resume", "latest", "--no-wait")
    assert again.exit_code == ExitStatus.USAGE
    assert "job 42 of this submission still waits or runs" in again.output.replace("\n", " ")
    assert asked.read_text("utf-8").split() == ["--noheader", "--jobs=42"]
    (cluster / "squeue").write_text("#!/bin/sh\necho Invalid job id >&2\nexit 1\n")  # forgotten
    assert run("--resume", "latest", "--no-wait").exit_code == ExitStatus.OK


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--resume", "latest", "--tasks", "2"), "leave out --tasks"),
        (("--resume", "latest"), "no submission 'latest'"),
        (("--shard", "1/2"), "leave out --shard"),
        (("--one-at-a-time",), "leave it out with --on"),
        (("--tasks", "1000"), "1,000 shards for"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = run(*(OPTIONS if "--resume" not in options else ()), *options)
    assert ended.exit_code == ExitStatus.USAGE
    assert words in ended.output.replace("\n", " ")


@pytest.mark.slow
def test_two_tasks_run_at_once_and_one_that_is_preempted_goes_on_with_its_shard(
    tmp_path, monkeypatch
):
    """The second block of a task is built only when the file is there: when it was preempted."""
    gate = tmp_path / "gate"
    gate.mkdir()
    monkeypatch.setenv("TEST_GATE", str(gate))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NODES), str(ROOT)]))
    monkeypatch.syspath_prepend(str(NODES))
    own = {"gated.make": ModelSource(build="gated:make", input=("B,4",))}
    cells = [
        cell("no_grad", model="gated.make", workload="inference", batch_size=2**size)
        for size in range(3)
    ]
    first = started(cells, plan=Plan(), meters=["saved_for_backward"], models=models_of(own))
    folders = shard_runs.begin(first, SHARDS, tmp_path)
    both = [slurm.ShardTask(folder=folder, models=("gated.make",)) for folder in folders]
    jobs = slurm.submit(both, tmp_path / "logs", {}, cluster="local")
    states, preempted = [], []

    def look(_done, _total, found):
        states.append(found)
        if not preempted and shard_runs.blocks_done(folders[0])[0] == 1:
            preempted.extend(psutil.Process(int(jobs[0].job_id)).children())
            for task in preempted:  # as Slurm does before it takes a node away
                task.send_signal(signal.SIGUSR2)
            (gate / "go").touch()

    missing = slurm.wait(jobs, folders, say=look, pause=lambda: time.sleep(0.02))
    log = (tmp_path / "logs" / f"{jobs[0].job_id}_0_log.err").read_text("utf-8")
    assert missing == [] and preempted, log
    assert {"running": 2} in states
    assert log.count("[1/2]") == 1, "the block that was finished is not measured again"
    assert 0 < log.find("is preempted") < log.rfind("[2/2]")
    merged = Store(tmp_path / "joined").save(merge(shard_runs.runs(folders)).records)
    assert merged.unfinished() == [] and merged.measured
