"""Two cards of the simulated runtime at once: the same bytes, cores apart, one run a card."""

import os
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import groupby
from multiprocessing import get_context

import pytest
from simulated_gpu.stand_in import in_child

from gradbench import devices, host_locks
from gradbench.experiment.matrix import Matrix, by_block
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Breakdown, Measurement, Skipped
from gradbench.runner import side_by_side
from gradbench.runner.block_runner import OneAfterAnother
from gradbench.runner.preflight import on_each_device
from gradbench.workloads.models import MODELS

pytestmark = pytest.mark.simulated_cuda

METERS = ("peak_allocated", "peak_requested", "saved_for_backward", "breakdown")
PLAN = Plan(budget_s=0.2)


def cells():
    matrix = Matrix(
        models=["mlp_tiny"],
        devices=["cuda", "cuda:1"],
        batch_sizes=[8],
        workloads=["training"],
        grad_modes=["global_on"],
    )
    return list(matrix)


def in_a_child(function, *arguments):
    """Return what a forked child returns: it asks for GPUs, and could not be forked afterwards."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def _measured(at_once, meters=METERS, models=MODELS):
    who = side_by_side.here if at_once else _one_after_another
    runner = who(cells(), plan=PLAN, models=models, meters=meters)
    with runner:
        facts = runner.environment(cell.device for cell in cells()).facts
        return facts, list(runner.measure(by_block(cells())))


def _one_after_another(_cells, **options):
    return OneAfterAnother(**options)


@pytest.fixture(scope="module")
def at_once():
    return in_a_child(_measured, True)


def exact(outcomes):
    numbers = {
        (o.cell, o.meter): o.values for o in outcomes if isinstance(o, Measurement) and o.exact
    }
    return numbers | {(o.cell, o.meter): o.parts for o in outcomes if isinstance(o, Breakdown)}


def test_bytes_are_those_of_one_device_after_the_other(at_once):
    _, found = at_once
    _, alone = in_a_child(_measured, False)
    assert exact(found) == exact(alone)
    assert {meter for _, meter in exact(found)} == set(METERS)
    reasons = {(o.cell, o.meter, o.reason) for o in found if isinstance(o, Skipped)}
    assert reasons == {(o.cell, o.meter, o.reason) for o in alone if isinstance(o, Skipped)}


class Meeting:
    """Builds the model where each card's process is at it, so that both are measured at once."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        (self.folder / str(os.getpid())).touch()
        until = time.monotonic() + 120
        while len(list(self.folder.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        return MODELS["mlp_tiny"].build()


@pytest.mark.slow
def test_times_and_launches_show_both_cards_at_once_and_one_process_a_card(tmp_path, monkeypatch):
    log = tmp_path / "launches"
    monkeypatch.setenv("SIMULATED_CUDA_LAUNCH_LOG", str(log))
    (met := tmp_path / "met").mkdir()
    models = {"mlp_tiny": replace(MODELS["mlp_tiny"], build=Meeting(met))}
    _, found = in_a_child(_measured, True, ["step_time"], models)
    times = [one for one in found if isinstance(one, Measurement)]
    began, ended = (
        {one.cell.device: one.notes[at] for one in times} for at in ("began_at", "ended_at")
    )
    assert began["cuda"] < ended["cuda:1"] and began["cuda:1"] < ended["cuda"]
    processes = {"0": [], "1": []}
    for line in log.read_text("utf-8").splitlines():
        process, card, *_ = line.split("\t")
        processes[card].append(process)
    for on_card in processes.values():
        turns = [process for process, _ in groupby(on_card)]
        assert len(turns) == len(set(turns))  # who let another launch there launched no more
    assert not set(processes["0"]) & set(processes["1"])
    assert {one.cell.device for one in times} == {"cuda", "cuda:1"}
    noted = {(one.cell.device, one.notes.get("measured_beside")) for one in times}
    assert noted - {("cuda", None), ("cuda:1", None)} == {("cuda", "cuda:1"), ("cuda:1", "cuda")}


def test_each_card_has_cores_of_its_own(at_once):
    facts, _ = at_once
    own = [re.match(r"[\d,-]+", str(facts[f"{name} own_cores"]))[0] for name in ("cuda", "cuda:1")]
    assert len(set(own)) == len(own)


@in_child
def test_all_cards_are_named_by_one_word():
    (first, *_), names = cells(), devices.all_of("cuda")
    assert names == ["cuda", "cuda:1"]
    every = type(first)(**{**first.axes(), "device": "cuda:all"})
    assert [cell.device for cell in on_each_device([every, first])] == names


def test_a_card_has_one_lock_whichever_cards_a_process_sees():
    second = in_a_child(_lock_name, "cuda:1", "0,1")
    assert in_a_child(_lock_name, "cuda", "1") == second
    assert in_a_child(_lock_name, "cuda", "0,1") != second


def _lock_name(device, visible):
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    return devices.find(device).lock_name()


@pytest.mark.slow
def test_a_block_waits_while_another_process_measures_on_its_card():
    said = in_a_child(_waited)
    assert said[:2] == [host_locks.WAITING, "time"]


def _waited():
    said = []
    one = [cell for cell in cells() if cell.device == "cuda:1"]
    with OneAfterAnother(plan=PLAN, models=MODELS, meters=["step_time"]) as runner:
        name = f"device-{runner._bench.site('cuda:1').lock_name}"
        held = host_locks.holding([name])
        held.__enter__()

        def listen(event):
            said.append(event.doing)
            if event.doing == host_locks.WAITING:
                held.__exit__(None, None, None)

        assert list(runner.measure(by_block(one), progress=listen))
    return said
