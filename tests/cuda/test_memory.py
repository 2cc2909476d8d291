"""Memory on CUDA cells alone, through the fork server, on the simulated runtime: to the byte."""

import gc
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from simulated_gpu.stand_in import in_child
from torch import nn

from gradbench import devices
from gradbench.devices import Unreadable
from gradbench.devices.allocator_ledger import PROOF_BYTES
from gradbench.devices.caching_allocator import CachingAllocator
from gradbench.errors import WrongDevice
from gradbench.exit_status import ExitStatus
from gradbench.experiment.matrix import Matrix
from gradbench.experiment.plan import Plan
from gradbench.gate.decide import decide
from gradbench.memory.predict import Predictor
from gradbench.memory.usage import memory_usage
from gradbench.records.measurements import Breakdown, Measurement, Skipped
from gradbench.records.run import Run
from gradbench.runner import run
from gradbench.runner.meters import METERS
from gradbench.stats.verdicts import Verdict
from gradbench.workloads.models import MODELS

pytestmark = pytest.mark.simulated_cuda

CELLS = [
    *Matrix(models=["mlp_tiny"], devices=["cuda"], batch_sizes=[8], workloads=["inference"]),
    *Matrix(
        models=["mlp_tiny"],
        devices=["cuda"],
        batch_sizes=[8],
        workloads=["training"],
        grad_modes=["global_on"],
        optimizers=["adamw"],
    ),
]
EXACT = [
    name
    for name, meter in METERS.items()
    if meter.unit == "bytes" and all(meter.about_workload(cell.workload) for cell in CELLS)
]
MIB = 2**20


def measured(cells, meters):
    """Return the records of a run that a child drives: it asks which GPUs there are, and whoever
    has asked cannot fork for the tests that come after."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(_records, cells, meters).result()


def _records(cells, meters):
    return list(run(cells, plan=Plan(budget_s=0.2), meters=meters))


def by_cell(outcomes, kind=Measurement):
    return {(o.cell, o.meter): o for o in outcomes if isinstance(o, kind)}


@pytest.fixture(scope="module")
def records():
    return measured(CELLS, EXACT)


def test_every_meter_of_memory_has_a_number(records):
    assert [o for o in records if isinstance(o, Skipped)] == []
    numbers = set(by_cell(records)) | set(by_cell(records, Breakdown))
    assert numbers == {(cell, meter) for cell in CELLS for meter in EXACT}


def test_the_parts_of_a_peak_sum_to_it(records):
    peaks = by_cell(records)
    for (cell, _), breakdown in by_cell(records, Breakdown).items():
        assert sum(breakdown.parts.values()) == peaks[cell, "peak_allocated"].values[0]
        assert min(breakdown.parts.values()) >= 0


def test_nothing_is_left_for_later_cells(records):
    for (_, meter), outcome in by_cell(records).items():
        if meter == "leaked":
            assert (outcome.values, dict(outcome.notes)) == ((0,), {})


def test_what_was_asked_for_is_what_is_predicted_and_what_the_cpu_takes(records):
    figures = by_cell(records)
    for cell in CELLS:
        requested = figures[cell, "peak_requested"].values
        assert requested == figures[cell, "predicted_peak"].values
    on_cpu = list(Matrix(models=["mlp_tiny"], batch_sizes=[8], workloads=["inference"]))
    here = by_cell(measured(on_cpu, ["peak_allocated"]))
    for there, (cell, _) in zip(CELLS, here, strict=False):
        assert there.grad_mode == cell.grad_mode
        assert figures[there, "peak_requested"].values == here[cell, "peak_allocated"].values


@in_child
def test_blocks_are_predicted_with_their_rounding_and_the_workspaces(records):
    predictor, figures = Predictor("cuda"), by_cell(records)
    for cell in CELLS:
        prediction = predictor.predict(cell, MODELS[cell.model])
        assert prediction.allocated_bytes == figures[cell, "peak_allocated"].values[0]


def test_a_gate_of_cuda_cells_alone_finds_the_same_bytes_the_same(records):
    again = measured(CELLS, EXACT)
    before, after = (
        Run(name, tuple(of), sealed=True) for name, of in (("before", records), ("after", again))
    )
    result = decide([before], [after])
    exact = [one for one in result.figure_verdicts if METERS[one.meter].exact]
    assert {one.meter for one in exact} >= {"peak_requested", "peak_allocated", "predicted_peak"}
    assert {one.verdict for one in exact} == {Verdict.SAME}
    assert result.not_compared == ()
    worse = [one for one in result.figure_verdicts if one.verdict is Verdict.WORSE]
    assert result.status() == ExitStatus.OK, worse


def test_each_cell_of_the_process_pass_has_a_process_to_itself(records):
    """Or the first one's segments would be counted for all that come after it."""
    held = {
        c.grad_mode: o.values[0]
        for (c, m), o in by_cell(records).items()
        if m == "device_process" and c.workload == "inference"
    }
    alone = [c for c in CELLS if c.workload == "inference" and c.grad_mode == "no_grad"]
    (only,) = by_cell(measured(alone, ["device_process"])).values()
    assert only.values[0] == held["no_grad"]


