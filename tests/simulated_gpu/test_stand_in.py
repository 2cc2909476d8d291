"""What the simulated CUDA runtime promises, held against torch's own CUDA build."""

import ctypes
import faulthandler
import importlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from simulated_gpu import stand_in
from simulated_gpu.stand_in import in_child
from torch import nn
from torch.profiler import ProfilerActivity, profile

pytestmark = pytest.mark.simulated_cuda

MIB = 2**20
CYCLES_PER_MS = 1_980_000  # of torch.cuda._sleep: the stand-in's clock is an H100's, 1980 MHz
HOLD_MS = 60_000  # longer than any of these tests takes: what is held back stays so


@pytest.fixture(scope="module", autouse=True)
def _imported_once() -> None:
    """Import what optimizers import, which takes seconds, before the children are forked."""
    importlib.import_module("torch._dynamo")


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SIMULATED_CUDA_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def blocks(*sizes: int) -> int:
    """Return what the caching allocator makes of sizes below 10 MiB."""
    return sum(math.ceil(size / 512) * 512 for size in sizes)


def event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def held_back_ns(step: Callable[[], object]) -> float:
    """Return the step's device time, all of it enqueued before any of it runs."""
    start, end = event(), event()
    step()  # its kernels' first launches, and workspaces
    for hold_ms in (100, 1000, 10_000):
        torch.cuda.synchronize()
        torch.cuda._sleep(hold_ms * CYCLES_PER_MS)
        start.record()
        step()
        end.record()
        held = not start.query()
        torch.cuda.synchronize()
        if held:
            return start.elapsed_time(end) * 1e6
    pytest.fail("the step took longer to enqueue than the stream was held back")


