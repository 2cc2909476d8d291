"""A cell whose memory grows is stopped before it fills the machine, and it alone."""

import queue

import pytest
import torch
from batches import unlabelled
from torch import nn

from gradbench.devices import Memory
from gradbench.devices.cpu import CPU
from gradbench.experiment.matrix import GRAD_MODES, Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Measurement, Skipped
from gradbench.runner import time_pass
from gradbench.runner.memory_guard import LOOK_S, SHARE, GrowingMemory, MemoryGuard
from gradbench.workloads.models import Model

FREE = 8_000
EIGHTH = FREE // SHARE


class Machine:
    """A memory of which a script says how much is used, and a clock that each look moves."""

    def __init__(self):
        self.used, self.now_s = 100_000, 0.0
        memory = Memory("the card's memory", lambda: self.used, lambda: FREE)
        self.guard = MemoryGuard([memory], clock_s=self.clock)

    def clock(self):
        self.now_s += LOOK_S
        return self.now_s

    def visit(self, cell, keeps):
        self.used += keeps
        self.guard.visited(cell)


def test_the_cell_that_grows_is_stopped_at_a_quarter_of_what_was_free():
    machine, rounds = Machine(), 0
    with pytest.raises(GrowingMemory, match="its steps keep more and more") as stopped:
        while True:
            machine.visit("sound", 0)
            machine.visit("leaking", 100)
            rounds += 1
    assert machine.used - 100_000 == 2 * EIGHTH
    assert f"{EIGHTH:,} B of the card's memory in 10 visits" in str(stopped.value)
    assert f"where {FREE:,} B were free" in str(stopped.value)
    for _ in range(100):
        machine.visit("sound", 0)


def test_what_is_taken_once_is_nobodys_leak():
    machine = Machine()
    machine.visit("first", 6 * EIGHTH)
    for _ in range(100):
        machine.visit("first", 0)
        machine.visit("second", -500)
        machine.visit("first", 500)


def test_until_something_has_grown_looks_are_rare():
    looks = []
    memory = Memory("the host's memory", lambda: looks.append(1) or 0, lambda: FREE)
    now_s = [0.0]
    guard = MemoryGuard([memory], clock_s=lambda: now_s[0])
    for _ in range(1000):
        now_s[0] += LOOK_S / 10
        guard.visited("any")
    assert 90 <= len(looks) <= 102


KEPT = queue.SimpleQueue()  # no container: those of a model's file are put back between modes


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        y = self.layer(x)
        if not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            KEPT.put(y)
        return y


class SmallMachine(CPU):
    def memories(self):
        return (Memory("the host's memory", lambda: 64 * KEPT.qsize(), lambda: 64 * 800),)


def test_a_leaking_mode_is_stopped_in_the_time_pass_and_its_siblings_keep_their_rounds(monkeypatch):
    monkeypatch.setattr(time_pass, "settle", lambda _: SmallMachine())
    monkeypatch.setattr("gradbench.runner.memory_guard.LOOK_S", 0.0)
    modes = [mode for mode in GRAD_MODES if mode != "global_off"]
    cells = list(Matrix(models=["it"], grad_modes=modes, batch_sizes=[4]))
    model = Model(Keeping, lambda size: unlabelled(size, shape=(4,)))
    plan = Plan(budget_s=60, max_rounds=200, warmup_s=0.01)  # the rounds end it, and no clock
    messages = time_pass.time_block(cells, model, plan, ["step_time"])
    found = {m.cell.grad_mode: m for m in messages if isinstance(m, Measurement | Skipped)}
    stopped = found["no_grad"]
    assert isinstance(stopped, Skipped)
    assert stopped.cause == "out_of_memory"
    assert "its steps keep more and more" in stopped.reason
    for mode in ("global_on", "inference_mode"):
        assert isinstance(found[mode], Measurement)
        assert len(found[mode].values) >= plan.min_rounds
