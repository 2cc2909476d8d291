"""XPU, MPS and ROCm through fakes of torch's public names: none of them has been met for real."""

from types import SimpleNamespace

import pytest
import torch

from gradbench import devices
from gradbench.devices import Unreadable, accelerator, allocator_ledger, cuda, mps
from gradbench.devices.mps import NO_PEAKS
from gradbench.errors import DeviceUnavailable
from gradbench.store.comparability import difference

METERS_OF_TIME = ("device_clock", "spinner", "energy_counter")


class FakeBackend:
    """A device behind `torch.accelerator`: counters that fit together, and a log of calls."""

    def __init__(self, family, *, count=2, counters=("allocated", "requested", "reserved")):
        self.family, self.count, self.log = family, count, []
        self.now = dict.fromkeys(counters, 0)
        self.most = dict(self.now)

    def allocate(self, nbytes):
        rounded = (1 if nbytes > 0 else -1) * -(-abs(nbytes) // 512) * 512
        for what in self.now:
            self.now[what] += nbytes if what == "requested" else rounded
            self.most[what] = max(self.most[what], self.now[what])

    def empty(self, size, *, dtype, device):
        return FakeBlock(self, size)

    def is_available(self):
        return self.count > 0

    def is_initialized(self):
        return bool(self.log)

    def device_count(self):
        return self.count

    def set_device_index(self, index):
        self.log.append(f"set {index}")

    def synchronize(self, device=None):
        self.log.append(f"synchronize {device}")

    def empty_cache(self):
        self.log.append("empty cache")

    def reset_peak_memory_stats(self, device):
        self.most = dict(self.now)

    def memory_stats(self, device):
        return {
            f"{what}_bytes.all.{which}": counts[what]
            for which, counts in (("current", self.now), ("peak", self.most))
            for what in self.now
        }

    def get_memory_info(self, index):
        return 3 * 2**30, 4 * 2**30

    def get_device_properties(self, device):
        return SimpleNamespace(
            name="Fake XPU", total_memory=2**34, version="1.6", driver_version="25.1"
        )

    def driver_allocated_memory(self):
        return 5 * 2**20

    def recommended_max_memory(self):
        return 2**33

    def current_allocated_memory(self):
        return 0


class FakeBlock:
    def __init__(self, backend, size):
        self.backend, self.size = backend, size
        backend.allocate(size)

    def __del__(self):
        self.backend.allocate(-self.size)


def installed(monkeypatch, backend):
    """Let gradbench's modules see a torch that has this backend."""
    names = {name: getattr(torch, name) for name in ("device", "uint8", "OutOfMemoryError")}
    fake = SimpleNamespace(
        **names,
        __version__="2.99",
        empty=backend.empty,
        accelerator=backend,
        set_float32_matmul_precision=lambda _: None,
        **{backend.family: backend},
    )
    for module in (accelerator, allocator_ledger, mps):
        monkeypatch.setattr(module, "torch", fake)
    return backend


@pytest.fixture
def intel(monkeypatch):
    return installed(monkeypatch, FakeBackend("xpu"))


@pytest.fixture
def apple(monkeypatch):
    return installed(monkeypatch, FakeBackend("mps", count=1))


def test_an_xpu_counts_live_bytes_peaks_and_what_was_asked_for(intel):
    device = devices.find("xpu:1")
    device.prepare()

    def step():
        block = intel.empty(600, dtype=None, device=None)
        del block

    _, window = device.ledger().observe(step)
    assert (window.before_bytes, window.peak_bytes, window.after_bytes) == (0, 1024, 0)
    assert window.requested.peak_bytes == 600
    assert window.reserved_bytes == 1024
    assert (device.place, device.name) == ("xpu:1", "xpu:1")
    assert "set 1" in intel.log
    assert "synchronize xpu:1" in intel.log


def test_an_xpu_says_what_it_is(intel, monkeypatch):
    monkeypatch.delenv("ONEAPI_DEVICE_SELECTOR", raising=False)  # set by measuring on the CPU
    monkeypatch.setenv("ZE_AFFINITY_MASK", "0")
    facts = devices.find("xpu").describe()
    assert (facts["gpu"], facts["gpu_driver"]) == ("Fake XPU", "25.1")
    assert facts["accelerator_settings"] == "ZE_AFFINITY_MASK=0"


@pytest.mark.parametrize(
    "counters", [(), ("reserved",), ("allocated",), ("allocated", "requested")]
)
def test_an_accelerator_that_counts_no_memory_is_a_reason_not_a_zero(monkeypatch, counters):
    installed(monkeypatch, FakeBackend("xpu", counters=counters))
    with pytest.raises(Unreadable, match="1024 bytes were counted as"):
        devices.find("xpu").ledger()


def test_a_torch_that_refuses_to_count_is_a_reason_with_its_words(intel):
    def refuses(device):
        raise RuntimeError("Allocator for xpu is not a DeviceAllocator.")

    intel.memory_stats = refuses
    with pytest.raises(Unreadable, match="counts no memory on xpu: Allocator for xpu is not"):
        devices.find("xpu").ledger()


@pytest.mark.parametrize("family", ["xpu", "mps"])
def test_what_torch_does_not_offer_is_a_reason_that_names_the_backend(monkeypatch, family):
    installed(monkeypatch, FakeBackend(family))
    device = devices.find(family)
    for name in METERS_OF_TIME:
        with pytest.raises(Unreadable, match=family):
            getattr(device, name)()
    assert family in str(device.monitor().notes())
    assert device.host_clock().read(lambda: None, 3) >= 0


def test_mps_keeps_no_peaks_and_says_so_but_knows_what_metal_holds(apple):
    device = devices.find("mps")
    with pytest.raises(Unreadable, match=NO_PEAKS):
        device.ledger()
    assert device.process_bytes() == 5 * 2**20
    assert device.out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not device.out_of_memory(RuntimeError("shapes do not fit"))
    assert device.describe()["gpu_memory_bytes"] == 2**33


@pytest.mark.parametrize("name", ["xpu", "mps"])
def test_a_device_that_is_not_here_is_unavailable(name):
    if getattr(torch, name).is_available():
        pytest.skip(f"there is a {name} here")
    with pytest.raises(DeviceUnavailable, match=f"no {name} device"):
        devices.find(name).check()
    assert name not in devices.available()


def test_a_cluster_that_counts_gpus_has_the_first_family_that_it_counts_so():
    assert devices.in_cluster(frozenset()) == devices.in_cluster([""]) == ["cpu"]
    assert devices.in_cluster(["", "GPU"]) == ["cpu", "cuda"]


def test_an_index_beyond_the_last_device_is_unavailable(intel):
    with pytest.raises(DeviceUnavailable, match="counted from xpu:0"):
        devices.find("xpu:2").check()
    devices.find("xpu:1").check()


def test_a_device_that_broke_is_no_error_of_the_step(intel):
    device = devices.find("xpu")
    assert not device.lost(RuntimeError("shapes do not fit"))

    def broken(_device=None):
        raise RuntimeError("device lost")

    intel.synchronize = broken
    assert device.lost(RuntimeError("device lost"))


def test_runs_on_an_xpu_compare_without_facts_of_cuda():
    facts = dict.fromkeys(
        ("protocol", "torch", "cpu_capability", "gpu", "gpu_capability", "accelerator_settings"),
        "x",
    )
    assert difference(facts, facts, kind="exact", device="xpu") == ""
    assert "cuda" in difference(facts, facts, kind="exact", device="cuda")
    other = facts | {"accelerator_settings": "y"}
    assert "accelerator_settings" in difference(facts, other, kind="exact", device="mps")


def rocm(monkeypatch):
    properties = SimpleNamespace(
        name="Fake Instinct",
        total_memory=2**36,
        major=9,
        minor=4,
        gcnArchName="gfx942:sramecc+",
        L2_cache_size=2**22,
    )
    fake = SimpleNamespace(
        version=SimpleNamespace(cuda=None, hip="7.0"),
        device=torch.device,
        backends=SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 3005000, benchmark=False)),
        set_float32_matmul_precision=lambda _: None,
        cuda=SimpleNamespace(
            is_available=lambda: True,
            device_count=lambda: 1,
            get_allocator_backend=lambda: "native",
            get_device_properties=lambda _: properties,
        ),
    )
    monkeypatch.setattr(cuda, "torch", fake)
    return devices.find("cuda")


