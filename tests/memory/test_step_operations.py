"""A step's counts: bytes are those that a run reads, and the same whatever is around the step."""

import gc
import queue
import threading
from functools import partial

import pytest
import torch
from torch import nn

from gradbench import devices
from gradbench.devices import Unreadable
from gradbench.experiment.matrix import Cell
from gradbench.experiment.plan import Plan
from gradbench.memory.step_operations import counted_step
from gradbench.records.measurements import Measurement
from gradbench.runner import memory_pass
from gradbench.workloads.arms import build, make_arm
from gradbench.workloads.models import MODELS, Model, classification, mlp

FLOAT = 4
BATCH, WIDE, HIDDEN, CLASSES = 8, 16, 32, 10
MIB = 2**20

pytestmark = pytest.mark.usefixtures("measured_here")

CPU = devices.find("cpu")


class Around(nn.Module):
    """A network whose forward does something besides."""

    def __init__(self, done):
        super().__init__()
        self.net, self.done = mlp(WIDE, HIDDEN, CLASSES), done

    def forward(self, x):
        self.done(x)
        return self.net(x)


def around(done) -> Model:
    return Model(partial(Around, done), partial(classification, shape=(WIDE,)))


def nothing(_x):
    pass


def counted(model, *, workload="inference", mode="no_grad", device=CPU, **axes):
    cell = Cell(model="it", workload=workload, grad_mode=mode, batch_size=BATCH, **axes)
    made = []

    def built():
        made.append(make_arm(cell, build(cell, model, seed=0)))
        return made[-1]

    _, counts = counted_step(device, built)
    assert len(made) == 1
    return counts


def as_run_reads_them(model, **axes):
    cell = Cell(
        **{"model": "it", "workload": "inference", "grad_mode": "no_grad", "batch_size": BATCH}
        | axes
    )
    meters = ("peak_transient", "saved_for_backward")
    found = memory_pass.memory_block([cell], model, Plan(), meters)
    return {m.meter: m.values[0] for m in found if isinstance(m, Measurement)}


@pytest.mark.parametrize(
    ("name", "workload", "mode", "axes"),
    [
        ("mlp_tiny", "inference", "no_grad", {}),
        ("mlp_tiny", "inference", "global_on", {}),
        ("mlp_tiny", "training", "global_on", {"optimizer": "adamw"}),
        ("cnn_small", "training", "global_on", {}),
        ("mlp_tiny", "evaluate_then_train", "inference_mode", {}),
    ],
)
def test_bytes_are_those_that_a_run_reads(name, workload, mode, axes):
    counts = counted(MODELS[name], workload=workload, mode=mode, **axes)
    found = as_run_reads_them(MODELS[name], workload=workload, grad_mode=mode, **axes)
    assert counts.peak_bytes == found["peak_transient"] > 0
    assert counts.saved_bytes == found["saved_for_backward"]
    assert not counts.unread


def temporary(_x):
    torch.zeros(MIB, dtype=torch.uint8)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "global_on"])
def test_a_temporary_of_a_forward_is_in_its_peak_and_not_in_what_is_saved(mode):
    plain, more = (counted(around(done), mode=mode) for done in (nothing, temporary))
    assert more.peak_bytes >= MIB > plain.peak_bytes
    assert more.saved_bytes == plain.saved_bytes


def test_what_a_kernel_allocates_inside_is_in_the_peak():
    def sorts(x):
        torch.sort(x.expand(64, BATCH, WIDE).reshape(-1))

    plain, more = (counted(around(done)) for done in (nothing, sorts))
    assert more.peak_bytes > plain.peak_bytes


class Ring(nn.Module):
    """Each forward leaves an activation to the collector."""

    def __init__(self):
        super().__init__()
        self.net = mlp(WIDE, HIDDEN, CLASSES)

    def forward(self, x):
        ring = [x.exp()]
        ring.append(ring)
        return self.net(x)


@pytest.mark.parametrize("threshold", [1, 10**6])
def test_a_peak_does_not_depend_on_when_garbage_is_collected(threshold):
    model = Model(Ring, partial(classification, shape=(WIDE,)))
    before = gc.get_threshold()
    gc.enable()  # as it is for users, and not for these tests
    gc.set_threshold(threshold)
    try:
        counts = counted(model)
    finally:
        gc.set_threshold(*before)
    assert counts.peak_bytes == counted(model).peak_bytes
    assert gc.isenabled()


class Drawn(nn.Module):
    """Makes a tensor whose size is drawn at random."""

    def forward(self, x):
        torch.zeros(int(torch.randint(1, 10**6, ())))
        return x.sum(1, keepdim=True).expand(-1, CLASSES)


def test_sizes_that_are_drawn_are_drawn_alike_each_time():
    model = Model(Drawn, partial(classification, shape=(WIDE,)))
    assert counted(model).peak_bytes == counted(model).peak_bytes > 0


class Served(nn.Module):
    """Its network runs in a thread that was there before the step."""

    def __init__(self):
        super().__init__()
        self.net, self.asked, self.done = mlp(WIDE, HIDDEN, CLASSES), queue.Queue(), queue.Queue()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while (x := self.asked.get()) is not None:
            with torch.no_grad():
                self.done.put(self.net(x))

    def forward(self, x):
        self.asked.put(x)
        return self.done.get()


def test_a_peak_of_a_thread_that_was_there_before_is_a_reason_and_not_a_lower_number():
    built = []

    def make():
        built.append(Served())
        return built[-1]

    counts = counted(Model(make, partial(classification, shape=(WIDE,))))
    built[0].asked.put(None)
    assert counts.peak_bytes is None and counts.saved_bytes is None
    assert "in a thread that was there before the step" in counts.unread["peak_bytes"]


class Blind:
    """A CPU whose allocations cannot be counted, from some window on."""

    def __init__(self, windows):
        self.windows = windows

    def ledger(self):
        if not self.windows:
            raise Unreadable("no memory events")
        self._ledger, self._left = CPU.ledger(), self.windows
        return self

    def observe(self, function):
        result = self._ledger.observe(function)
        self._left -= 1
        if not self._left:
            raise Unreadable("no memory events")
        return result

    def __getattr__(self, name):
        return getattr(CPU, name)


@pytest.mark.parametrize("windows", [0, 1, 2])
def test_a_peak_that_cannot_be_read_is_a_reason_and_all_else_is_counted_once_built(windows):
    counts, plain = counted(around(nothing), device=Blind(windows)), counted(around(nothing))
    assert counts.peak_bytes is None
    assert counts.unread == {"peak_bytes": "no memory events"}
    assert (counts.operators, counts.nodes) == (plain.operators, plain.nodes)


def test_a_step_that_fails_with_hooks_has_a_peak_and_a_reason():
    class Refuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(WIDE, HIDDEN, CLASSES)

        def forward(self, x):
            with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
                return self.net(x)

    counts = counted(Model(Refuses, partial(classification, shape=(WIDE,))), mode="global_on")
    assert counts.saved_bytes is None
    why = counts.unread["saved_bytes"]
    assert "with hooks on what is saved: RuntimeError: saved tensor hooks are switched off" in why
    assert why.endswith(": none here")
    assert counts.peak_bytes > 0
