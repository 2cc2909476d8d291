"""The self-check of a CUDA device on the simulated runtime: true meters pass, broken ones do not.

What the host's clock has a part in must be there and is not judged: other work on this machine
would judge it.
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from simulated_gpu.stand_in import in_child
from typer.testing import CliRunner

from gradbench import devices
from gradbench.cli import app
from gradbench.devices import Trace, Unreadable
from gradbench.devices.allocator_ledger import AllocatorLedger
from gradbench.devices.cuda import CUDA, HeldClock
from gradbench.exit_status import ExitStatus
from gradbench.experiment.plan import Plan
from gradbench.records.allocations import Change
from gradbench.records.selfcheck import load
from gradbench.selfcheck import device_checks, device_clocks, device_memory, device_runs

pytestmark = pytest.mark.simulated_cuda

CLOCKED = (
    "device clock",
    "end to end",
    "host clock",
    "injected",
    "A/A",
    "gate of two runs: no other",
)
MEMORY = (
    partial(device_memory.starts, "time"),
    device_memory.counters,
    device_memory.known_blocks,
    device_memory.workspaces,
    device_memory.traces,
    device_memory.memory_runs_out,
)


def asked(ask):
    device = devices.find("cuda")
    device.prepare()
    return {check.name: check for check in ask(device)}


def statuses(ask):
    return {name: check.status for name, check in asked(ask).items()}


@pytest.mark.parametrize("ask", MEMORY, ids=lambda ask: getattr(ask, "__name__", "starts"))
@in_child
def test_what_is_asked_about_memory_is_ok(ask):
    checks = asked(ask)
    assert checks
    assert {check.status for check in checks.values()} == {"ok"}, checks


@in_child
def test_a_cpu_cell_is_seen_to_start_no_accelerator(monkeypatch):
    for name, value in devices.find("cpu").environment.items():
        monkeypatch.setenv(name, value)
    (check,) = device_memory.left_alone(devices.find("cuda"))
    assert check.status == "ok"


@in_child
def test_an_accelerator_that_a_cpu_cell_started_is_bad():
    torch.cuda.init()
    (check,) = device_memory.left_alone(devices.find("cuda"))
    assert check.status == "BAD"


@in_child
def test_every_clock_reads_kernels_of_known_length():
    checks = asked(device_clocks.known_lengths)
    assert len(checks) == 4
    assert all(check.value is not None for check in checks.values()), checks


@in_child
def test_a_host_delay_is_nothing_to_the_device_clock():
    checks = asked(device_clocks.injections)
    assert len(checks) == 4
    assert checks["injected host delay: device clock"].status == "ok"
    assert all(check.value is not None for check in checks.values()), checks


@in_child
def test_every_sensor_is_ok():
    checks = asked(device_clocks.sensors)
    assert {check.status for check in checks.values()} == {"ok"}, checks
    assert any("energy" in name for name in checks)


@in_child
def test_a_sensor_that_fails_is_unreadable_with_nvmls_reason(monkeypatch):
    monkeypatch.setenv(
        "SIMULATED_CUDA_FAIL", "nvmlDeviceGetTotalEnergyConsumption=3,nvmlDeviceGetClockInfo=3"
    )
    monkeypatch.setenv("SIMULATED_CUDA_PROCESSES", "other-pid")
    checks = asked(device_clocks.sensors)
    unreadable = {name: check for name, check in checks.items() if check.status == "unreadable"}
    assert len(unreadable) == 4
    assert all(check.value is None and check.detail for check in unreadable.values())
    assert not [check for check in checks.values() if check.status == "BAD"]


@in_child
def test_an_allocator_that_does_not_count_is_unreadable(monkeypatch):
    monkeypatch.setattr(CUDA, "ledger", lambda *_, **__: (_ for _ in ()).throw(Unreadable("off")))
    question = device_checks.Question(about="ledger", ask=device_memory.counters)
    (check,) = device_checks.asked(question, "cuda")
    assert (check.status, check.name, check.detail) == ("unreadable", "ledger", "off")


def _peaks_a_block_too_high(monkeypatch):
    true = AllocatorLedger.stats

    def stats(self):
        counters = dict(true(self))
        counters["allocated_bytes.all.peak"] += 512
        counters["requested_bytes.all.peak"] += 1
        return counters

    monkeypatch.setattr(AllocatorLedger, "stats", stats)


def _traces_without_frees(monkeypatch):
    true = AllocatorLedger.trace

    def trace(self, function):
        result, window, traced = true(self, function)
        kept = [
            moment
            for moment in traced.moments
            if not (isinstance(moment[1], Change) and moment[1].nbytes < 0)
        ]
        return result, window, Trace(tuple(kept))

    monkeypatch.setattr(AllocatorLedger, "trace", trace)


def _workspaces_never_dropped(monkeypatch):
    monkeypatch.setattr(CUDA, "forget", lambda self: None)


def _out_of_memory_unknown(monkeypatch):
    monkeypatch.setattr(CUDA, "out_of_memory", lambda self, error: False)


def _half_the_device_time(monkeypatch):
    true = HeldClock.read

    def read(self, step, iterations, *, hold_ns):
        time_ns = true(self, step, iterations, hold_ns=hold_ns)
        return time_ns and time_ns // 2

    monkeypatch.setattr(HeldClock, "read", read)


def _energy_that_stands_still(monkeypatch):
    monkeypatch.setattr(CUDA, "energy_counter", lambda self: lambda: 7)


@pytest.mark.parametrize(
    ("broken", "ask", "bad"),
    [
        (_peaks_a_block_too_high, device_memory.counters, "ledger against torch.accelerator: peak"),
        (_peaks_a_block_too_high, device_memory.known_blocks, "bytes asked for, of known blocks"),
        (
            _traces_without_frees,
            device_memory.traces,
            "trace against the counted peak: mlp_tiny training",
        ),
        (_workspaces_never_dropped, device_memory.workspaces, "workspaces of libraries: dropped"),
        (_out_of_memory_unknown, device_memory.memory_runs_out, "out of memory: recognised"),
        (
            _half_the_device_time,
            device_clocks.known_lengths,
            "device clock: kernels of known length",
        ),
        (_half_the_device_time, device_clocks.injections, "injected kernels: device clock"),
        (_energy_that_stands_still, device_clocks.sensors, "energy counter moves with work"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@in_child
def test_a_broken_meter_is_bad(monkeypatch, broken, ask, bad):
    broken(monkeypatch)
    assert statuses(ask)[bad] == "BAD"


def selfcheck(*arguments: str):
    return CliRunner().invoke(app, ["selfcheck", "--device", "cuda", *arguments])


def test_a_runtime_that_gives_no_memory_ends_the_command_with_a_status(monkeypatch, tmp_path: Path):
    """Each question breaks in its own process, and is a BAD line with the runtime's words."""
    monkeypatch.setenv("SIMULATED_CUDA_FAIL", "cudaMalloc=2")
    monkeypatch.setattr(device_runs, "two_runs", lambda *_: iter(()))
    answer = selfcheck("--results", str(tmp_path))
    assert answer.exit_code == ExitStatus.CHECK_FAILED
    bad = [line for line in answer.stdout.splitlines() if line.startswith("BAD")]
    assert any("out of memory" in line for line in bad), answer.stdout
    assert "a CPU cell starts no accelerator" in answer.stdout
    assert "attach" in answer.stderr


def test_the_whole_self_check_has_no_bad_line_but_the_hosts(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(device_runs, "PLAN", Plan(budget_s=0.2, warmup_s=0.05, limit_s=120))
    monkeypatch.setattr(device_runs, "MODELS", ("mlp_tiny",))
    answer = selfcheck("--results", str(tmp_path), "--json")
    printed = json.loads(answer.stdout)
    checks, facts = load(tmp_path / "selfcheck-cuda.json") or pytest.fail("nothing was saved")
    assert [check["name"] for check in printed["checks"]] == [check.name for check in checks]
    assert facts["device"] == "cuda"
    assert "Simulated" in str(facts["gpu"])
    sure = [check for check in checks if not check.name.startswith(CLOCKED)]
    clocked = [check for check in checks if check.name.startswith(CLOCKED)]
    assert {check.status for check in sure} == {"ok"}, sure
    assert all(check.value is not None for check in clocked), clocked
    bad = any(check.status == "BAD" for check in checks)
    assert answer.exit_code == (ExitStatus.CHECK_FAILED if bad else ExitStatus.OK)
