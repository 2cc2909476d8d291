"""CUDA: everything in gradbench that says ``torch.cuda``."""

import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, Self, TypeVar

import torch

from ..errors import DeviceUnavailable
from ..records.allocations import Entry, Mark
from ..records.measurements import Fact
from . import DeviceClock, HostClock, Ledger, Monitor, Unreadable, Window, nothing, nvml
from .trace import trace

T = TypeVar("T")

L2_UNKNOWN: Final = 128 * 2**20  # at least that of any GPU when this was written
PROBE_CYCLES: Final = 10_000_000  # a few ms of holding back, to learn how fast its clock ticks
GRAIN: Final = 512  # bytes (kMinBlockSize in c10/cuda/CUDACachingAllocator.cpp)
FASTEST_GHZ: Final = 100.0  # no clock ticks faster: a hold that ends sooner is none


@dataclass(frozen=True, slots=True)
class CUDA:
    """One CUDA device; ``cuda`` is the current one."""

    name: str

    @property
    def start(self) -> Literal["fork", "spawn"]:
        """A fresh process: a CUDA context does not survive a fork."""
        return "spawn"

    @property
    def batch_ns(self) -> int:
        """Long against the 10 us or so that a synchronization takes."""
        return 1_000_000

    @property
    def l2(self) -> tuple[str, ...]:
        """Both: the cache can be overwritten between steps."""
        return ("hot", "cold")

    @property
    def foreach(self) -> bool:
        """Lists of tensors, which need room for temporaries of every parameter at once."""
        return True

    def rounded(self, nbytes: int) -> int:
        """Return the next multiple of 512, the least that the caching allocator hands out."""
        return -(-nbytes // GRAIN) * GRAIN

    def check(self) -> None:
        """Raise `DeviceUnavailable` without a CUDA build, a driver or this index."""
        if torch.version.cuda is None:
            raise DeviceUnavailable(f"{self.name}: this build of torch has no CUDA")
        if not torch.cuda.is_available():
            raise DeviceUnavailable(f"{self.name}: torch finds no CUDA device on this machine")
        index, count = torch.device(self.name).index, torch.cuda.device_count()
        if index is not None and index >= count:
            raise DeviceUnavailable(f"{self.name}: this machine has {count}, counted from cuda:0")

    def prepare(self) -> None:
        """Pick the device; fix TF32 and cuDNN's autotuner, whose choices vary from run to run."""
        torch.cuda.set_device(self._device())
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False

    def forget(self) -> None:
        """Drop cuBLAS's workspaces, by a private call while there is one, and cached blocks."""
        torch.cuda.synchronize(self.name)
        getattr(torch._C, "_cuda_clearCublasWorkspaces", nothing)()
        torch.cuda.empty_cache()

    def process_bytes(self) -> int:
        """Return what NVML counts for this process: tensors, cache, context and loaded kernels."""
        return self._gpu().process_bytes(os.getpid())

    def synchronize(self) -> None:
        """Wait for every stream of the device."""
        torch.cuda.synchronize(self.name)

    def ledger(self) -> Ledger:
        """Return the caching allocator's own counters."""
        return AllocatorLedger(self.name)

    def l2_flusher(self, l2: str) -> Callable[[], object]:
        """Return what overwrites twice the L2, by a buffer allocated now; for ``hot`` nothing.

        The same is done by nvbench and by Triton's ``do_bench``.
        """
        if l2 == "hot":
            return nothing
        size = getattr(self._properties(), "L2_cache_size", 0) or L2_UNKNOWN
        buffer = torch.empty(2 * size, dtype=torch.uint8, device=self._device())
        return buffer.zero_

    def host_clock(self) -> HostClock:
        """Return a clock around the host's calls."""
        return EnqueueClock(self.synchronize)

    def device_clock(self) -> DeviceClock:
        """Return a pair of events, and a stream that can be held back.

        ``torch.cuda._sleep`` is private, and torch has no public way to do this: when it goes
        away, or no longer holds the stream back, this raises `Unreadable` with the reason.
        """
        sleep = getattr(torch.cuda, "_sleep", None)
        if sleep is None:
            raise Unreadable(f"torch {torch.__version__} has no torch.cuda._sleep to hold it back")
        return HeldClock.calibrated(self.synchronize, sleep)

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
        """Recognise torch's own class for it."""
        return isinstance(error, torch.cuda.OutOfMemoryError)

    def describe(self) -> Mapping[str, Fact]:
        """Return the GPU's name and size, and the versions beneath torch."""
        properties = self._properties()
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call] # torch leaves it untyped
        return {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "gpu_l2_bytes": getattr(properties, "L2_cache_size", 0)
            or "unknown: torch does not say",
            "gpu_driver": nvml.driver(),
            "cuda": torch.version.cuda or "unknown: torch was built without CUDA",
            "cudnn": cudnn if cudnn is not None else "unknown: torch was built without cuDNN",
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }

    def _device(self) -> torch.device:
        device = torch.device(self.name)
        return device if device.index is not None else torch.device("cuda", 0)

    def _properties(self) -> Any:
        return torch.cuda.get_device_properties(self._device())

    def _gpu(self) -> nvml.Gpu:
        """Return NVML's handle of this device; raise `Unreadable` without one.

        By what it is, never by its index: NVML counts all GPUs of the machine in PCI order,
        while torch counts those in ``CUDA_VISIBLE_DEVICES``, fastest first unless set otherwise.
        """
        properties = self._properties()
        parts = [f"pci_{part}_id" for part in ("domain", "bus", "device")]
        pci = ""
        if all(hasattr(properties, part) for part in parts):
            domain, bus, slot = (int(getattr(properties, part)) for part in parts)
            pci = f"{domain:08x}:{bus:02x}:{slot:02x}.0"
        return nvml.find(uuid=str(getattr(properties, "uuid", "")), pci=pci)


