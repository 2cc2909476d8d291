"""The CPU: synchronous, its allocator counted through the profiler's memory events."""

import gc
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from ..errors import DeviceUnavailable
from ..records.allocations import Change, Mark, Phase
from ..records.measurements import Fact
from . import (
    SMALL_BATCHES,
    Allocator,
    Device,
    DeviceClock,
    HostClock,
    Ledger,
    Memory,
    Monitor,
    Trace,
    Unreadable,
    Unwatched,
    Window,
    Workspaces,
    balance,
    nothing,
)
from .host_memory import host_memory
from .trace import cpu_changes, trace

T = TypeVar("T")

NNPACK_BATCHES: Final = (16, 32)
"""From the first on NNPACK takes convolutions, where it is there and oneDNN is not."""

NUMBER_BYTES: Final = 8
"""What a number takes that torch makes a tensor of."""

NO_RESERVE: Final = "the CPU allocator keeps no reserve of its own: what it frees goes to malloc"
NO_ROUNDING: Final = "the CPU's allocator is counted in what it was asked for: see peak_allocated"
NO_DRIVER: Final = "the CPU has no driver beside the kernel: peak_rss is what the process holds"
NO_QUEUE: Final = "on the CPU an operator is done when its call returns: step_time is all there is"
NO_COUNTER: Final = "the CPU's energy counters cover whole sockets and are for root: none is read"

_CXX: Final[Mapping[str, str]] = {"darwin": "clang++", "win32": "cl"}
"""The compiler that Inductor asks for by platform; elsewhere g++."""

HIDDEN: Final[Mapping[str, str]] = {
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "-1",  # AMD's runtime prefers it to the first
    "ONEAPI_DEVICE_SELECTOR": "opencl:cpu",  # torch uses GPUs of Level Zero alone
}
"""Variables by which a process sees no accelerator; there is none for Apple's.

A driver found would be started by whatever asks for an accelerator: AdamW's step, for one.
"""


