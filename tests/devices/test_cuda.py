"""The CUDA device: through a fake torch.cuda everywhere, for real where there is one."""

import os
import random
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from fakes import FakeArm, FakeClock, FakeGpu, FakeNvml

from gradbench import devices
from gradbench.devices import (
    Span,
    Unreadable,
    Unwatched,
    Window,
    allocator_ledger,
    cuda,
    nothing,
    nvml,
)
from gradbench.devices.cpu import CPU, ProfilerLedger
from gradbench.devices.enqueue_clock import EnqueueClock
from gradbench.errors import DeviceUnavailable, UnknownName
from gradbench.experiment.matrix import GRAD_MODES, Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.allocations import Phase, Tag
from gradbench.records.measurements import Breakdown, Measurement, Skipped
from gradbench.runner import attempts, cuda_clocks, memory_pass, time_pass, visits
from gradbench.runner.bench import Bench
from gradbench.runner.interleave import Interleaving, Warmth
from gradbench.runner.meters import METERS, StepTime, allocator_figures
from gradbench.runner.preflight import obstacle
from gradbench.workloads.models import MODELS

here = torch.cuda.is_available()


class FakeAllocator:
    """A device's caching allocator, as far as it counts: its figures fit together."""

    def __init__(self):
        self.counts = {what: [0, 0] for what in ("allocated", "requested", "reserved")}

    def allocate(self, asked):
        """Take or, below 0, give back a block; the cache keeps what is given back."""
        sign = 1 if asked > 0 else -1
        rounded = sign * -(-abs(asked) // 512) * 512
        for what, nbytes in (("allocated", rounded), ("requested", asked)):
            self._count(what, self.counts[what][0] + nbytes)
        self._count("reserved", max(self.counts["reserved"][0], self._segments()))

    def empty_cache(self):
        self._count("reserved", self._segments())

    def reset(self):
        self.counts = {what: [now, now] for what, (now, _) in self.counts.items()}

    def _segments(self):
        return -(-self.counts["allocated"][0] // 2**21) * 2**21

    def _count(self, what, nbytes):
        self.counts[what] = [nbytes, max(self.counts[what][1], nbytes)]


class FakeCuda:
    """Two devices with an allocator each, and a log of calls. What tests allocate is on cuda:1."""

    OutOfMemoryError = torch.cuda.OutOfMemoryError

    def __init__(self, *, count=2):
        self.count, self.log = count, []
        self.allocators = [FakeAllocator() for _ in range(2)]
        self.retries = 0
        self.counting, self.backend, self.sticky = True, "native", None
        self.allocate(1000)
        self.log.clear()
        self.more = {}

    def allocate(self, asked, device="cuda:1"):
        self.allocators[torch.device(device).index].allocate(asked)

    def is_available(self):
        return self.count > 0

    def is_initialized(self):
        return self.count > 0

    def device_count(self):
        return self.count

    def synchronize(self, device):
        self.log.append(f"synchronize {device}")
        if self.sticky is not None:
            raise self.sticky

    def set_device(self, device):
        self.log.append(f"set {device}")

    def memory_allocated(self, index):
        return self.allocators[index].counts["allocated"][0]

    def current_device(self):
        return 0

    def get_allocator_backend(self):
        return self.backend

    def reset_peak_memory_stats(self, device):
        self.log.append("reset")
        self.allocators[device.index].reset()

    def memory_stats(self, device):
        if not self.counting:
            return {}
        return {
            **{
                f"{what}_bytes.all.{which}": nbytes
                for what, pair in self.allocators[device.index].counts.items()
                for which, nbytes in zip(("current", "peak"), pair, strict=True)
            },
            "num_alloc_retries": self.retries,
            "num_ooms": 0,
        }

    def empty_cache(self):
        self.log.append("empty cache")
        for allocator in self.allocators:
            allocator.empty_cache()

    def get_device_properties(self, device):
        return SimpleNamespace(name="Fake GPU", total_memory=2**34, major=9, minor=0, **self.more)

    def empty(self, size, *, dtype, device):
        self.log.append(f"empty {size} {device}")
        return FakeBlock(self, size, device)

    def step(self):
        self.log.append("step")
        self.allocate(600)
        self.allocate(-600)


class FakeBlock:
    def __init__(self, cuda, size, device):
        self.cuda, self.size, self.device = cuda, size, device
        cuda.allocate(size, device)

    def zero_(self):
        self.cuda.log.append("overwrite")

    def __del__(self):
        self.cuda.allocate(-self.size, self.device)


@pytest.fixture
def fake(monkeypatch):
    fake = FakeCuda()
    precision = SimpleNamespace
    stand_in = SimpleNamespace(
        __version__="2.99",
        cuda=fake,
        uint8=torch.uint8,
        empty=fake.empty,
        # autograd's thread is this one here: what is hooked to a tensor without bytes runs
        zeros=lambda *_, device, requires_grad: torch.zeros(0, requires_grad=requires_grad),
        inference_mode=torch.inference_mode,
        enable_grad=torch.enable_grad,
        autograd=torch.autograd,
        set_float32_matmul_precision=lambda word: fake.log.append(f"matmul {word}"),
        version=SimpleNamespace(cuda="13.0"),
        device=torch.device,
        _C=SimpleNamespace(_cuda_clearCublasWorkspaces=lambda: fake.log.append("workspaces")),
        backends=SimpleNamespace(
            cudnn=SimpleNamespace(
                benchmark=True,
                conv=precision(fp32_precision="tf32"),
                rnn=precision(fp32_precision="tf32"),
                version=lambda: 91000,
            ),
            cuda=SimpleNamespace(matmul=precision(fp32_precision="none")),
        ),
    )
    monkeypatch.setattr(cuda, "torch", stand_in)
    monkeypatch.setattr(allocator_ledger, "torch", stand_in)
    fake.backends = stand_in.backends
    fake.version, fake.private = stand_in.version, stand_in._C
    return fake


@pytest.fixture
def ledger(fake):
    """A ledger of cuda:1, proved; what its proof did is not in the log."""
    ledger = devices.find("cuda:1").ledger()
    fake.log.clear()
    return ledger


def test_tests_that_are_not_about_a_gpu_see_none(request):
    if "cuda" in request.config.getoption("markexpr") or "GRADBENCH_SIMULATED_CUDA" in os.environ:
        pytest.skip("GPUs were asked for")
    assert devices.available() == ["cpu"]


def test_a_window_resets_before_and_reads_after_synchronizing(fake, ledger):
    """The cache is emptied first, or what an earlier step reserved would count here."""
    _, window = ledger.observe(fake.step)
    waits = "synchronize cuda:1"
    assert fake.log == [waits, "empty cache", "reset", waits, "step", waits]
    assert (window.before_bytes, window.peak_bytes, window.after_bytes) == (1024, 2048, 1024)
    assert window.reserved_bytes == 2**21


def test_a_window_ends_with_what_is_live_then(fake, ledger):
    _, window = ledger.observe(lambda: fake.allocate(300))
    assert (window.before_bytes, window.after_bytes) == (1024, 1536)


def test_a_window_holds_one_device_and_not_its_neighbour(fake, ledger):
    def on_both():
        fake.allocate(5000, "cuda:0")
        fake.step()

    _, window = ledger.observe(on_both)
    assert (window.before_bytes, window.peak_bytes, window.after_bytes) == (1024, 2048, 1024)
    _, other = devices.find("cuda").ledger().observe(fake.step)
    assert (other.before_bytes, other.peak_bytes) == (5120, 5120)


def test_a_window_has_what_was_asked_for_beside_what_was_handed_out(fake, ledger):
    _, window = ledger.observe(fake.step)
    assert window.requested == Span(1000, 1600, 1000)
    assert window.rounding_bytes == 2048 - 1600


def test_a_retry_of_the_allocator_is_in_its_window_and_in_no_other(fake, ledger):
    def runs_out_once():
        fake.retries += 1

    assert ledger.observe(runs_out_once)[1].retries == 1
    assert ledger.observe(fake.step)[1].retries == 0


@pytest.mark.parametrize("undisturbing", [False, True])
def test_an_allocator_that_counts_nothing_is_a_reason_not_a_zero(fake, monkeypatch, undisturbing):
    fake.counting, fake.backend = False, "cudaMallocAsync"
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    words = r"counted as 0 allocated and 0.*cudaMallocAsync.*PYTORCH_NO_CUDA_MEMORY_CACHING=1"
    with pytest.raises(Unreadable, match=words):
        devices.find("cuda").ledger(undisturbing=undisturbing)


def test_the_trace_of_a_window_has_the_allocators_figures_and_the_marks(fake, ledger):
    def marking(mark):
        mark(Phase("forward"))
        fake.step()
        mark(Tag(7, "saved"))
        return "result"

    result, window, traced = ledger.trace(marking)
    assert result == "result"
    assert (window.before_bytes, window.peak_bytes) == (1024, 2048)
    assert traced.entries("cuda:1") == [Phase("forward"), Tag(7, "saved")]
    with pytest.raises(Unreadable, match="the allocator counted"):
        window.check(traced.entries("cuda:1"))  # the fake's blocks are in no profiler


def test_an_undisturbing_ledger_resets_nothing_and_keeps_the_cache(fake):
    ledger = devices.find("cuda:1").ledger(undisturbing=True)
    fake.log.clear()
    _, window = ledger.observe(lambda: fake.allocate(300))
    assert set(fake.log) == {"synchronize cuda:1"}
    assert (window.before_bytes, window.after_bytes) == (1024, 1536)
    with pytest.raises(Unreadable):
        window.check([])


def test_fragmentation_is_what_is_reserved_and_in_no_tensor(fake, ledger):
    _, window = ledger.observe(fake.step)
    figures = allocator_figures(window, workspaces=200)
    assert figures["fragmentation"] == 2**21 - 2048
    assert figures["peak_transient"] == 2048 - 1024
    assert figures["peak_requested"] == 1600 - 200


def test_to_forget_is_to_drop_workspaces_of_both_threads_then_what_they_leave_in_the_cache(fake):
    devices.find("cuda:1").forget()
    waits = "synchronize cuda:1"
    assert fake.log == [waits, "workspaces", "workspaces", waits, "empty cache"]


def test_a_torch_without_the_private_call_forgets_what_it_can(fake):
    del fake.private._cuda_clearCublasWorkspaces
    devices.find("cuda").forget()
    assert fake.log == ["synchronize cuda:0", "synchronize cuda:0", "empty cache"]


def test_settings_that_change_figures_are_fixed_and_recorded(fake, monkeypatch):
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    device = devices.find("cuda")
    device.prepare()
    assert fake.log == ["set cuda:0"]
    facts = device.describe()
    assert facts["cudnn_benchmark"] is False
    assert facts["gpu"] == "Fake GPU"
    assert facts["cudnn"] == 91000
    assert facts["cuda_allocator"] == "native"
    assert "CUDA_LAUNCH_BLOCKING=1" in facts["cuda_settings"]
    assert isinstance(facts["gpu_driver"], str)


@pytest.mark.parametrize(("precision", "word"), [("ieee", "highest"), ("tf32", "high")])
def test_every_library_multiplies_float32_in_the_precision_of_the_cell(fake, precision, word):
    devices.find("cuda").set_precision(precision)
    backends = fake.backends
    assert {
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.rnn.fp32_precision,
    } == {precision}
    assert fake.log == [f"matmul {word}"]


def test_a_cudnn_that_refuses_an_old_gpu_is_words_and_the_run_goes_on(fake):
    def refuses():
        raise RuntimeError("cuDNN 9.11 needs SM 7.5 or later\nmore")

    fake.backends.cudnn.version = refuses
    assert devices.find("cuda").describe()["cudnn"] == "of no use: cuDNN 9.11 needs SM 7.5 or later"


@pytest.mark.parametrize(
    ("ranges", "usable", "near"),
    [
        ("2-3,8\n", {0, 1, 2, 3, 8, 9}, [2, 3, 8]),
        ("4-7\n", {0, 1}, [0, 1]),  # none of them is usable
        ("\n", {1, 0}, [0, 1]),
        (None, {1, 0}, [0, 1]),
    ],
)
def test_cores_of_the_gpus_own_socket_come_first(fake, monkeypatch, tmp_path, ranges, usable, near):
    fake.more = {"pci_domain_id": 0, "pci_bus_id": 0x1B, "pci_device_id": 0}
    folder = tmp_path / "0000:1b:00.0"
    folder.mkdir()
    if ranges is not None:
        (folder / "local_cpulist").write_text(ranges)
    monkeypatch.setattr(cuda, "PCI_DEVICES", tmp_path)
    assert attempts.near_cores(devices.find("cuda"), sorted(usable)) == near


def test_an_index_beyond_the_last_device_is_unavailable(fake):
    devices.find("cuda:1").check()
    with pytest.raises(DeviceUnavailable, match="this machine has 2"):
        devices.find("cuda:2").check()


def test_no_device_and_no_cuda_build_are_distinguished(fake):
    fake.count = 0
    with pytest.raises(DeviceUnavailable, match="finds no CUDA device"):
        devices.find("cuda").check()
    fake.version.cuda = None
    with pytest.raises(DeviceUnavailable, match="this build of torch has no CUDA"):
        devices.find("cuda").check()


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: an illegal memory access"), False),
        (RuntimeError("element 0 of tensors does not require grad"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_memory_that_ran_out_is_recognised(fake, error, ran_out):
    assert devices.find("cuda").out_of_memory(error) is ran_out


def test_a_device_is_lost_where_every_later_call_raises(fake):
    device = devices.find("cuda")
    error = RuntimeError("CUDA error: device-side assert triggered")
    assert not device.lost(error)
    fake.sticky = error
    assert device.lost(error)
    assert not device.lost(ValueError("of the model's own"))
    assert not devices.find("cpu").lost(error)


def test_a_cpu_cell_hides_every_accelerator_and_a_cell_of_one_hides_none():
    hidden = devices.find("cpu").environment
    assert hidden["CUDA_VISIBLE_DEVICES"] == ""  # NVIDIA's
    assert hidden["HIP_VISIBLE_DEVICES"] == "-1"  # AMD's
    assert "level_zero" not in hidden["ONEAPI_DEVICE_SELECTOR"]  # Intel's
    assert devices.find("cuda").environment == devices.find("xpu").environment == {}


@pytest.mark.parametrize(
    ("words", "occupied"),
    [
        ("AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable", True),
        ("RuntimeError: CUDA error: out of memory", False),
    ],
)
def test_a_gpu_that_another_process_has_to_itself_is_unavailable(fake, words, occupied):
    assert devices.find("cuda").occupied(words) is occupied
    fake.sticky = RuntimeError(words.partition(": ")[2])  # no context: whatever is asked fails
    if occupied:
        refused = attempts.refusal(fake.sticky, devices.find("cuda"))
        assert refused.cause == "unavailable"
        assert "another process has cuda to itself" in refused.reason


def test_the_device_in_use_is_the_accelerator_that_has_been_started(fake, monkeypatch):
    assert devices.in_use().name == "cuda"
    monkeypatch.setattr(fake, "is_initialized", lambda: False)
    assert devices.in_use().name == "cpu"


def test_the_busiest_device_holds_most_tensors_and_with_none_it_is_the_current_one(fake):
    assert devices.in_use().busiest().name == "cuda:1"
    fake.allocate(-1000)
    assert devices.in_use().busiest().name == "cuda"
    fake.allocate(2000, "cuda:0")
    fake.allocate(1000)
    assert devices.find("cuda:1").busiest().name == "cuda"
    assert devices.find("cpu").busiest().name == "cpu"


@pytest.mark.parametrize("name", ["cud", "cuda:", "cuda:x", "cpu:0", "npu"])
def test_wrong_device_names_are_refused(name):
    with pytest.raises(UnknownName, match=r"unknown device"):
        devices.find(name)


@pytest.fixture
def gpu():
    return FakeGpu()


@pytest.fixture
def held(fake, gpu):
    """The clock of a fake stream, calibrated."""
    fake.Event, fake._sleep, fake.synchronize = gpu.event, gpu.sleep, gpu.synchronize
    clock = devices.find("cuda").device_clock()
    gpu.log.clear()
    return clock


class SplitDevice(CPU):
    """A device whose host and device part, and whose sensors are what a test says."""

    batch_ns = 1_000_000

    def __init__(self, gpu, held, *, counter=None, watch=None, flush=nothing):
        self.gpu, self.held, self.counter = gpu, held, counter
        self.watch, self.flush = watch or Unwatched(), flush

    def synchronize(self):
        self.gpu.synchronize()

    def l2_flusher(self, l2):
        return self.flush if l2 == "cold" else nothing

    def host_clock(self):
        return EnqueueClock(self.gpu.synchronize, self.gpu.clock)

    def device_clock(self):
        if isinstance(self.held, Unreadable):
            raise self.held
        return self.held

    def energy_counter(self):
        if self.counter is None:
            raise Unreadable("no counter")
        return self.counter

    def monitor(self):
        return self.watch


ALL = ("step_time", "host_time", "device_time", "energy")


def read(sides, device, *, wanted=ALL[:3], iterations=30, flush=nothing, plan=None):
    return cuda_clocks.read_clocks(
        sides,
        device,
        wanted,
        flush=flush,
        iterations=iterations,
        step_ns=1e5,
        plan=plan or Plan(budget_s=0.01),
        rng=random.Random(0),
    )


def test_the_host_clock_starts_with_an_empty_queue_and_waits_for_nothing_inside(gpu):
    arm = gpu.arm("step", device_ns=50_000)
    gpu.launch("before", 10**9)
    gpu.log.clear()
    elapsed_ns = EnqueueClock(gpu.synchronize, gpu.clock).read(arm.step, 3)
    assert gpu.log == ["synchronize", "step", "step", "step", "synchronize"]
    assert elapsed_ns == 3 * gpu.launch_ns


def test_the_device_clock_holds_the_stream_before_its_first_event(gpu, held):
    arm = gpu.arm("step", device_ns=100)
    assert held.read(arm.step, 3, hold_ns=20_000) == 3 * 100
    assert gpu.log == ["synchronize", "sleep", "record", *["step"] * 3, "record", "synchronize"]


def test_a_clock_of_the_second_device_waits_for_that_one(fake):
    gpu = FakeGpu(name="cuda:1")
    fake.Event, fake._sleep, fake.synchronize = gpu.event, gpu.sleep, gpu.synchronize
    clock = devices.find("cuda:1").device_clock()
    assert clock.read(gpu.arm("step", device_ns=100).step, 3, hold_ns=20_000) == 3 * 100
    with pytest.raises(RuntimeError, match="not ready"):
        devices.find("cuda").device_clock()


def test_launch_gaps_do_not_count_as_the_devices_time(gpu, held):
    """A stream that is not held back waits for launches of 1000 ns between kernels of 100."""
    arm = gpu.arm("step", kernels=10, device_ns=100)
    assert held.read(arm.step, 5, hold_ns=100_000) == 50 * 100
    assert held.read(arm.step, 5, hold_ns=1_000) is None


def test_events_are_made_before_the_rounds_and_not_in_them(gpu, held):
    assert gpu.events == 2
    read([gpu.arm("a"), gpu.arm("b")], SplitDevice(gpu, held))
    assert gpu.log.count("record") > 100
    assert gpu.events == 2


def test_cycles_are_calibrated_against_the_events(held):
    assert held.cycles_per_ns == pytest.approx(2.0, rel=1e-3)


def test_a_torch_without_sleep_has_no_device_clock_but_a_reason(fake):
    with pytest.raises(Unreadable, match=r"torch 2.99 has no torch.cuda._sleep"):
        devices.find("cuda").device_clock()


def test_a_sleep_that_does_not_hold_is_not_believed(fake, gpu):
    fake.Event, fake._sleep, fake.synchronize = gpu.event, lambda _: None, gpu.synchronize
    with pytest.raises(Unreadable, match=r"held the stream back for 1000 ns instead of"):
        devices.find("cuda").device_clock()


def test_a_torch_whose_sleep_has_lost_its_inside_is_a_reason_too(fake, gpu):
    def hollow(_):
        raise AttributeError("no attribute '_cuda_sleep'")

    fake.Event, fake._sleep, fake.synchronize = gpu.event, hollow, gpu.synchronize
    with pytest.raises(Unreadable, match="_cuda_sleep"):
        devices.find("cuda").device_clock()


@pytest.mark.parametrize(("device_ns", "bound"), [(100, "host"), (1000, "host"), (2000, "device")])
def test_a_cell_is_bound_by_the_clock_that_agrees_with_end_to_end(gpu, held, device_ns, bound):
    arm = gpu.arm("step", kernels=8, device_ns=device_ns)
    (split,) = read([arm], SplitDevice(gpu, held))
    host, device = split.figures["host_time"], split.figures["device_time"]
    assert host.per_step() == 8 * gpu.launch_ns
    assert device.per_step() == 8 * device_ns
    assert split.notes == {"bound": bound}
    end_to_end = StepTime(gpu.synchronize, gpu.clock).read(arm.step, 100) / 100
    assert end_to_end == pytest.approx(max(host.per_step(), device.per_step()), rel=0.02)


def test_clock_rounds_are_interleaved_pairs_with_an_untimed_step_after_each_switch(gpu, held):
    sides = [gpu.arm(name, device_ns=5000) for name in "abcd"]
    splits = read(sides, SplitDevice(gpu, held), iterations=2)
    assert {len(figure.values) for split in splits for figure in split.figures.values()} == {50}
    visits = "|".join(gpu.log).split("enter ")[1:]
    of_rounds = [visit.removesuffix("|").split("|") for visit in visits[4:]]  # 4: what fits
    orders = [tuple(visit[0] for visit in of_rounds[i : i + 4]) for i in range(0, 200, 4)]
    assert all(sorted(order) == list("abcd") for order in orders)
    assert len(set(orders)) > 10
    name, first, second, *_ = of_rounds[0]
    assert [first, second] == [name, "synchronize"]  # the untimed step, then the host's window


def test_batches_are_cut_to_what_the_launch_queue_takes(gpu, held):
    """240 launches fit into the queue and 480 do not: with them the host would wait."""
    gpu.capacity = 300
    sides = [gpu.arm("a", kernels=8, device_ns=3000), gpu.arm("b", kernels=2, device_ns=3000)]
    first, second = read(sides, SplitDevice(gpu, held), iterations=60)
    assert set(first.figures["host_time"].iterations) == {30}
    assert set(second.figures["device_time"].iterations) == {30}
    assert first.figures["host_time"].per_step() == 8 * gpu.launch_ns
    assert first.figures["device_time"].per_step() == 8 * 3000


def test_a_step_that_waits_for_the_device_has_no_device_time_but_a_reason(gpu, held):
    sides = [gpu.arm("a", waits=True), gpu.arm("b")]
    waiting, plain = read(sides, SplitDevice(gpu, held))
    assert isinstance(waiting.figures["device_time"], Unreadable)
    assert "waits for the device itself" in waiting.notes["bound"]
    assert waiting.figures["host_time"].notes == {"waits_for_device": True}
    assert plain.figures["device_time"].per_step() == 100
    assert plain.notes == {"bound": "host"}


def test_a_round_in_which_one_arm_was_interrupted_has_no_device_times_at_all(gpu, held):
    sides = [gpu.arm("a", device_ns=700), gpu.arm("b", device_ns=900)]
    calls, plain = 0, held.read

    class Interrupted:
        def read(self, step, iterations, *, hold_ns):
            nonlocal calls
            calls += 1
            return (
                None
                if 40 <= calls < 40 + cuda_clocks.TRIES
                else plain(step, iterations, hold_ns=hold_ns)
            )

    splits = read(sides, SplitDevice(gpu, Interrupted()))
    assert [len(split.figures["host_time"].values) for split in splits] == [50, 50]
    assert [len(split.figures["device_time"].values) for split in splits] == [49, 49]
    assert [split.figures["device_time"].per_step() for split in splits] == [700, 900]


def test_without_a_device_clock_the_host_still_has_one_and_the_bound_is_words(gpu):
    (split,) = read([gpu.arm("a")], SplitDevice(gpu, Unreadable("no _sleep")))
    assert split.figures["host_time"].per_step() == gpu.launch_ns
    assert str(split.figures["device_time"]) == "no _sleep"
    assert split.notes == {"bound": "unknown: no _sleep"}


def test_on_the_cpu_the_other_clocks_are_a_reason_each_and_nothing_is_run():
    clock = FakeClock()
    arm = FakeArm("a", clock, lambda _: 1, [])
    (split,) = read([arm], CPU(), wanted=ALL)
    assert split.figures.keys() == {"host_time", "device_time", "energy"}
    assert "step_time is all there is" in str(split.figures["host_time"])
    assert "none is read" in str(split.figures["energy"])
    assert split.notes == {}
    assert arm.log == []


def test_what_is_not_wanted_is_not_read(gpu, held):
    assert read([gpu.arm("a")], SplitDevice(gpu, held), wanted=["latency"]) == [
        cuda_clocks.Split({}, {})
    ]
    assert gpu.log == []


@pytest.mark.parametrize(("said", "expected"), [({"L2_cache_size": 50}, 100), ({}, 256 * 2**20)])
def test_a_cold_cache_is_one_overwritten_with_twice_its_size(fake, said, expected):
    fake.more = said
    flush = devices.find("cuda:1").l2_flusher("cold")
    flush()
    flush()
    assert fake.log == [f"empty {expected} cuda:1", "overwrite", "overwrite"]


def test_a_hot_cache_is_left_alone(fake):
    devices.find("cuda").l2_flusher("hot")()
    assert fake.log == []


def test_the_cache_is_overwritten_outside_every_timed_window(gpu, held):
    def flush():
        gpu.launch("overwrite", 40_000)

    arm = gpu.arm("step", device_ns=200)
    assert StepTime(gpu.synchronize, gpu.clock, flush).read(arm.step, 1) == gpu.launch_ns + 200
    assert gpu.log == ["overwrite", "synchronize", "step", "synchronize"]
    gpu.log.clear()
    (split,) = read([arm], SplitDevice(gpu, held), wanted=ALL, flush=flush, iterations=1)
    assert split.figures["host_time"].per_step() == gpu.launch_ns
    assert split.figures["device_time"].per_step() == 200
    assert {after for entry, after in pairwise(gpu.log) if entry == "overwrite"} == {"synchronize"}
    assert "l2=hot" in str(split.figures["energy"])


def ticking(clock, *, watts, every_s):
    """A counter in uJ that is updated at times, as NVML's is."""

    def counter():
        ticks = int(clock() / (every_s * 1e9))
        return round(ticks * every_s * watts * 1e6)

    return counter


@pytest.mark.parametrize("every_s", [0.001, 0.02, 0.1])
def test_energy_is_read_from_tick_to_tick(gpu, held, every_s):
    """100 W over steps of 1 ms are 100 mJ a step; unaligned windows would be 40% off at 0.1 s."""
    clock = gpu.clock

    def run():
        clock.now_ns += 1_000_000

    energy_uj, runs = cuda_clocks._energy_window(
        run, ticking(clock, watts=100, every_s=every_s), lambda: clock() / 1e9
    )
    assert runs * 1e-3 >= cuda_clocks.ENERGY_WINDOW_S
    assert energy_uj / runs == pytest.approx(100_000, rel=0.01)


def test_a_counter_that_stands_still_is_unreadable_not_zero(gpu):
    def run():
        gpu.clock.now_ns += 1_000_000

    with pytest.raises(Unreadable, match="stood still for 2 s"):
        cuda_clocks._energy_window(run, lambda: 7, lambda: gpu.clock() / 1e9)


def test_energy_windows_visit_every_arm_and_keep_their_own_steps(gpu, held, monkeypatch):
    windows = iter([(900, 3), (500, 1), (600, 2), (1000, 4)])
    monkeypatch.setattr(cuda_clocks, "_energy_window", lambda run, counter: next(windows))
    sides = [gpu.arm("a"), gpu.arm("b")]
    device = SplitDevice(gpu, held, counter=lambda: 0)
    splits = read(sides, device, wanted=["energy"], plan=Plan(budget_s=1e-9))
    figures = [split.figures["energy"] for split in splits]
    assert sorted(figure.values[0] for figure in figures) == [500, 900]
    assert {figure.values[0]: figure.iterations[0] for figure in figures} == {900: 150, 500: 50}
    (split,) = read([gpu.arm("a")], SplitDevice(gpu, held), wanted=["energy"])
    assert str(split.figures["energy"]) == "no counter"


@pytest.fixture
def driver(monkeypatch):
    driver = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    return driver


def test_the_gpu_is_found_by_what_it_is_not_by_where_torch_counts_it(fake, driver):
    fake.more = {"uuid": "0000"}
    assert devices.find("cuda:1")._gpu().handle == "handle"
    driver.uuid = "MIG-0000"
    assert devices.find("cuda:1")._gpu().handle == "handle"
    fake.more = {"uuid": "1111", "pci_domain_id": 0, "pci_bus_id": 0x1B, "pci_device_id": 0}
    assert devices.find("cuda:1")._gpu().handle == "handle"
    fake.more["pci_bus_id"] = 0x1C
    with pytest.raises(Unreadable, match=r"does not know 00000000:1c:00\.0: Not Found"):
        devices.find("cuda:1")._gpu()
    fake.more = {}
    with pytest.raises(Unreadable, match="neither UUID nor PCI address"):
        devices.find("cuda:1")._gpu()


def test_without_pynvml_or_a_driver_there_are_words(fake, driver, monkeypatch):
    fake.more = {"uuid": "0000"}
    device = devices.find("cuda")
    driver.starts = False
    assert device.monitor().notes() == {"nvml": "unknown: NVML does not start: Driver Not Loaded"}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "install nvidia-ml-py" in device.monitor().notes()["nvml"]
    assert "install nvidia-ml-py" in device.describe()["gpu_driver"]
    with pytest.raises(Unreadable, match="install nvidia-ml-py"):
        device.energy_counter()


def test_energy_is_the_drivers_total_in_microjoules_or_a_reason(fake, driver):
    fake.more = {"uuid": "0000"}
    with pytest.raises(Unreadable, match="TotalEnergyConsumption: Not Supported"):
        devices.find("cuda").energy_counter()
    driver.energy_mj = lambda: 7
    assert devices.find("cuda").energy_counter()() == 7000


def test_the_drivers_account_is_of_this_process_among_all_that_it_lists(fake, driver):
    fake.more = {"uuid": "0000"}
    driver.processes = {1: 10, os.getpid(): 700, os.getpid() + 1: 20}
    assert devices.find("cuda").process_bytes() == 700


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        ({1: 10}, f"lists no process {os.getpid()}: inside a container"),
        ({}, "lists no process"),
        ({os.getpid(): None}, "keeps no account of a process's memory"),
        (None, "nvmlDeviceGetComputeRunningProcesses: Not Supported"),
    ],
    ids=["another's", "none", "without a number", "not supported"],
)
def test_a_driver_without_an_account_of_this_process_is_a_reason(fake, driver, processes, words):
    fake.more = {"uuid": "0000"}
    driver.processes = processes
    with pytest.raises(Unreadable, match=words):
        devices.find("cuda").process_bytes()


def test_without_pynvml_the_process_is_unreadable(fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    fake.more = {"uuid": "0000"}
    with pytest.raises(Unreadable, match="install nvidia-ml-py"):
        devices.find("cuda").process_bytes()


def test_without_nvml_the_driver_is_what_the_kernel_has_loaded(fake, monkeypatch, tmp_path):
    module = tmp_path / "version"
    module.write_text("535.129.03\n", "ascii")
    monkeypatch.setattr(nvml, "KERNEL_MODULE", module)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert devices.find("cuda").describe()["gpu_driver"] == "535.129.03"


def test_threads_are_of_the_cpus_operators(monkeypatch):
    monkeypatch.setattr(cuda.CUDA, "check", lambda _: None)
    for threads, expected in ((1, None), (4, "impossible")):
        (cell, *_) = Matrix(models=["mlp_tiny"], devices=["cuda"], threads=[threads])
        refused = obstacle(cell)
        assert (refused and refused[0]) == expected
        assert refused is None or "threads=1" in refused[1]


WORKSPACE, RESERVED, ROUNDED = 8192, 4096, 96


class WorkspaceLedger(ProfilerLedger):
    """The CPU's account, with what a GPU has besides: a workspace that no tensor owns, rounding,
    and, where ``unseen`` says so, bytes at each peak that the profiler does not know."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def observe(self, function):
        kept = self.device.workspace
        result, window = super().observe(function)
        return result, self._more(window, kept)

    def trace(self, function):
        kept = self.device.workspace
        result, window, traced = super().trace(function)
        return result, self._more(window, kept), traced

    def _more(self, window, kept):
        peak = window.peak_bytes + kept + self.device.unseen
        before, after = window.before_bytes + kept, window.after_bytes + self.device.workspace
        asked = Span(before, peak - ROUNDED, after)
        return Window(before, peak, after, peak + RESERVED, asked, self.device.retries)


class WorkspaceDevice(CPU):
    """It makes its workspace when it first forgets, as if that were a first step."""

    forgotten, workspace, unseen, retries = 0, 0, 0, 0

    def ledger(self, *, undisturbing=False):
        return WorkspaceLedger(self)

    def forget(self):
        self.forgotten += 1
        self.workspace = WORKSPACE if self.forgotten % 2 == 1 else 0


def read_with_workspace(monkeypatch, **more):
    """What the memory pass says of one forward on that device."""
    device = WorkspaceDevice()
    for name, value in more.items():
        setattr(device, name, value)
    monkeypatch.setattr(memory_pass, "settle", lambda _: device)
    cells = list(Matrix(models=["mlp_tiny"], grad_modes=["global_on", "no_grad"], batch_sizes=[8]))
    wanted = ["peak_allocated", "peak_requested", "peak_reserved", "fragmentation", "breakdown"]
    wanted.append("leaked")
    found = [
        m
        for m in memory_pass.memory_block(cells, MODELS["mlp_tiny"], Plan(), wanted)
        if isinstance(m, Measurement | Breakdown | Skipped)
    ]
    assert device.forgotten == 2 * len(cells)  # before the first step, after the last
    return {(o.cell.grad_mode, o.meter): o for o in found}


@pytest.fixture
def with_workspace(monkeypatch):
    return read_with_workspace(monkeypatch)


@pytest.mark.parametrize("mode", ["global_on", "no_grad"])
def test_a_workspace_is_unknown_and_the_parts_sum_to_the_counter(with_workspace, mode):
    breakdown = with_workspace[mode, "breakdown"]
    assert breakdown.parts["unknown"] == WORKSPACE
    assert sum(breakdown.parts.values()) == with_workspace[mode, "peak_allocated"].values[0]
    assert breakdown.parts["parameters"] == (8 * (64 * 64 + 64) + 64 * 10 + 10) * 4
    assert breakdown.timeline["unknown"][0] == WORKSPACE
    assert breakdown.rounding_bytes == ROUNDED


@pytest.mark.parametrize("mode", ["global_on", "no_grad"])
def test_what_was_asked_for_leaves_the_workspace_out_which_is_no_leak(with_workspace, mode):
    peak = with_workspace[mode, "peak_allocated"]
    assert with_workspace[mode, "peak_requested"].values == (peak.values[0] - ROUNDED - WORKSPACE,)
    assert peak.notes == {"workspace_bytes": WORKSPACE}
    assert with_workspace[mode, "leaked"].values == (0,)
    assert with_workspace[mode, "leaked"].notes == {}


def test_a_peak_that_no_trace_leads_to_has_no_breakdown_but_a_reason(monkeypatch):
    found = read_with_workspace(monkeypatch, unseen=640)
    assert found["no_grad", "breakdown"].cause == "unreadable"
    assert "the allocator counted" in found["no_grad", "breakdown"].reason
    assert found["no_grad", "peak_allocated"].values[0] > 0


def test_a_window_in_which_memory_ran_out_says_so_beside_its_peak(monkeypatch):
    found = read_with_workspace(monkeypatch, retries=2)
    assert found["no_grad", "peak_allocated"].notes["allocation_retries"] == 2


def test_reserved_bytes_beyond_the_peak_are_fragmentation(with_workspace):
    peak = with_workspace["no_grad", "peak_allocated"].values[0]
    assert with_workspace["no_grad", "peak_reserved"].values == (peak + RESERVED,)
    assert with_workspace["no_grad", "fragmentation"].values == (RESERVED,)


def sampled(driver, looks, clock=None):
    clock = clock or FakeClock()
    sampler = nvml.Sampler(nvml.Gpu(driver, "handle"), clock)
    for _ in range(looks):
        sampler.sample()
        clock.now_ns += nvml.EVERY_NS
    return sampler.notes()


@pytest.mark.parametrize(
    ("bits", "throttled"),
    [
        (0x00, False),
        (0x01, False),  # idle
        (0x02, False),  # application clocks
        (0x10, False),  # sync boost
        (0x100, False),  # display clocks
        (0x04, True),  # software power cap
        (0x08, True),  # hardware slowdown
        (0x20, True),  # software thermal slowdown
        (0x40, True),  # hardware thermal slowdown
        (0x80, True),  # power brake
        (0x01 | 0x40, True),
    ],
)
def test_throttling_is_distinguished_from_settings_and_idleness(bits, throttled):
    assert sampled(FakeNvml(reasons=[bits]), 3)["throttled_share"] == float(throttled)


def test_clocks_and_slowdowns_become_notes():
    driver = FakeNvml(clocks_mhz=[1980, 1400, 1700, 1900], reasons=[0, 0x40, 0x01, 0x04])
    assert sampled(driver, 4) == {
        "sm_clock_mhz_min": 1400,
        "sm_clock_mhz_max": 1980,
        "throttled_share": 0.5,
    }


def test_a_sensor_that_the_driver_lacks_is_words_and_the_other_a_number():
    notes = sampled(FakeNvml(reasons=[]), 2)
    assert notes["sm_clock_mhz_min"] == 1980
    assert notes["throttled_share"].startswith("unknown: nvmlDeviceGetCurrentClocksThrottle")
    notes = sampled(FakeNvml(clocks_mhz=[]), 2)
    assert notes["sm_clock_mhz_max"] == "unknown: nvmlDeviceGetClockInfo: Not Supported"
    assert notes["throttled_share"] == 0.0
    assert sampled(FakeNvml(), 0)["throttled_share"] == "unknown: never looked"


def test_looks_are_rare_and_outside_every_timed_window(driver):
    """A round takes 3 ms here, so that there is a look at every 17th."""
    clock, log = FakeClock(), driver.log
    sides = [FakeArm(name, clock, lambda _: 750_000, log) for name in "ab"]
    sampler = nvml.Sampler(nvml.Gpu(driver, "handle"), clock)
    rounds = Interleaving(
        sides,
        StepTime(lambda: log.append("synchronize"), clock),
        plan=Plan(budget_s=10.0, min_rounds=100, max_rounds=100),
        rng=random.Random(0),
        warmth=Warmth([750_000] * 2, 6, steady=True),
        between=sampler.sample,
    )
    assert len(list(rounds)) == 100
    assert log.count("nvml") == 6
    before = [log[i - 1] for i, entry in enumerate(log) if entry == "nvml" and i]
    assert {entry.split()[0] for entry in before} == {"leave"}


@pytest.mark.parametrize("l2", ["hot", "cold"])
def test_a_block_on_a_split_device_has_one_outcome_for_each_cell_and_meter(
    gpu, held, driver, monkeypatch, l2
):
    """Real modules step on the CPU; beside each step the fake device gets a kernel."""
    flushed = []
    watch = nvml.Sampler(nvml.Gpu(driver, "handle"))
    device = SplitDevice(gpu, held, watch=watch, flush=lambda: flushed.append(1))
    monkeypatch.setattr(time_pass, "settle", lambda _: device)
    monkeypatch.setattr(cuda_clocks, "BUDGET_S", 0.01)
    plain = visits.try_to_arm

    def with_a_kernel(*given):
        arm = plain(*given)

        def step():
            arm.step()
            gpu.launch("kernel", 3000)

        return replace(arm, step=step)

    monkeypatch.setattr(visits, "try_to_arm", with_a_kernel)
    cells = list(Matrix(models=["mlp_tiny"], workloads=["training"], batch_sizes=[2], l2=[l2]))
    wanted = [meter.name for meter in METERS.values() if meter.read_in == "time"]
    plan = Plan(budget_s=0.02, warmup_s=0.001)
    messages = list(time_pass.time_block(cells, MODELS["mlp_tiny"], plan, wanted))
    found = [m for m in messages if isinstance(m, Measurement | Skipped)]
    assert Counter((o.cell, o.meter) for o in found) == Counter(
        (cell, meter) for cell in cells for meter in wanted
    )
    by_meter = {o.meter: o for o in found if o.cell.grad_mode == "global_on"}
    assert {o.cause for o in found if o.cell.grad_mode != "global_on"} == {"cannot_train"}
    assert by_meter["step_time"].notes["bound"] == "device"  # of 1000 ns and 3000, on its clock
    assert by_meter["step_time"].notes["sm_clock_mhz_min"] == 1980
    assert by_meter["device_time"].per_step()[0] == 3000
    assert by_meter["energy"].cause == "unreadable"
    if l2 == "cold":
        assert by_meter["step_time"].iterations == by_meter["host_time"].iterations == 1
        assert len(flushed) > 2 * len(by_meter["step_time"].values)
    else:
        assert flushed == []


@pytest.mark.cuda
@pytest.mark.skipif(not here, reason="no CUDA device here")
@pytest.mark.parametrize("l2", ["hot", "cold"])
def test_three_clocks_agree_in_order_of_magnitude_on_a_real_device(l2):
    meters = ["step_time", "host_time", "device_time", "energy"]
    matrix = Matrix(
        models=["mlp_deep"], devices=["cuda"], grad_modes=["no_grad"], batch_sizes=[8], l2=[l2]
    )
    with Bench(plan=Plan(budget_s=1.0), meters=meters) as bench:
        found = {o.meter: o for outcomes in bench.measure(list(matrix)) for o in outcomes}
    assert set(found) == set(meters)
    step, host, device = (sorted(found[meter].per_step()) for meter in meters[:3])
    step, host, device = (times[len(times) // 2] for times in (step, host, device))
    assert found["step_time"].notes["bound"] == ("host" if host >= device else "device")
    assert max(host, device) / 10 < step < 10 * (host + device) + 1e5
    energy = found["energy"]
    assert isinstance(energy, Measurement) or energy.cause == "unreadable"


@pytest.mark.cuda
@pytest.mark.skipif(not here, reason="no CUDA device here")
def test_every_meter_reads_on_a_real_device():
    cells = list(Matrix(models=["cnn_small"], devices=["cuda"], batch_sizes=[8]))
    with Bench(plan=Plan(budget_s=0.5)) as bench:
        found = [o for outcomes in bench.measure(cells) for o in outcomes]
    drivers = ("energy", "device_process")  # without NVML, or in a container, they are reasons
    assert not [o for o in found if isinstance(o, Skipped) and o.meter not in drivers]
    assert len([o for o in found if isinstance(o, Breakdown)]) == len(cells)
    peaks = {o.cell.grad_mode: o.values[0] for o in found if o.meter == "peak_transient"}
    assert peaks["global_on"] > peaks["no_grad"] == peaks["inference_mode"] == peaks["global_off"]
    assert {o.cell.grad_mode for o in found} == set(GRAD_MODES)