@dataclass(frozen=True, slots=True)
class EnqueueClock:
    """The host's clock around its calls, the device drained before."""

    synchronize: Callable[[], None]
    clock_ns: Callable[[], int] = time.perf_counter_ns

    def read(self, step: Callable[[], object], iterations: int) -> int:
        """Return the nanoseconds that the host took; the device is drained after them too."""
        repeats = itertools.repeat(None, iterations)
        clock_ns = self.clock_ns
        self.synchronize()
        start_ns = clock_ns()
        for _ in repeats:
            step()
        elapsed_ns = clock_ns() - start_ns
        self.synchronize()
        return elapsed_ns


@dataclass(frozen=True, slots=True)
class HeldClock:
    """Two CUDA events around steps that were all enqueued before the first of them ran."""

    synchronize: Callable[[], None]
    sleep: Callable[[int], None]  # enqueues a kernel that spins for so many cycles
    start: torch.cuda.Event
    end: torch.cuda.Event
    cycles_per_ns: float

    @classmethod
    def calibrated(cls, synchronize: Callable[[], None], sleep: Callable[[int], None]) -> Self:
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


@dataclass(frozen=True, slots=True)
class AllocatorLedger:
    """The caching allocator's counters; it needs no watching between windows."""

    name: str

    def observe(self, function: Callable[[], T]) -> tuple[T, Window]:
        """Run the function between a reset of the peaks and a synchronized reading of them."""
        torch.cuda.synchronize(self.name)
        torch.cuda.empty_cache()  # or earlier steps' cached blocks would count as reserved here
        torch.cuda.reset_peak_memory_stats(self.name)
        before = torch.cuda.memory_allocated(self.name)
        result = function()
        torch.cuda.synchronize(self.name)
        peak = torch.cuda.max_memory_allocated(self.name)
        requested = torch.cuda.memory_stats(self.name).get("requested_bytes.all.peak", peak)
        return result, Window(
            before,
            peak,
            torch.cuda.memory_allocated(self.name),
            torch.cuda.max_memory_reserved(self.name),
            rounding_bytes=peak - int(requested),
        )

    def trace(
        self, function: Callable[[Callable[[Mark], None]], T]
    ) -> tuple[T, Window, list[Entry]]:
        """Do the same under the profiler, whose events are of the allocator's own rounded sizes."""
        (result, entries), window = self.observe(partial(trace, function, device="cuda"))
        return result, window, entries


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch leaves it untyped