class CPU:
    """The host's processor."""

    name = place = "cpu"
    in_use = False
    environment: Mapping[str, str] = HIDDEN  # nobody writes
    spare_cores = 0
    exclusive = False
    cluster_resource = ""
    bus_order: Mapping[str, str] = {}  # nobody writes
    precisions = ("ieee",)
    compile_modes = ("default", "max-autotune")
    l2 = ("hot",)
    batch_ns = 100_000  # far below the scheduler's slice: most batches escape preemption

    tensors_from_malloc = True
    foreach = False
    operator_threads = True
    collectives = "gloo"

    context_bytes = 0
    probe_bytes = 64 * 2**20

    def carried_from(self, batch_size: int) -> tuple[int, int]:
        """Return larger ones for a batch that NNPACK takes: small ones run another convolution."""
        backends: Any = torch.backends  # torch leaves these untyped
        onednn = backends.mkldnn.is_available() and backends.mkldnn.enabled
        nnpack = backends.nnpack.is_available() and torch._C._get_nnpack_enabled()
        takes_it = nnpack and not onednn and batch_size >= NNPACK_BATCHES[0]
        return NNPACK_BATCHES if takes_it else SMALL_BATCHES

    def allocator(self) -> Allocator:
        """Return one that hands out what is asked for: malloc's rounding is nobody's tensor."""
        return ExactAllocator()

    def workspaces(self) -> Workspaces:
        """Return none: no library keeps memory that the allocator knows of."""
        return Workspaces()

    def runs_otherwise(self, op: str) -> bool:  # noqa: ARG002 # whichever it is
        """Return False: the CPU runs the CPU's operators."""
        return False

    def count(self) -> int:
        """Return 1."""
        return 1

    def busiest(self) -> Device:
        """Return itself: there is one CPU."""
        return self

    def check(self) -> None:
        """Do nothing: there is always a CPU."""

    def check_compiler(self) -> None:
        """Raise `DeviceUnavailable` without the C++ compiler that torch's Inductor asks for."""
        name = os.environ.get("CXX") or _CXX.get(sys.platform, "g++")
        if shutil.which(name) is None:
            raise DeviceUnavailable(
                f"torch.compile makes C++ of a model, and there is no compiler {name} here: "
                "install one, or name yours in the variable CXX"
            )

    def of_rank(self, number: int) -> str:  # noqa: ARG002 # whichever it is
        """Return the one name: ranks share the processor, and each has cores of its own."""
        return self.name

    def inside_collective(self, op: str, given: Sequence[Tensor]) -> int:
        """Return what gloo takes where shares of a sum are asked for: it sums up in a copy.

        FSDP2 asks for a mean in dtypes that cannot overflow. Then that copy is divided by a number,
        which torch makes a tensor of, and another one in the dtype of the copy.
        """
        if op != "c10d::_reduce_scatter_base_":
            return 0
        copied = max(given, key=lambda one: one.nbytes)
        divides = copied.dtype in (torch.float32, torch.bfloat16)
        return copied.nbytes + (NUMBER_BYTES + copied.itemsize if divides else 0)

    def prepare(self) -> None:
        """Do nothing: threads and cores are set by whoever starts the process."""

    def multiplies_bfloat16(self) -> bool:
        """Return whether there are instructions for it: AVX-512's, AMX's or Arm's."""
        has: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))

    def multiplications_a_second(self, dtype: torch.dtype) -> float:
        """Return what one core does by vectors; a number at a time where there are none for it."""
        if dtype == torch.bfloat16 and self.multiplies_bfloat16():
            return 2e10
        return {torch.float32: 2e10, torch.float64: 1e10}.get(dtype, 5e8)

    def lock_name(self) -> str:
        """Return its name."""
        return self.name

    def local_cores(self) -> frozenset[int]:
        """Raise `Unreadable`: they are the device."""
        raise Unreadable("the cores are the device")

    def set_precision(self, precision: str) -> None:
        """Do nothing: there is one precision only."""

    def warm_up(self, *, backward: bool = True) -> None:
        """Do nothing: no library keeps memory that the allocator knows of."""

    def forget(self) -> None:
        """Do nothing: operators keep nothing that the allocator knows of."""

    def process_bytes(self) -> int:
        """Raise `Unreadable`: on the CPU that is what ``peak_rss`` reads."""
        raise Unreadable(NO_DRIVER)

    def memories(self) -> Sequence[Memory]:
        """Return the host's: tensors lie there."""
        return (host_memory(),)

    def synchronize(self) -> None:
        """Return at once: CPU operators are done when they return."""

    def inner_peaks(
        self, prepared: Sequence[Callable[[], Callable[[], object]]]
    ) -> list[int | None]:
        """Run all in one trace: to start the profiler takes longer than most calls."""
        failed: set[int] = set()

        def every(mark: Callable[[Mark], None]) -> None:
            for index, prepare in enumerate(prepared):
                call = prepare()
                mark(Phase(f"{index}"))
                try:
                    result = call()
                except Exception:  # noqa: BLE001 # zeros may be no input for it
                    failed.add(index)
                    result = None
                mark(Phase(""))
                del call, result

        _, traced = trace(every)
        peaks: dict[int, int] = {}
        current, live = "", 0
        for entry in traced.entries(self.place):
            match entry:
                case Phase(name):
                    current, live = name, 0
                case Change(_, nbytes, _) if current:
                    live += nbytes
                    peaks[int(current)] = max(peaks.get(int(current), 0), live)
        return [None if index in failed else peaks.get(index, 0) for index in range(len(prepared))]

    def ledger(self, *, undisturbing: bool = False) -> Ledger:  # noqa: ARG002 # it never disturbs
        """Return a fresh account, proved on one allocation of known size.

        The profiler's events are torch's private matter; should another version change them,
        this raises `Unreadable` instead of reporting what it cannot know.
        """
        ledger, collects = ProfilerLedger(), gc.isenabled()
        gc.disable()  # tensors that it would free just then would be missing from the count
        try:
            probe, window = ledger.observe(lambda: torch.empty(1024, dtype=torch.uint8))
            grown = window.peak_bytes - window.before_bytes
            del probe
        except AttributeError as error:
            raise Unreadable(f"torch {torch.__version__}: no memory events ({error})") from error
        finally:
            if collects:
                gc.enable()
        if grown != 1024:
            raise Unreadable(f"torch {torch.__version__}: 1024 bytes were counted as {grown}")
        return ProfilerLedger()

    def l2_flusher(self, l2: str) -> Callable[[], object]:  # noqa: ARG002 # only "hot" is had here
        """Return a function that does nothing: a step finds what the last one left."""
        return nothing

    def host_clock(self) -> HostClock:
        """Raise `Unreadable`: to enqueue an operator is to run it."""
        raise Unreadable(NO_QUEUE)

    def device_clock(self) -> DeviceClock:
        """Raise `Unreadable`: there is no device beside the host."""
        raise Unreadable(NO_QUEUE)

    def spinner(self) -> Callable[[int], object]:
        """Raise `Unreadable`: there is no device beside the host."""
        raise Unreadable(NO_QUEUE)

    def energy_counter(self) -> Callable[[], int]:
        """Raise `Unreadable`: RAPL counts more than this process, and not for everyone."""
        raise Unreadable(NO_COUNTER)

    def monitor(self) -> Monitor:
        """Return a monitor that sees nothing and has nothing to say."""
        return Unwatched()

    def check_valgrind(self) -> None:
        """Do nothing: valgrind plays a processor with AVX2."""

    def out_of_memory(self, error: BaseException) -> bool:
        """Recognise torch's words for a malloc that failed, and Python's."""
        return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)

    def lost(self, error: BaseException) -> bool:  # noqa: ARG002 # whatever it is
        """Return False: an operator that raised on the CPU leaves the next one alone."""
        return False

    def occupied(self, words: str) -> bool:  # noqa: ARG002 # whatever they are
        """Return False: the CPU is everybody's."""
        return False

    def describe(self) -> Mapping[str, Fact]:
        """Return model name, vector instructions and frequency governor."""
        return {
            "cpu": _cpu_model(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cpu_governor": _read(
                Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            ),
        }