def test_rocm_answers_to_cuda_and_names_its_architecture(monkeypatch):
    device = rocm(monkeypatch)
    device.check()
    facts = device.describe()
    assert facts["gpu_capability"] == "gfx942:sramecc+"
    assert facts["cuda"] == "none: ROCm 7.0"
    assert device.precisions == ("ieee",)
    device.set_precision("ieee")


def test_rocm_has_no_nvml_and_every_sensor_says_so(monkeypatch):
    device = rocm(monkeypatch)
    for read in (device.energy_counter, device.process_bytes):
        with pytest.raises(Unreadable, match="NVIDIA's GPUs alone"):
            read()
    facts = {**device.describe(), **device.monitor().notes()}
    for name in ("gpu_driver", "gpu_power_limit_mw", "gpu_persistence", "nvml"):
        assert str(facts[name]).startswith("unknown: NVML knows NVIDIA's GPUs alone"), name


def test_a_cuda_build_names_the_compute_capability_whatever_its_properties_hold(monkeypatch):
    device = rocm(monkeypatch)
    cuda.torch.version = SimpleNamespace(cuda="13.0", hip=None)
    monkeypatch.setattr(cuda.nvml, "find", lambda **_: (_ for _ in ()).throw(Unreadable("none")))
    assert device.describe()["gpu_capability"] == "9.4"