@in_child
def test_the_model_of_the_allocator_hands_out_what_torch_does():
    torch.zeros(1, device="cuda")
    for seed in range(20):
        rng, model, live = random.Random(seed), CachingAllocator(), {}
        torch.cuda.empty_cache()
        start = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        for key in range(200):
            if live and rng.random() < 0.45:
                freed = rng.choice(list(live))
                del live[freed]
                model.give(freed)
            else:
                nbytes = int(10 ** rng.uniform(1, 7))
                live[key] = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
                model.take(key, nbytes)
            now = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
            grown = tuple(after - before for before, after in zip(start, now, strict=True))
            assert grown == (model.allocated_bytes, model.reserved_bytes), (seed, key)


@in_child
def test_the_allocator_switched_off_is_a_reason(monkeypatch):
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    with pytest.raises(Unreadable, match="PYTORCH_NO_CUDA_MEMORY_CACHING=1"):
        devices.find("cuda").ledger()


@in_child
def test_memory_usage_finds_the_gpu_and_counts_what_the_call_itself_takes():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).cuda()
    x = torch.zeros(8, 64, device="cuda")
    kept = [torch.zeros(MIB, device="cuda")]
    torch.cuda.reset_peak_memory_stats()

    def forward():
        kept.clear()  # what was there before is not the call's to free
        model(x)

    usage = memory_usage(forward)
    assert usage.saved_bytes == 8 * 64 * 4
    assert usage.peak_bytes == 8 * 64 * 4 * 2  # the ReLU's input and output
    assert memory_usage(lambda: model(x)).peak_bytes == usage.peak_bytes
    with torch.inference_mode():
        assert memory_usage(lambda: model(x), leaks_too=True).leaked_bytes == 0


@in_child
def test_what_waits_for_the_collector_is_not_freed_while_a_call_is_counted(monkeypatch):
    gc.disable()
    knot = [torch.zeros(10_000, device="cuda")]
    knot.append(knot)
    del knot
    empty = torch.empty

    def collecting(size, **options):
        if size == PROOF_BYTES:  # between two readings, to prove that the allocator counts
            gc.collect()
        return empty(size, **options)

    monkeypatch.setattr(torch, "empty", collecting)
    assert memory_usage(lambda: torch.zeros(64, device="cuda")).peak_bytes == 512


@in_child
def test_memory_usage_of_another_device_than_was_worked_on_is_an_error_and_not_a_zero():
    x = torch.zeros(64, 64, device="cuda")
    with pytest.raises(WrongDevice, match="works on cuda:0"):
        memory_usage(lambda: x @ x, device="cpu")
    with pytest.raises(WrongDevice, match="works on cpu"):
        memory_usage(lambda: torch.zeros(64), device="cuda")
    with pytest.raises(WrongDevice, match="works on cuda:0, where"):
        memory_usage(lambda: x + 1, device="cuda:1")
    assert memory_usage(lambda: torch.zeros(64)).peak_bytes == 256
    assert memory_usage(lambda: torch.zeros(64, device="cuda:1")).peak_bytes == 512


@in_child
def test_memory_usage_on_the_second_gpu_starts_nothing_on_the_first_and_counts_no_workspace():
    with torch.cuda.device(1):
        model, x = nn.Linear(64, 10).cuda(), torch.zeros(8, 64, device="cuda:1")
    assert memory_usage(lambda: model(x)).peak_bytes == 512
    assert torch.cuda.memory_reserved(0) == 0
