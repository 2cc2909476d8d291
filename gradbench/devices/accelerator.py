"""What `torch.accelerator` offers of any accelerator: counters, queues; the rest is a reason.

A backend is a subclass that knows more.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from ..errors import DeviceUnavailable
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
    Span,
    Unreadable,
    Unwatched,
    Workspaces,
    nothing,
)
from .allocator_ledger import AllocatorLedger, TracedLedger, proved
from .caching_allocator import CachingAllocator
from .enqueue_clock import EnqueueClock
from .host_memory import host_memory

BATCH_NS: Final = 1_000_000  # long against what a synchronization takes
CONTEXT_BYTES: Final = 600 * 2**20  # more than was seen of CUDA; nobody has measured another


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device of a backend; the family's name alone is its first."""

    name: str

    family: ClassVar[str]
    variables: ClassVar[tuple[str, ...]] = ()
    """Variables that change what a step takes."""

    environment: ClassVar[Mapping[str, str]] = {}
    spare_cores: ClassVar[int] = 1  # for the driver's threads and autograd's
    exclusive: ClassVar[bool] = True
    cluster_resource: ClassVar[str] = "GPU"  # of every maker
    bus_order: ClassVar[Mapping[str, str]] = {}
    compile_modes: ClassVar[tuple[str, ...]] = ("default", "max-autotune")
    batch_ns: ClassVar[int] = BATCH_NS
    l2: ClassVar[tuple[str, ...]] = ("hot",)
    tensors_from_malloc: ClassVar[bool] = False
    foreach: ClassVar[bool] = True
    operator_threads: ClassVar[bool] = False
    collectives: ClassVar[str] = "gloo"
    context_bytes: ClassVar[int] = CONTEXT_BYTES

    @property
    def precisions(self) -> tuple[str, ...]:
        """One: float32 as it is."""
        return ("ieee",)

    @property
    def place(self) -> str:
        """The name with its index."""
        return str(self._device())

    @property
    def in_use(self) -> bool:
        """Whether this process has started the backend, as far as it says."""
        return bool(getattr(self._backend(), "is_initialized", bool)())

    @property
    def probe_bytes(self) -> int:
        """A third of what is free, for a call may want as much again inside."""
        return self._free_bytes() // 3

    def carried_from(self, batch_size: int) -> tuple[int, int]:  # noqa: ARG002 # whichever it is
        """Return those from which any is carried on."""
        return SMALL_BATCHES

    def allocator(self) -> Allocator:
        """Return a model of torch's caching allocator."""
        return CachingAllocator()

    def workspaces(self) -> Workspaces:
        """Return none: no library here is known to keep any in torch's allocator."""
        return Workspaces()

    def runs_otherwise(self, op: str) -> bool:  # noqa: ARG002 # whichever it is
        """Return True: nobody has compared this backend's operators with the CPU's."""
        return True

    def multiplies_bfloat16(self) -> bool:
        """Return True: torch does not say otherwise."""
        return True

    def multiplications_a_second(self, dtype: torch.dtype) -> float:  # noqa: ARG002 # of any
        """Return what a small GPU does."""
        return 1e12

    def lock_name(self) -> str:
        """Return the name with the index: the backend is not asked for a better one."""
        return self.place

    def local_cores(self) -> frozenset[int]:
        """Raise `Unreadable`: which are near is unknown."""
        raise Unreadable(f"gradbench does not know which cores are near {self.family}")

    def count(self) -> int:
        """Return what torch counts."""
        return int(self._backend().device_count())

    def busiest(self) -> Device:
        """Return the one with most allocated bytes, and of equal ones the current one."""
        counters, current = self._counters(), self._backend().current_device()
        index = max(
            range(self.count()), key=lambda one: (counters.memory_allocated(one), one == current)
        )
        return type(self)(f"{self.family}:{index}" if index else self.family)

    def check(self) -> None:
        """Raise `DeviceUnavailable` where torch finds no such device."""
        backend = self._backend()
        if not backend.is_available():
            raise DeviceUnavailable(f"{self.name}: torch finds no {self.family} device here")
        index, count = torch.device(self.name).index, backend.device_count()
        if index is not None and index >= count:
            raise DeviceUnavailable(
                f"{self.name}: this machine has {count}, counted from {self.family}:0"
            )

    def check_compiler(self) -> None:
        """Do nothing: what its compiler needs is not known; the step says so."""

    def of_rank(self, number: int) -> str:
        """Return the device that comes so many after this one."""
        return f"{self.family}:{(torch.device(self.name).index or 0) + number}"

    def inside_collective(self, op: str, given: Sequence[Tensor]) -> int:  # noqa: ARG002 # whichever it is
        """Return 0: what the backend takes is not torch's."""
        return 0

    def prepare(self) -> None:
        """Pick the device."""
        torch.accelerator.set_device_index(self._device().index)

    def set_precision(self, precision: str) -> None:  # noqa: ARG002 # there is one
        """Ask for float32 as it is."""
        torch.set_float32_matmul_precision("highest")

    def warm_up(self, *, backward: bool = True) -> None:
        """Run a linear layer, as a first step would."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            layer = torch.nn.Linear(16, 16, device=self._device())
            output = layer(torch.zeros(16, 16, device=self._device()))
            if backward:
                output.sum().backward()

    def forget(self) -> None:
        """Drop cached blocks; there is no call to drop what libraries keep."""
        self.synchronize()
        torch.accelerator.empty_cache()

    def process_bytes(self) -> int:
        """Raise `Unreadable`: no driver is asked."""
        raise Unreadable(f"torch does not say what {self.family} holds for a process")

    def memories(self) -> Sequence[Memory]:
        """Return the host's: what torch's allocator has of this backend's has many names."""
        return (host_memory(),)

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.accelerator.synchronize(self._device())

    def inner_peaks(
        self, prepared: Sequence[Callable[[], Callable[[], object]]]
    ) -> list[int | None]:
        """Read the counters around each call, for a trace knows rounded sizes only.

        Each is called once before: what a library makes for its first use is not the call's.
        """
        ledger = self._ledger()
        peaks: list[int | None] = []
        for prepare in prepared:
            try:
                call = prepare()
                call()
                _, window = ledger.observe(call)
            except Exception:  # noqa: BLE001 # zeros may be no input for it, or too many
                peaks.append(None)
                continue
            finally:
                call = nothing
            assert isinstance(window.requested, Span)
            peaks.append(window.requested.peak_bytes - window.requested.before_bytes)
        return peaks

    def ledger(self, *, undisturbing: bool = False) -> Ledger:
        """Return the allocator's counters, proved on one block; raise `Unreadable` without them."""
        ledger = self._ledger(undisturbing=undisturbing)
        try:
            proved(ledger, f"of {self.family}, settings {self._settings()}")
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            words = (str(error).splitlines() or [""])[0]
            raise Unreadable(
                f"torch {torch.__version__} counts no memory on {self.family}: {words}"
            ) from error
        return ledger

    def l2_flusher(self, l2: str) -> Callable[[], object]:  # noqa: ARG002 # only "hot" is had here
        """Return a function that does nothing."""
        return nothing

    def host_clock(self) -> HostClock:
        """Return a clock around the host's calls."""
        return EnqueueClock(self.synchronize)

    def device_clock(self) -> DeviceClock:
        """Raise `Unreadable`: events alone would count the gaps in which the device waits."""
        raise Unreadable(f"torch has no way to hold the queue of {self.family} back")

    def spinner(self) -> Callable[[int], object]:
        """Raise `Unreadable`: torch has no kernel of known length here."""
        raise Unreadable(f"torch has no kernel of known length for {self.family}")

    def energy_counter(self) -> Callable[[], int]:
        """Raise `Unreadable`: no counter is known."""
        raise Unreadable(f"gradbench knows no energy counter of {self.family}")

    def monitor(self) -> Monitor:
        """Return a monitor that says why it sees nothing."""
        return Unwatched({"sensors": f"unknown: gradbench knows none of {self.family}"})

    def check_valgrind(self) -> None:
        """Raise `Unreadable`: a driver's calls into the kernel are unknown to valgrind."""
        raise Unreadable(f"{self.family} does not run under valgrind")

    def out_of_memory(self, error: BaseException) -> bool:
        """Recognise torch's class for it."""
        return isinstance(error, torch.OutOfMemoryError)

    def lost(self, error: BaseException) -> bool:
        """Say whether nothing works any more: then waiting for the device raises too."""
        if not isinstance(error, RuntimeError):
            return False
        try:
            self.synchronize()
        except RuntimeError:
            return True
        return False

    def occupied(self, words: str) -> bool:  # noqa: ARG002 # no words for it are known
        """Return False: no backend here is known to be one process's alone."""
        return False

    def describe(self) -> Mapping[str, Fact]:
        """Return what is known of the device, and what changes figures."""
        return {"gpu": self.family, "accelerator_settings": self._settings()}

    def _settings(self) -> str:
        those_set = [f"{one}={os.environ[one]}" for one in self.variables if one in os.environ]
        return " ".join(those_set) or "defaults"

    def _free_bytes(self) -> int:
        accelerator: Any = torch.accelerator  # its memory functions have no types yet
        return int(accelerator.get_memory_info(self._device().index)[0])

    def _ledger(self, *, undisturbing: bool = False) -> AllocatorLedger:
        kind = TracedLedger if undisturbing else AllocatorLedger
        return kind(self._device(), self._counters())

    def _device(self) -> torch.device:
        device = torch.device(self.name)
        return device if device.index is not None else torch.device(self.family, 0)

    def _counters(self) -> Any:
        """Return the module whose functions count memory; a backend's own has the same names."""
        return torch.accelerator

    def _backend(self) -> Any:
        return getattr(torch, self.family)