class ExactAllocator:
    """A model of malloc, as far as tensors go: it hands out what is asked for."""

    def __init__(self) -> None:
        self._taken: dict[int, int] = {}
        self._live_bytes = self.peak_bytes = 0

    @property
    def reserved_bytes(self) -> int:
        """The highest peak: there is no reserve."""
        return self.peak_bytes

    def reset(self) -> None:
        """Count peaks from here on."""
        self.peak_bytes = self._live_bytes

    def take(self, key: int, nbytes: int) -> None:
        """Hand a block out."""
        self._taken[key] = nbytes
        self._live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)

    def give(self, key: int) -> None:
        """Take a block back."""
        self._live_bytes -= self._taken.pop(key, 0)


class ProfilerLedger:
    """A running balance of the profiler's memory events.

    torch keeps the size of every block that was allocated under any profiler of the process, so
    a block may be freed in a later window than it came from, and the balance stays exact.
    """

    def __init__(self) -> None:
        self._live_bytes = 0

    def observe(self, function: Callable[[], T]) -> tuple[T, Window]:
        """Run the function under the profiler and post its allocations.

        A function that raises ends the account: what it allocated is not posted.
        """
        result, changes = cpu_changes(function)
        return result, self._window(changes)

    def trace(self, function: Callable[[Callable[[Mark], None]], T]) -> tuple[T, Window, Trace]:
        """Run the function under the profiler; post its allocations and return them."""
        result, traced = trace(function)
        entries = traced.entries("cpu")
        changes = [entry.nbytes for entry in entries if isinstance(entry, Change)]
        return result, self._window(changes), traced

    def _window(self, changes: Sequence[int]) -> Window:
        """Post the changes; return what they did."""
        before = self._live_bytes
        peak, self._live_bytes = balance(before, changes)
        return Window(
            before, peak, self._live_bytes, Unreadable(NO_RESERVE), Unreadable(NO_ROUNDING)
        )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError as error:
        return f"unknown: {error.strerror} ({path})"
