"""CUDA, and AMD's GPUs under its name: everything in gradbench that says ``torch.cuda``."""

import importlib.util
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import torch

from ..errors import DeviceUnavailable
from ..records.allocations import Change
from ..records.measurements import Fact
from . import (
    DeviceClock,
    Ledger,
    Memory,
    Monitor,
    Unreadable,
    Workspaces,
    nothing,
    nvml,
)
from .accelerator import Accelerator
from .allocator_ledger import proved
from .host_memory import host_memory
from .trace import trace

L2_UNKNOWN: Final = 128 * 2**20  # at least that of any GPU when this was written
PROBE_CYCLES: Final = 10_000_000  # a few ms of holding back, to learn how fast its clock ticks
TF32_SINCE: Final = 8  # major compute capability
WORKSPACE_AT_MOST: Final = (32 * 2**20, 2**20)  # of a thread, at compute capability 9.0
OTHERWISE: Final = (
    "bernoulli",
    "rnn",
    "lstm",
    "gru",
    "attention",
    "batch_norm",
    "mkldnn",
    "onednn",
)
"""Parts of names of operators that CUDA has others for."""

FASTEST_GHZ: Final = 100.0  # no clock ticks faster: a hold that ends sooner is none

SETTINGS: Final = (
    "CUBLASLT_WORKSPACE_SIZE",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDNN_ERRATA_JSON_FILE",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "TORCH_CUBLASLT_UNIFIED_WORKSPACE",
    "TORCH_CUBLAS_WORKSPACE_CACHE",
    "TORCH_CUDNN_V8_API_DISABLED",
)
"""Variables that change what a step takes on a GPU."""

