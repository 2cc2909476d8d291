"""The CUDA device: through a fake torch.cuda everywhere, for real where there is one."""

from types import SimpleNamespace

import pytest
import torch

from gradbench import devices
from gradbench.devices import cuda
from gradbench.errors import DeviceUnavailable, UnknownName
from gradbench.matrix import GRAD_MODES, Matrix
from gradbench.plan import Plan
from gradbench.records import Measurement
from gradbench.runner import Bench

here = torch.cuda.is_available()


class FakeCuda:
    """Counters as the caching allocator keeps them, and a log of calls."""

    OutOfMemoryError = torch.cuda.OutOfMemoryError

    def __init__(self, *, count=2):
        self.count, self.log = count, []
        self.allocated = self.peak = 1000
        self.reserved_peak = 4096

    def is_available(self):
        return self.count > 0

    def device_count(self):
        return self.count

    def synchronize(self, name):
        self.log.append(f"synchronize {name}")

    def set_device(self, device):
        self.log.append(f"set {device}")

    def reset_peak_memory_stats(self, name):
        self.log.append("reset")
        self.peak = self.allocated

    def memory_allocated(self, name):
        return self.allocated

    def max_memory_allocated(self, name):
        return self.peak

    def max_memory_reserved(self, name):
        return self.reserved_peak

    def get_device_properties(self, device):
        return SimpleNamespace(name="Fake GPU", total_memory=2**34, major=9, minor=0)

    def step(self):
        self.log.append("step")
        self.peak = self.allocated + 500


@pytest.fixture
def fake(monkeypatch):
    fake = FakeCuda()
    stand_in = SimpleNamespace(
        cuda=fake,
        version=SimpleNamespace(cuda="13.0"),
        device=torch.device,
        backends=SimpleNamespace(
            cudnn=SimpleNamespace(benchmark=True, allow_tf32=True, version=lambda: 91000),
            cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)),
        ),
    )
    monkeypatch.setattr(cuda, "torch", stand_in)
    fake.backends = stand_in.backends
    fake.version = stand_in.version
    return fake


def test_a_window_resets_before_and_reads_after_synchronizing(fake):
    _, window = devices.find("cuda:1").ledger().observe(fake.step)
    assert fake.log == ["synchronize cuda:1", "reset", "step", "synchronize cuda:1"]
    assert (window.before_bytes, window.peak_bytes, window.reserved_bytes) == (1000, 1500, 4096)


def test_settings_that_change_figures_are_fixed_and_recorded(fake):
    device = devices.find("cuda")
    device.prepare()
    assert fake.log == ["set cuda:0"]
    facts = device.describe()
    assert facts["tf32"] is False
    assert facts["cudnn_benchmark"] is False
    assert facts["gpu"] == "Fake GPU"
    assert facts["cudnn"] == 91000
    assert isinstance(facts["gpu_driver"], str)


def test_an_index_beyond_the_last_device_is_unavailable(fake):
    devices.find("cuda:1").check()
    with pytest.raises(DeviceUnavailable, match="this machine has 2"):
        devices.find("cuda:2").check()


def test_no_device_and_no_cuda_build_are_told_apart(fake):
    fake.count = 0
    with pytest.raises(DeviceUnavailable, match="finds no CUDA device"):
        devices.find("cuda").check()
    fake.version.cuda = None
    with pytest.raises(DeviceUnavailable, match="this build of torch has no CUDA"):
        devices.find("cuda").check()


def test_memory_that_ran_out_is_recognised(fake):
    device = devices.find("cuda")
    assert device.out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert not device.out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


def test_a_context_does_not_survive_a_fork_so_processes_are_spawned(fake):
    assert devices.find("cuda").start == "spawn"
    assert devices.find("cpu").start == "fork"


@pytest.mark.parametrize("name", ["cud", "cuda:", "cuda:x", "cpu:0", "mps"])
def test_wrong_device_names_are_refused(name):
    with pytest.raises(UnknownName, match=r"unknown device"):
        devices.find(name)


@pytest.mark.cuda
@pytest.mark.skipif(not here, reason="no CUDA device here")
def test_every_meter_reads_on_a_real_device():
    cells = list(Matrix(models=["cnn_small"], devices=["cuda"], batch_sizes=[8]))
    with Bench(plan=Plan(budget_s=0.5)) as bench:
        found = [o for outcomes in bench.measure(cells) for o in outcomes]
    assert {type(o) for o in found} == {Measurement}
    peaks = {o.cell.grad_mode: o.values[0] for o in found if o.meter == "peak_transient"}
    assert peaks["global_on"] > peaks["no_grad"] == peaks["inference_mode"] == peaks["global_off"]
    assert {o.cell.grad_mode for o in found} == set(GRAD_MODES)
