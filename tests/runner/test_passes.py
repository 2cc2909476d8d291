"""A pass is one row: which processes, which malloc, which job."""

import jobs
import pytest

from gradbench.experiment.matrix import Matrix
from gradbench.experiment.plan import Plan
from gradbench.runner.bench import Bench
from gradbench.runner.fork_server import AS_TIMED, FOR_MEMORY
from gradbench.runner.meters import METERS, Meter
from gradbench.runner.passes import PASSES, Pass


def test_every_meter_is_read_in_a_pass_and_every_pass_reads_a_meter():
    assert {meter.read_in for meter in METERS.values()} == set(PASSES)


@pytest.mark.usefixtures("shared_fork_servers")
@pytest.mark.parametrize(
    ("malloc", "per_cell", "mmap_max", "processes"),
    [(AS_TIMED, False, "0", 1), (FOR_MEMORY, True, "unset", 2)],
    ids=["one_process_for_the_block", "one_process_per_cell"],
)
def test_a_row_more_is_run_in_the_processes_that_it_names(
    monkeypatch, malloc, per_cell, mmap_max, processes
):
    row = Pass(name="pids", job=jobs.process_of, malloc=malloc, one_process_per_cell=per_cell)
    monkeypatch.setitem(PASSES, "pids", row)
    monkeypatch.setitem(METERS, "pid", Meter("pid", "bytes", "pids", False, "the process's number"))
    cells = list(Matrix(models=["mlp_tiny"], grad_modes=["global_on", "no_grad"]))
    said = []
    with Bench(plan=Plan(), meters=["pid"]) as bench:
        (outcomes,) = bench.measure(cells, say=said.append)
    assert said == ["pids"]
    assert [outcome.cell for outcome in outcomes] == cells
    assert len({outcome.values for outcome in outcomes}) == processes
    assert {outcome.notes["mmap_max"] for outcome in outcomes} == {mmap_max}


def test_timed_processes_follow_the_axis_malloc_and_memory_does_not():
    assert PASSES["time"].malloc["pinned"] != PASSES["time"].malloc["system"]
    assert PASSES["memory"].malloc["pinned"] == PASSES["memory"].malloc["system"]
    assert all(
        set(one.malloc) == set(Matrix(models=["m"], mallocs=["pinned", "system"]).axes["malloc"])
        for one in PASSES.values()
    )