OUT_OF_MEMORY: Final = (
    "CUDA error: out of memory",  # of the driver: a context, a kernel's code, an event
    "cudaErrorMemoryAllocation",
    "STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSPARSE, cuFFT and cuSOLVER say so alike
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
"""Words of libraries that want memory of their own, which torch's allocator has none of left."""

OCCUPIED: Final = ("busy or unavailable", "cudaErrorDevicesUnavailable")
"""Words of the driver where it gives a process no context, and another process has one."""

NO_NVML: Final = "NVML knows NVIDIA's GPUs alone, and this is AMD's"

PCI_DEVICES: Final = Path("/sys/bus/pci/devices")


class CUDA(Accelerator):
    """One CUDA device; ``cuda`` is the first."""

    __slots__ = ()
    family: ClassVar[str] = "cuda"
    collectives: ClassVar[str] = "nccl"
    bus_order: ClassVar[Mapping[str, str]] = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    variables: ClassVar[tuple[str, ...]] = SETTINGS
    compile_modes: ClassVar[tuple[str, ...]] = ("default", "reduce-overhead", "max-autotune")
    l2: ClassVar[tuple[str, ...]] = ("hot", "cold")

    @property
    def precisions(self) -> tuple[str, ...]:
        """Both: float32 as it is, or rounded to 19 bits in tensor cores; of AMD's the first."""
        return ("ieee",) if _rocm() else ("ieee", "tf32")

    @property
    def probe_bytes(self) -> int:
        """A third of the device, for a call may want as much again inside."""
        return int(self._properties().total_memory) // 3

    def workspaces(self) -> Workspaces:
        """Return what cuBLAS and cuBLASLt keep for each thread, by letting them take it."""
        try:
            self.check()
        except DeviceUnavailable:
            return Workspaces(WORKSPACE_AT_MOST, WORKSPACE_AT_MOST)
        self.forget()
        kept: list[tuple[int, ...]] = []
        for backward in (False, True):
            _, traced = trace(lambda _, more=backward: self.warm_up(backward=more))  # type: ignore[misc] # mypy cannot infer a default
            live: dict[int, int] = {}
            for entry in traced.entries(self.place):
                if isinstance(entry, Change):
                    live[entry.address] = live.get(entry.address, 0) + entry.nbytes
            kept.append(tuple(nbytes for nbytes in live.values() if nbytes > 0))
        self.forget()
        return Workspaces(*kept)

    def runs_otherwise(self, op: str) -> bool:
        """Say whether it is of dropout, recurrence, attention, batch norm, or oneDNN's."""
        return any(part in op for part in OTHERWISE)

    def memories(self) -> Sequence[Memory]:
        """Return the host's and the card's, of which torch may have some in its cache."""
        device = self._device()

        def free_bytes() -> int:
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            return int(torch.cuda.mem_get_info(device)[0]) + cached

        used_bytes = partial(torch.cuda.memory_allocated, device)
        return (host_memory(), Memory(f"{self.place}'s memory", used_bytes, free_bytes))

    def check(self) -> None:
        """Raise `DeviceUnavailable` without a CUDA build, a driver or this index."""
        if torch.version.cuda is None and _rocm() is None:
            raise DeviceUnavailable(f"{self.name}: this build of torch has no CUDA")
        if not torch.cuda.is_available():
            raise DeviceUnavailable(f"{self.name}: torch finds no CUDA device on this machine")
        index, count = torch.device(self.name).index, torch.cuda.device_count()
        if index is not None and index >= count:
            raise DeviceUnavailable(f"{self.name}: this machine has {count}, counted from cuda:0")

    def check_compiler(self) -> None:
        """Raise `DeviceUnavailable` without Triton, which makes kernels of what was compiled."""
        if importlib.util.find_spec("triton") is None:
            raise DeviceUnavailable(
                f"{self.name}: torch.compile makes kernels with Triton, which is not here: "
                "pip install triton"
            )

    def multiplies_bfloat16(self) -> bool:
        """Return whether the GPU does, and not torch in its place."""
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    def multiplications_a_second(self, dtype: torch.dtype) -> float:
        """Return what a GPU of a data centre does; double precision is slow on all others."""
        return 1e11 if dtype in (torch.float64, torch.complex128) else 1e13

    def lock_name(self) -> str:
        """Return its UUID, or where torch does not say that, the address on the bus."""
        uuid = str(getattr(self._properties(), "uuid", ""))
        return f"GPU-{uuid}" if uuid else self._pci() or self.place

    def local_cores(self) -> frozenset[int]:
        """Return the cores of the socket that the GPU is on, by its address on the bus.

        A call into the driver takes longer from another socket. Raise `Unreadable` where the system
        names none.
        """
        path = PCI_DEVICES / self._pci()[4:] / "local_cpulist"
        try:
            cores = _cores(path.read_text("ascii"))
        except (OSError, ValueError) as error:
            raise Unreadable(f"{str(path)!r} names no cores: {error}") from error
        return frozenset(cores)

    def prepare(self) -> None:
        """Pick the device; switch cuDNN's autotuner off, whose choices vary from run to run."""
        torch.cuda.set_device(self._device())
        torch.backends.cudnn.benchmark = False

    def set_precision(self, precision: str) -> None:
        """Fix how float32 is multiplied, by cuBLAS and by cuDNN.

        Raise `DeviceUnavailable` for TF32 on a GPU that has none.
        """
        if precision == "tf32" and self._properties().major < TF32_SINCE:
            raise DeviceUnavailable(f"{self.name}: no TF32 before compute capability 8.0")
        # by the old name first: torch refuses to read one that only the new ones have set
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        if _rocm():
            return
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined] # set at run time
        torch.backends.cudnn.rnn.fp32_precision = precision  # type: ignore[attr-defined] # set at run time

    def warm_up(self, *, backward: bool = True) -> None:
        """Run a linear layer: cuBLAS and cuBLASLt take a workspace for each thread that asks."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            layer = torch.nn.Linear(16, 16, device=self._device())
            output = layer(torch.zeros(16, 16, device=self._device())) @ layer.weight
            if backward:
                output.sum().backward()

    def forget(self) -> None:
        """Drop cuBLAS's workspaces, by a private call while there is one, and cached blocks.

        Newer versions of torch keep them by thread, so autograd's thread is asked to drop its own.
        """
        torch.cuda.synchronize(self._device())
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", nothing)
        clear()
        with torch.inference_mode(mode=False), torch.enable_grad():
            nothing_at_all = torch.zeros(0, device=self._device(), requires_grad=True)
            nothing_at_all.register_hook(lambda _: clear())  # type: ignore[no-untyped-call] # torch leaves it untyped
            # of no bytes: autograd's thread may let go of a block after this one has gone on
            torch.autograd.grad(nothing_at_all.neg(), nothing_at_all, nothing_at_all.detach())
        torch.cuda.synchronize(self._device())
        torch.cuda.empty_cache()

    def process_bytes(self) -> int:
        """Return what NVML counts for this process: tensors, cache, context and loaded kernels."""
        return self._gpu().process_bytes(os.getpid())

    def synchronize(self) -> None:
        """Wait for every stream of the device."""
        torch.cuda.synchronize(self._device())

    def ledger(self, *, undisturbing: bool = False) -> Ledger:
        """Return the caching allocator's own counters, proved on one block of known size.

        Switched off, or with the driver's pool in its place, the allocator counts nothing, or
        not all: that is a reason and not a 0.
        """
        ledger = self._ledger(undisturbing=undisturbing)
        proved(ledger, f"{torch.cuda.get_allocator_backend()}, settings {self._settings()}")
        return ledger

    def l2_flusher(self, l2: str) -> Callable[[], object]:
        """Return what overwrites twice the L2, by a buffer allocated now; for ``hot`` nothing.

        The same is done by nvbench and by Triton's ``do_bench``.
        """
        if l2 == "hot":
            return nothing
        size = getattr(self._properties(), "L2_cache_size", 0) or L2_UNKNOWN
        buffer = torch.empty(2 * size, dtype=torch.uint8, device=self._device())
        return buffer.zero_

    def device_clock(self) -> DeviceClock:
        """Return a pair of events, and a stream that can be held back.

        ``torch.cuda._sleep`` is private, and torch has no public way to do this: when it goes
        away, or no longer holds the stream back, this raises `Unreadable` with the reason.
        """
        return HeldClock.calibrated(self.synchronize, self.spinner())

    def spinner(self) -> Callable[[int], object]:
        """Return the private ``torch.cuda._sleep``, whose ticks are cycles of the SM clock.

        Raise `Unreadable` where this torch has none.
        """
        sleep: Callable[[int], object] | None = getattr(torch.cuda, "_sleep", None)
        if sleep is None:
            raise Unreadable(f"torch {torch.__version__} has no torch.cuda._sleep to hold it back")
        return sleep

    def energy_counter(self) -> Callable[[], int]:
        """Return the driver's total for the board, which NVML counts in mJ since it was loaded."""
        return nvml.energy_counter(self._gpu())

    def monitor(self) -> Monitor:
        """Return a monitor of the SM clock and of what slows it down."""
        return nvml.monitor(self._gpu)

    def check_valgrind(self) -> None:
        """Raise `Unreadable`: the driver's calls into the kernel are unknown to valgrind."""
        raise Unreadable("CUDA does not run under valgrind, which counts the host's instructions")

    def out_of_memory(self, error: BaseException) -> bool:
        """Recognise torch's class for it, and the words of what takes memory beside torch."""
        known = isinstance(error, RuntimeError) and any(w in str(error) for w in OUT_OF_MEMORY)
        return known or super().out_of_memory(error)

    def occupied(self, words: str) -> bool:
        """Recognise the driver's words: in the exclusive compute mode, the GPU has one process."""
        return any(one in words for one in OCCUPIED)

    def describe(self) -> Mapping[str, Fact]:
        """Return the GPU's name and size, the versions beneath torch, and what changes figures."""
        properties = self._properties()
        return {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "gpu_capability": properties.gcnArchName
            if _rocm()
            else f"{properties.major}.{properties.minor}",
            "gpu_l2_bytes": getattr(properties, "L2_cache_size", 0)
            or "unknown: torch does not say",
            "gpu_driver": f"unknown: {NO_NVML}" if _rocm() else nvml.driver(),
            **nvml.settings(self._gpu),
            "cuda": torch.version.cuda or f"none: ROCm {_rocm()}",
            "cudnn": _cudnn(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cuda_allocator": torch.cuda.get_allocator_backend(),
            "cuda_settings": self._settings(),
        }

    def _pci(self) -> str:
        """Return the PCI address, ``00000000:1b:00.0``, or ``""`` where torch does not say."""
        properties = self._properties()
        parts = [f"pci_{part}_id" for part in ("domain", "bus", "device")]
        if not all(hasattr(properties, part) for part in parts):
            return ""
        domain, bus, slot = (int(getattr(properties, part)) for part in parts)
        return f"{domain:08x}:{bus:02x}:{slot:02x}.0"

    def _backend(self) -> Any:
        return torch.cuda

    def _counters(self) -> Any:
        return torch.cuda

    def _properties(self) -> Any:
        return torch.cuda.get_device_properties(self._device())

    def _gpu(self) -> nvml.Gpu:
        """Return NVML's handle of this device; raise `Unreadable` without one.

        By what it is, never by its index: NVML counts all GPUs of the machine in PCI order,
        while torch counts those in ``CUDA_VISIBLE_DEVICES``, fastest first unless set otherwise.
        """
        if _rocm():
            raise Unreadable(NO_NVML)
        return nvml.find(uuid=str(getattr(self._properties(), "uuid", "")), pci=self._pci())


@dataclass(frozen=True, slots=True)
class HeldClock:
    """Two CUDA events around steps that were all enqueued before the first of them ran."""

    synchronize: Callable[[], None]
    sleep: Callable[[int], object]  # enqueues a kernel that spins for so many cycles
    start: torch.cuda.Event
    end: torch.cuda.Event
    cycles_per_ns: float

    @classmethod
    def calibrated(cls, synchronize: Callable[[], None], sleep: Callable[[int], object]) -> Self:
        """Return a clock with events that exist already, and a known length of a cycle.

        Raise `Unreadable` when a sleep of 10 million cycles does not take the time they need.
        """
        start, end = (_event() for _ in range(2))
        try:
            for _ in range(2):  # the first loads the kernel and makes the driver's events
                synchronize()
                start.record()
                sleep(PROBE_CYCLES)
                end.record()
                synchronize()
        except AttributeError as error:
            raise Unreadable(f"torch {torch.__version__}: {error}") from error
        elapsed_ns = start.elapsed_time(end) * 1e6
        if elapsed_ns <= PROBE_CYCLES / FASTEST_GHZ:
            raise Unreadable(
                f"torch {torch.__version__}: torch.cuda._sleep held the stream back for "
                f"{elapsed_ns:.0f} ns instead of {PROBE_CYCLES} cycles"
            )
        return cls(synchronize, sleep, start, end, PROBE_CYCLES / elapsed_ns)

    def read(self, step: Callable[[], object], iterations: int, *, hold_ns: int) -> int | None:
        """Return the nanoseconds between the events, to about 500 (``cudaEventElapsedTime``).

        When the first event has already happened by the time that all is enqueued, the device
        was not held back for long enough.
        """
        repeats = itertools.repeat(None, iterations)
        start, end = self.start, self.end
        self.synchronize()
        self.sleep(int(hold_ns * self.cycles_per_ns))
        start.record()
        for _ in repeats:
            step()
        end.record()
        held = not start.query()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.synchronize()
        return round(start.elapsed_time(end) * 1e6) if held else None


def _rocm() -> str | None:
    """Return the version of ROCm that torch was built for: AMD's GPUs answer to ``torch.cuda``."""
    return getattr(torch.version, "hip", None)


def _cores(ranges: str) -> set[int]:
    """Return the cores that the kernel writes as ``0-15,64-79``; raise `ValueError`."""
    cores: set[int] = set()
    for part in ranges.strip().split(","):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores


def _cudnn() -> int | str:
    """Return cuDNN's version, or why there is none: for an old GPU a new one is of no use."""
    try:
        version = torch.backends.cudnn.version()  # type: ignore[no-untyped-call] # torch leaves it untyped
    except RuntimeError as error:
        return f"of no use: {(str(error).splitlines() or [''])[0]}"
    return int(version) if version is not None else "unknown: torch was built without cuDNN"


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch leaves it untyped