def in_a_new_process(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run code with settings that torch reads when it is loaded."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )


# ---- devices ----


@in_child
def test_an_exclusive_card_takes_one_process_and_a_prohibited_one_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = "import torch; torch.zeros(1, device='cuda')"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SIMULATED_CUDA_COMPUTE_MODE", "3")
    kept = torch.zeros(1, device="cuda")
    for mode in ("3", "2"):
        ended = in_a_new_process(make, SIMULATED_CUDA_COMPUTE_MODE=mode)
        assert "CUDA-capable device(s) is/are busy or unavailable" in ended.stderr
    assert in_a_new_process(make, SIMULATED_CUDA_COMPUTE_MODE="0").returncode == 0
    assert kept.is_cuda


@in_child
def test_a_card_is_what_the_settings_describe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_CUDA_CAPABILITY", "86")
    monkeypatch.setenv("SIMULATED_CUDA_L2_BYTES", "6M")
    monkeypatch.setenv("SIMULATED_CUDA_BYTES", "3G")
    monkeypatch.setenv("SIMULATED_CUDA_MULTIPROCESSORS", "84")
    first, second = map(torch.cuda.get_device_properties, range(2))
    assert first.name == second.name == "Simulated GPU"
    assert (second.major, second.minor) == (8, 6)
    assert second.L2_cache_size == 6 * MIB
    assert second.total_memory == 3 * 2**30
    assert second.multi_processor_count == 84
    assert first.uuid != second.uuid
    assert first.pci_bus_id != second.pci_bus_id
    assert torch.backends.cudnn.version() >= 90000


@in_child
def test_no_card_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_CUDA_DEVICES", "0")
    assert not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("visible", "cards"),
    [
        ("1", [2]),
        ("1,0", [2, 1]),
        ("0,7,1", [1]),  # what follows a wrong one is not seen
        ("GPU-513d01a7-edc0-4da0-900d-ca2d00000002", [2]),
        ("-1", []),
        ("", []),
    ],
)
@in_child
def test_cuda_visible_devices_chooses_and_orders(
    visible: str, cards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert torch.cuda._device_count_nvml() == len(cards)
    assert torch._C._cuda_getDeviceCount() == len(cards)
    uuids = [str(torch.cuda.get_device_properties(i).uuid) for i in range(len(cards))]
    assert [int(uuid[-2:]) for uuid in uuids] == cards


# ---- forks ----

INITIALIZATION_ERROR = 3


def devices_seen_by_the_runtime() -> int:
    """Return the error with which the runtime counts devices, past torch's own checks."""
    return int(ctypes.CDLL("libcudart.so.13").cudaGetDeviceCount(ctypes.byref(ctypes.c_int())))


@pytest.mark.parametrize("start", [torch.cuda.is_available, torch.cuda.init], ids=["ask", "init"])
def test_a_child_of_a_process_that_started_the_driver_gets_the_error(
    start: Callable[[], object],
) -> None:
    @in_child
    def child_is_refused() -> None:
        assert devices_seen_by_the_runtime() == INITIALIZATION_ERROR
        with pytest.raises(RuntimeError, match="Cannot re-initialize CUDA in forked subprocess"):
            torch.empty(1, device="cuda")

    @in_child
    def parent_starts() -> None:
        start()
        child_is_refused()

    parent_starts()


def test_counting_cards_through_nvml_does_not_start_the_driver() -> None:
    @in_child
    def child_has_cuda() -> None:
        assert torch.zeros(1, device="cuda").is_cuda

    @in_child
    def parent_asks_nvml() -> None:
        assert torch.cuda._device_count_nvml() == 2
        child_has_cuda()

    parent_asks_nvml()


# ---- memory ----


@in_child
def test_bytes_come_back_as_they_were_copied() -> None:
    host = torch.arange(100_000.0)
    device = host.cuda()
    assert torch.equal(device.cpu(), host)
    assert torch.equal(device.clone().cpu(), host)
    assert torch.equal(host.pin_memory().to("cuda", non_blocking=True).cpu(), host)
    assert torch.equal(device.to("cuda:1").cpu(), host)


@in_child
def test_the_host_cannot_touch_device_memory() -> None:
    address = torch.zeros(8, device="cuda").data_ptr()
    faulthandler.disable()
    child = os.fork()
    if child == 0:
        ctypes.string_at(address, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV


@in_child
def test_the_caching_allocator_is_torchs_own() -> None:
    kept = torch.empty(1000, device="cuda")
    assert torch.cuda.memory_allocated() == blocks(4000)
    assert torch.cuda.memory_reserved() == 2 * MIB
    stats = torch.cuda.memory_stats()
    assert stats["requested_bytes.all.peak"] == 4000
    # A large block keeps a remainder that is too small to be split off.
    large = torch.empty(39 * MIB // 2, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_allocated() - blocks(4000) == 20 * MIB
    del kept, large
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == 0


@in_child
def test_a_full_card_is_torchs_out_of_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_CUDA_BYTES", "1G")
    monkeypatch.setenv("SIMULATED_CUDA_CONTEXT_BYTES", "64M")
    monkeypatch.setenv("SIMULATED_CUDA_OTHER_BYTES", "128M")
    free, total = torch.cuda.mem_get_info()
    assert (free, total) == (1024 * MIB - (64 + 128) * MIB, 1024 * MIB)
    kept = []
    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory"):
        while True:
            kept.append(torch.empty(128 * MIB, dtype=torch.uint8, device="cuda"))
    assert len(kept) == free // (128 * MIB)
    kept.clear()
    assert torch.empty(512 * MIB, dtype=torch.uint8, device="cuda").is_cuda
    assert torch.cuda.memory_stats()["num_ooms"] == 1


@pytest.mark.parametrize("conf", ["expandable_segments:True", "backend:cudaMallocAsync"])
def test_torchs_other_allocators_work(conf: str) -> None:
    code = """if True:
        import torch
        x = torch.arange(1000.0).cuda()
        assert x.cpu().sum() == 499500
        free = torch.cuda.mem_get_info()[0]
        y = torch.empty(30 * 2**20, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_reserved() >= 30 * 2**20
        assert free - torch.cuda.mem_get_info()[0] >= 30 * 2**20
        del y
        torch.cuda.empty_cache()
        assert torch.cuda.mem_get_info()[0] == free
        try:
            torch.empty(3 * 2**30, dtype=torch.uint8, device="cuda")
        except torch.cuda.OutOfMemoryError:
            print(torch.cuda.get_allocator_backend())
    """
    result = in_a_new_process(code, PYTORCH_ALLOC_CONF=conf)
    backend = "cudaMallocAsync" if "Async" in conf else "native"
    assert result.stdout == f"{backend}\n", result.stderr


@pytest.mark.parametrize(("capability", "workspace"), [(90, 33_554_432), (80, 8_519_680)])
@in_child
def test_cublas_workspaces_are_one_for_each_thread(
    capability: int, workspace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATED_CUDA_CAPABILITY", str(capability))
    x = torch.randn(8, 64).cuda()
    weight = torch.randn(64, 64).cuda().requires_grad_()
    before = torch.cuda.memory_allocated()
    product = x @ weight
    assert torch.cuda.memory_allocated() - before == workspace + blocks(8 * 64 * 4)
    product.sum().backward()  # in autograd's own thread
    del product
    weight.grad = None
    assert torch.cuda.memory_allocated() - before == 2 * workspace


@in_child
def test_a_training_step_holds_what_arithmetic_says() -> None:
    layers = [part for _ in range(4) for part in (nn.Linear(64, 64), nn.ReLU())]
    model, x = nn.Sequential(*layers).cuda(), torch.randn(8, 64).cuda()
    model(x).sum().backward()  # takes the workspaces
    model.zero_grad()
    before = torch.cuda.memory_allocated()
    output = model(x)
    assert torch.cuda.memory_allocated() - before == 4 * blocks(8 * 64 * 4)
    output.sum().backward()
    del output
    assert torch.cuda.memory_allocated() - before == 4 * blocks(64 * 64 * 4, 64 * 4)


@in_child
def test_the_profiler_lists_every_allocation_and_free() -> None:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.empty(1000, device="cuda")
    events = profiler.profiler.kineto_results.events()
    assert [e.nbytes() for e in events if e.name() == "[memory]"] == [blocks(4000), -blocks(4000)]


@in_child
def test_the_memory_history_is_recorded() -> None:
    torch.cuda.memory._record_memory_history(max_entries=100)
    torch.empty(1000, device="cuda")
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    assert {"alloc", "free_requested", "free_completed"} <= {entry["action"] for entry in trace}


# ---- operators ----

IMAGE, SEQUENCE = (2, 16, 8, 8), (4, 8, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Conv2d(16, 8, 3), IMAGE),
        (lambda: nn.ConvTranspose2d(16, 8, 3), IMAGE),
        (lambda: nn.BatchNorm2d(16), IMAGE),
        (lambda: nn.MaxPool2d(2), IMAGE),
        (lambda: nn.GroupNorm(4, 16), IMAGE),
        (lambda: nn.LayerNorm(64), SEQUENCE),
        (nn.Dropout, SEQUENCE),
        (lambda: nn.Linear(64, 32), SEQUENCE),
        (lambda: nn.LSTM(64, 32, num_layers=2, dropout=0.1), SEQUENCE),
        (lambda: nn.GRU(64, 32, bidirectional=True), SEQUENCE),
        (lambda: nn.LSTM(64, 32, proj_size=16), SEQUENCE),
        (lambda: nn.TransformerEncoderLayer(64, 4, batch_first=True), SEQUENCE),
    ],
    ids=["conv", "transposed", "batch", "pool", "group", "layer", "dropout", "linear", "lstm",
         "gru", "projected", "transformer"],
)  # fmt: skip
@in_child
def test_layers_train(
    make: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    layer = make().to("cuda", dtype)
    output = layer(torch.randn(shape).to("cuda", dtype).requires_grad_())
    output = output[0] if isinstance(output, tuple) else output
    output.float().square().mean().backward()
    parameters = list(layer.parameters())
    assert all(parameter.grad is not None for parameter in parameters)
    if parameters:
        torch.optim.AdamW(parameters).step()
    torch.cuda.synchronize()


@in_child
def test_weights_of_a_recurrent_layer_survive_being_flattened() -> None:
    layer = nn.LSTM(24, 32, num_layers=2, bidirectional=True, proj_size=16)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    layer.cuda()
    first = next(layer.parameters()).untyped_storage().data_ptr()
    assert {p.untyped_storage().data_ptr() for p in layer.parameters()} == {first}
    for parameter, host in zip(layer.parameters(), before, strict=True):
        assert torch.equal(parameter.cpu(), host)


@in_child
def test_a_convolution_takes_the_workspace_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_CUDA_CUDNN_WORKSPACE_BYTES", "3M")
    layer, x = nn.Conv2d(16, 16, 3, bias=False).cuda(), torch.zeros(IMAGE, device="cuda")
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        layer(x)
    assert torch.cuda.max_memory_allocated() - before == 3 * MIB + blocks(2 * 16 * 6 * 6 * 4)


def test_what_is_refused_says_which_function() -> None:
    code = "import torch; torch.fft.fft(torch.zeros(8, device='cuda'))"
    result = in_a_new_process(code, SIMULATED_CUDA_VERBOSE="1")
    assert result.returncode
    assert "simulated CUDA: cufft" in result.stderr
    assert "is not simulated" in result.stderr


# ---- time ----


@in_child
def test_the_host_runs_ahead_by_a_thousand_launches() -> None:
    x, hold = torch.zeros(1, device="cuda"), event()
    torch.cuda._sleep(HOLD_MS * CYCLES_PER_MS)
    hold.record()
    for _ in range(1000):
        x.add_(1)
    assert not hold.query()


@in_child
def test_a_full_launch_queue_makes_the_host_wait() -> None:
    x, hold = torch.zeros(1, device="cuda"), event()
    torch.cuda.synchronize()
    torch.cuda._sleep(300 * CYCLES_PER_MS)
    hold.record()
    for _ in range(1100):
        x.add_(1)
    assert hold.query()


@in_child
def test_events_measure_the_kernels_time_to_the_nanosecond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_CUDA_KERNEL_NS", "7000")
    x = torch.zeros(1, device="cuda")

    def step() -> None:
        for _ in range(50):
            x.add_(1)

    assert held_back_ns(step) == pytest.approx(50 * 7000, abs=1)


@in_child
def test_a_kernels_time_can_be_set_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.zeros(64, 64, device="cuda"), torch.zeros(64, 64, device="cuda")
    monkeypatch.setenv("SIMULATED_CUDA_KERNEL_NS", "1000")

    def step() -> None:
        torch.mm(x, x, out=y)
        y.add_(1)

    assert held_back_ns(step) == pytest.approx(2000, abs=1)
    monkeypatch.setenv("SIMULATED_CUDA_KERNEL_TIMES", "cublasSgemm=90000,nosuch=5")
    assert held_back_ns(step) == pytest.approx(91_000, abs=1)


@in_child
def test_one_more_kernel_is_seen_by_the_device_and_the_count() -> None:
    x = torch.zeros(1, device="cuda")

    def step(count: int) -> None:
        for _ in range(count):
            x.add_(1)

    three, four = held_back_ns(lambda: step(3)), held_back_ns(lambda: step(4))
    assert four - three == pytest.approx(2000, abs=1)
    before = stand_in.launches()
    step(3)
    assert stand_in.launches() - before == 3


@in_child
def test_a_launch_costs_the_host_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, device="cuda")
    monkeypatch.setenv("SIMULATED_CUDA_LAUNCH_NS", "1000000")
    start_ns = time.perf_counter_ns()
    for _ in range(20):
        x.add_(1)
    assert time.perf_counter_ns() - start_ns >= 20_000_000


@in_child
def test_end_to_end_takes_at_least_the_devices_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    monkeypatch.setenv("SIMULATED_CUDA_KERNEL_NS", "1000000")
    start_ns = time.perf_counter_ns()
    for _ in range(30):
        x.add_(1)
    torch.cuda.synchronize()
    assert time.perf_counter_ns() - start_ns >= 30_000_000


@in_child
def test_sleep_takes_its_cycles_at_the_cards_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_CUDA_CLOCK_MHZ", "1000")
    assert held_back_ns(lambda: torch.cuda._sleep(250_000)) == pytest.approx(250_000, abs=1)


@in_child
def test_streams_run_side_by_side_and_wait_for_events() -> None:
    side, done = torch.cuda.Stream(), event()
    with torch.cuda.stream(side):
        torch.cuda._sleep(HOLD_MS * CYCLES_PER_MS)
        done.record()
    torch.cuda.current_stream().synchronize()
    assert not side.query()
    torch.cuda.current_stream().wait_event(done)
    assert not torch.cuda.current_stream().query()


@in_child
def test_launch_blocking_leaves_nothing_on_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    torch.cuda._sleep(20 * CYCLES_PER_MS)
    assert torch.cuda.current_stream().query()


@in_child
def test_a_graph_replays_its_kernels_as_one_launch() -> None:
    x, graph = torch.zeros(1, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(5):
            x.add_(1)
    before = stand_in.launches()
    assert held_back_ns(graph.replay) == pytest.approx(5 * 2000, abs=1)
    assert stand_in.launches("elementwise") >= 10
    assert stand_in.launches() - before == 10 + 1  # two replays, and the kernel that holds back


@in_child
def test_a_stream_that_took_part_in_a_capture_works_after_it() -> None:
    x, graph, side = torch.zeros(1, device="cuda"), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.add_(1)
        torch.cuda.current_stream().wait_stream(side)
        x.add_(1)
    assert held_back_ns(graph.replay) == pytest.approx(2 * 2000, abs=1)
    with torch.cuda.stream(side):
        assert held_back_ns(lambda: x.add_(1)) == pytest.approx(2000, abs=1)


@in_child
def test_waiting_for_the_device_invalidates_a_capture() -> None:
    x = torch.zeros(1, device="cuda")
    with (
        pytest.raises(torch.AcceleratorError, match="capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        x.item()
    assert x.item() == 0


# ---- launches ----


@in_child
def test_launches_are_counted_by_name() -> None:
    x = torch.zeros(64, 64, device="cuda")
    names = ["", "cublasSgemm", "[memset]", "[memcpy]"]
    before = [stand_in.launches(name) for name in names]
    x @ x
    x.cpu()
    after = [stand_in.launches(name) for name in names]
    assert [late - early for early, late in zip(before, after, strict=True)] == [1, 1, 0, 1]


@in_child
def test_launches_are_logged_with_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.zeros(1, device="cuda")
    log = tmp_path / "launches"
    monkeypatch.setenv("SIMULATED_CUDA_LAUNCH_LOG", str(log))
    x.add_(1)
    (line,) = log.read_text().splitlines()
    process, device, _, duration_ns, name = line.split("\t")
    assert (int(process), int(device), int(duration_ns)) == (os.getpid(), 0, 2000)
    assert "elementwise" in name


# ---- failures ----


@in_child
def test_one_call_can_fail_with_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.cuda.init()
    monkeypatch.setenv("SIMULATED_CUDA_FAIL", "cudaMalloc=2@2")
    torch.empty(4 * MIB, device="cuda")
    # torch frees what it has cached and tries again: both tries must fail to be an error.
    assert torch.empty(64 * MIB, device="cuda").is_cuda
    assert torch.cuda.memory_stats()["num_alloc_retries"] == 1
    monkeypatch.setenv("SIMULATED_CUDA_FAIL", "cudaMalloc=2")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(128 * MIB, device="cuda")


@in_child
def test_cublas_can_lack_memory_for_its_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_CUDA_FAIL", "cublasCreate_v2=3")
    x = torch.zeros(8, 8, device="cuda")
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS_ALLOC_FAILED"):
        x @ x


@in_child
def test_a_failed_kernel_breaks_the_context_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, device="cuda")
    monkeypatch.setenv("SIMULATED_CUDA_FAIL", "cudaLaunchKernel=710@2")
    x.add_(1)
    for work in (lambda: x.add_(1), torch.cuda.synchronize, lambda: torch.ones(9).cuda()):
        with pytest.raises(torch.AcceleratorError, match="device-side assert triggered"):
            work()


# ---- NVML ----


def handle(index: int = 0) -> object:
    import pynvml

    pynvml.nvmlInit()
    uuid = torch.cuda.get_device_properties(index).uuid
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")


@in_child
def test_nvml_and_torch_speak_of_the_same_card(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    card, properties = handle(), torch.cuda.get_device_properties(0)
    assert pynvml.nvmlDeviceGetIndex(card) == 1
    assert pynvml.nvmlDeviceGetName(card) == properties.name
    address = pynvml.nvmlDeviceGetPciInfo(card).busId
    assert int(address.split(":")[1], 16) == properties.pci_bus_id
    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByPciBusId(address)) == 1
    x = torch.empty(10 * MIB, dtype=torch.uint8, device="cuda")
    memory = pynvml.nvmlDeviceGetMemoryInfo(card)
    free, total = torch.cuda.mem_get_info()
    assert (memory.free, memory.total, memory.used) == (free, total, total - free)
    assert x.is_cuda


@in_child
def test_nvml_accounts_to_this_process_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    card = handle()
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(card) == []
    kept = torch.empty(10 * MIB, dtype=torch.uint8, device="cuda")
    (process,) = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
    assert process.pid == os.getpid()
    assert process.usedGpuMemory == 64 * MIB + torch.cuda.memory_reserved()
    monkeypatch.setenv("SIMULATED_CUDA_OTHER_BYTES", "100M")
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
    assert [p.usedGpuMemory for p in processes if p.pid != os.getpid()] == [100 * MIB]
    assert kept.is_cuda


@in_child
def test_nvml_can_list_processes_as_a_container_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    card, kept = handle(), torch.empty(1, device="cuda")
    monkeypatch.setenv("SIMULATED_CUDA_PROCESSES", "none")
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(card) == []
    monkeypatch.setenv("SIMULATED_CUDA_PROCESSES", "other-pid")
    (process,) = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
    assert process.pid != os.getpid()
    monkeypatch.setenv("SIMULATED_CUDA_PROCESSES", "no-memory")
    (process,) = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
    assert (process.pid, process.usedGpuMemory) == (os.getpid(), None)
    assert kept.is_cuda


@in_child
def test_nvml_reads_clocks_and_what_lowers_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    card = handle()
    assert pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_SM) == 1980
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(card) == 0
    monkeypatch.setenv("SIMULATED_CUDA_CLOCK_MHZ", "1200")
    monkeypatch.setenv("SIMULATED_CUDA_MAX_CLOCK_MHZ", "1980")
    monkeypatch.setenv("SIMULATED_CUDA_CLOCKS_EVENT_REASONS", "0x44")
    assert pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_SM) == 1200
    assert pynvml.nvmlDeviceGetMaxClockInfo(card, pynvml.NVML_CLOCK_SM) == 1980
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(card) == 0x44


@in_child
def test_energy_is_power_times_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    card = handle()
    monkeypatch.setenv("SIMULATED_CUDA_WATTS", "250")
    tick_ns, tick_mj = 50_000_000, 50 * 250
    early = time.monotonic_ns() // tick_ns * tick_mj
    energy_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
    assert early <= energy_mj <= time.monotonic_ns() // tick_ns * tick_mj


@pytest.mark.parametrize(
    ("function", "code", "error"),
    [
        ("nvmlDeviceGetTotalEnergyConsumption", 3, "NVMLError_NotSupported"),
        ("nvmlDeviceGetCurrentClocksEventReasons", 3, "NVMLError_NotSupported"),
        ("nvmlDeviceGetComputeRunningProcesses_v3", 4, "NVMLError_NoPermission"),
        ("nvmlDeviceGetPersistenceMode", 3, "NVMLError_NotSupported"),
    ],
)
@in_child
def test_each_reading_of_nvml_can_be_missing(
    function: str, code: int, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pynvml

    card = handle()
    read = getattr(pynvml, function.removesuffix("_v3"))
    read(card)
    monkeypatch.setenv("SIMULATED_CUDA_FAIL", f"{function}={code}")
    with pytest.raises(getattr(pynvml, error)):
        read(card)


@in_child
def test_nvml_can_be_of_another_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    monkeypatch.setenv("SIMULATED_CUDA_FAIL", "nvmlInitWithFlags=18")
    torch.cuda.init()
    with pytest.raises(pynvml.NVMLError_LibRmVersionMismatch):
        pynvml.nvmlInit()
