"""The machines: what differs between devices is a method here, never an ``if`` elsewhere.

Each backend is one file, imported only when its name is asked for.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from ..errors import DeviceUnavailable, UnknownName
from ..records.allocations import Change, Entry, Mark
from ..records.measurements import Fact

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

SMALL_BATCHES: Final = (2, 4)
"""Batch sizes from which what cannot be had at another goes on in a line, wherever it does."""


class Unreadable(Exception):
    """A meter has nothing to read here; the message says why."""


class OutOfSight(Unreadable):
    """A call does what no meter sees, and its figures would be too low; the message says what."""


@dataclass(frozen=True, slots=True)
class Span:
    """A count of bytes when a function began, at its highest, and when the function had ended."""

    before_bytes: int
    peak_bytes: int
    after_bytes: int


@dataclass(frozen=True, slots=True)
class Window(Span):
    """What an allocator did while a function ran: the bytes that it had handed out, and more."""

    reserved_bytes: int | Unreadable  # most that the allocator had taken from the driver
    requested: Span | Unreadable  # what it was asked for: it hands out rounded sizes
    retries: int = 0  # times that memory ran out, and the allocator emptied its cache to go on

    @property
    def rounding_bytes(self) -> int:
        """Bytes of the peak that nobody asked for."""
        requested = self.requested
        return 0 if isinstance(requested, Unreadable) else self.peak_bytes - requested.peak_bytes

    def check(self, entries: Iterable[Entry]) -> None:
        """Raise `Unreadable` unless the entries lead to the counted peak and end."""
        changes = [entry.nbytes for entry in entries if isinstance(entry, Change)]
        peak_bytes, after_bytes = balance(self.before_bytes, changes)
        if (peak_bytes, after_bytes) != (self.peak_bytes, self.after_bytes):
            raise Unreadable(
                f"the traced allocations lead to a peak of {peak_bytes:,} B and end at "
                f"{after_bytes:,} B, the allocator counted {self.peak_bytes:,} B and "
                f"{self.after_bytes:,} B"
            )


def balance(live_bytes: int, changes: Iterable[int]) -> tuple[int, int]:
    """Return the peak and the end of a running sum that starts at ``live_bytes``."""
    peak_bytes = live_bytes
    for change in changes:
        live_bytes += change
        peak_bytes = max(peak_bytes, live_bytes)
    return peak_bytes, live_bytes


@dataclass(frozen=True, slots=True)
class Trace:
    """Every allocation and free while a function ran, in order, with the marks between."""

    moments: tuple[tuple[str, Entry], ...]  # each with its device, ``cuda:0``; a mark has none

    def entries(self, device: str) -> list[Entry]:
        """Return what happened on one device, named with its index, and all marks."""
        return [entry for where, entry in self.moments if where in ("", device)]

    def allocated(self) -> dict[str, int]:
        """Return the bytes that were allocated, freed or not, by device."""
        nbytes: dict[str, int] = {}
        for where, entry in self.moments:
            if isinstance(entry, Change) and entry.nbytes > 0:
                nbytes[where] = nbytes.get(where, 0) + entry.nbytes
        return nbytes


class HostClock(Protocol):
    """Times what the host does for some steps, without waiting for the device."""

    def read(self, step: Callable[[], object], iterations: int) -> int:
        """Return the nanoseconds that the host took to enqueue ``iterations`` steps.

        It starts with nothing queued, for a full queue would make the host wait for the device,
        and synchronizes nowhere inside.
        """


class DeviceClock(Protocol):
    """Times what the device does for some steps, without the gaps in which it waits for work."""

    def read(self, step: Callable[[], object], iterations: int, *, hold_ns: int) -> int | None:
        """Return the nanoseconds that the device worked on ``iterations`` steps.

        It is held back for ``hold_ns`` while they are enqueued. None where that was too short:
        then the reading would hold gaps, and is not one.
        """


class Monitor(Protocol):
    """Looks at the device's own sensors while it is timed."""

    def sample(self) -> None:
        """Look, unless the last look is recent. Call it outside timed windows only."""

    def notes(self) -> Mapping[str, Fact]:
        """Return what was seen, as notes of a measurement."""


@dataclass(frozen=True, slots=True)
class Unwatched:
    """The monitor of a device without sensors to look at; its notes may say why."""

    recorded: Mapping[str, Fact] = field(default_factory=dict)

    def sample(self) -> None:
        """Do nothing."""

    def notes(self) -> Mapping[str, Fact]:
        """Return the reason, if there is one to tell."""
        return self.recorded


def nothing() -> None:
    """Do nothing: a hook for those who need none."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory that steps may fill: what this process has of it, and what it may still take."""

    name: str
    used_bytes: Callable[[], int]
    free_bytes: Callable[[], int]


class Ledger(Protocol):
    """An account of a process's allocations on one device.

    Everything that allocates or frees there must run inside `observe` from the ledger's start
    on: an exact balance has no gaps.
    """

    def observe(self, function: Callable[[], T]) -> tuple[T, Window]:
        """Run the function; return what it returned and what the allocator did meanwhile."""

    def trace(self, function: Callable[[Callable[[Mark], None]], T]) -> tuple[T, Window, Trace]:
        """Do as `observe` does, for a function that is given a way to make marks.

        The trace has every allocation and free in order, with the marks where they were made;
        `Window.check` says whether the window agrees.
        """


@dataclass(frozen=True, slots=True)
class Workspaces:
    """Blocks that libraries keep, in bytes: of the thread that runs forward, and of autograd's."""

    forward: tuple[int, ...] = ()
    backward: tuple[int, ...] = ()


class Allocator(Protocol):
    """A model of an allocator: what it would hand out, by the caller's keys."""

    @property
    def peak_bytes(self) -> int:
        """Most that was handed out at once since the last `reset`."""

    @property
    def reserved_bytes(self) -> int:
        """What it has taken from the driver."""

    def reset(self) -> None:
        """Count peaks from here on."""

    def take(self, key: int, nbytes: int) -> None:
        """Hand a block out."""

    def give(self, key: int) -> None:
        """Take a block back."""


class Device(Protocol):
    """One device as the runner sees it."""

    @property
    def name(self) -> str:
        """The axis value, ``cpu`` or ``cuda:1``."""

    @property
    def place(self) -> str:
        """The name with the index, as allocations on it bear it: ``cuda:0`` for ``cuda``."""

    @property
    def in_use(self) -> bool:
        """Whether this process has started the accelerator; the CPU is none."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that a measuring process sets before anything else."""

    @property
    def spare_cores(self) -> int:
        """How many cores beside those of the operators' threads its own threads need."""

    @property
    def cluster_resource(self) -> str:
        """What a cluster counts such devices as; "" where it does not, as of the CPU."""

    @property
    def bus_order(self) -> Mapping[str, str]:
        """Variables that have a process count its family as clusters do, in the bus's order."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """Values of the axis ``precision`` that can be had here."""

    @property
    def compile_modes(self) -> tuple[str, ...]:
        """Modes of `torch.compile` that do something of their own here."""

    @property
    def batch_ns(self) -> int:
        """How long one timed batch should last."""

    @property
    def l2(self) -> tuple[str, ...]:
        """Values of the axis ``l2`` that can be had here."""

    @property
    def tensors_from_malloc(self) -> bool:
        """Whether tensors lie in this process's own heap, whose page faults are in their times."""

    @property
    def foreach(self) -> bool:
        """Whether torch's optimizers work on lists of tensors here unless asked otherwise."""

    @property
    def operator_threads(self) -> bool:
        """Whether the axis ``threads`` says with how many of the host's threads operators run."""

    @property
    def context_bytes(self) -> int:
        """What a process takes of the device beside torch's allocator: its context, its kernels."""

    @property
    def probe_bytes(self) -> int:
        """Tensors of a call up to which its inner needs are learned by running it."""

    def carried_from(self, batch_size: int) -> tuple[int, int]:
        """Return two small batch sizes from which a call's inner needs go on to a larger one."""

    def allocator(self) -> Allocator:
        """Return an empty model of the allocator."""

    def workspaces(self) -> Workspaces:
        """Return what libraries keep between steps; where the device is not here, at most."""

    def runs_otherwise(self, op: str) -> bool:
        """Say whether the device has another operator, or another need, where the CPU runs this."""

    def multiplies_bfloat16(self) -> bool:
        """Say whether bfloat16 numbers are multiplied as such: where they are not, it is slow."""

    def multiplications_a_second(self, dtype: "torch.dtype") -> float:
        """Return how many it does of numbers of a dtype, within a factor of a few."""

    @property
    def exclusive(self) -> bool:
        """Whether one process at a time is to measure on it; those on a CPU share its cores out."""

    def lock_name(self) -> str:
        """Return what every process of this host calls the device, whichever devices it sees."""

    def local_cores(self) -> frozenset[int]:
        """Return the cores of the device's own NUMA node; raise `Unreadable` where none is said."""

    def count(self) -> int:
        """Return how many devices of its family this process sees."""

    def busiest(self) -> "Device":
        """Return the device of its family that holds most of this process's tensors."""

    def check(self) -> None:
        """Raise `DeviceUnavailable` where the device is not on this machine."""

    def check_compiler(self) -> None:
        """Raise `DeviceUnavailable` without what `torch.compile` needs to make code for it."""

    def of_rank(self, number: int) -> str:
        """Return the name of the device that a rank has, where the first has this one."""

    @property
    def collectives(self) -> str:
        """The backend of torch.distributed by which ranks on such devices talk."""

    def inside_collective(self, op: str, given: Sequence["torch.Tensor"]) -> int:
        """Return the bytes that a collective takes for itself, by what it is given."""

    def prepare(self) -> None:
        """Fix the backend's settings that change figures; called first in every process."""

    def set_precision(self, precision: str) -> None:
        """Fix how float32 is multiplied; called when the model, which may change it, is built."""

    def warm_up(self, *, backward: bool = True) -> None:
        """Make libraries allocate what they keep for the process, as a first step would."""

    def forget(self) -> None:
        """Drop what libraries keep between steps, workspaces say: the next step is a first one."""

    def process_bytes(self) -> int:
        """Return what the driver says this process holds on the device; raise `Unreadable`."""

    def memories(self) -> Sequence[Memory]:
        """Return the memories that steps on the device may fill, the host's among them."""

    def synchronize(self) -> None:
        """Return when all work queued on the device is done."""

    def inner_peaks(
        self, prepared: Sequence[Callable[[], Callable[[], object]]]
    ) -> list[int | None]:
        """Return the most bytes that each call asked for at once, None where it raises.

        Each is prepared right before, and what that allocates does not count.
        """

    def ledger(self, *, undisturbing: bool = False) -> Ledger:
        """Return a fresh account; raise `Unreadable` where allocations cannot be counted.

        An ``undisturbing`` one leaves the process's own statistics and cache as they are, and so
        knows peaks only from traces.
        """

    def l2_flusher(self, l2: str) -> Callable[[], object]:
        """Return what to call before each timed batch for this value of the axis ``l2``."""

    def host_clock(self) -> HostClock:
        """Return a fresh clock; raise `Unreadable` where host and device do not part."""

    def device_clock(self) -> DeviceClock:
        """Return a fresh clock; raise `Unreadable` where the device cannot be held back."""

    def spinner(self) -> Callable[[int], object]:
        """Return what enqueues a kernel that keeps the device busy for so many ticks of its own.

        Raise `Unreadable` where there is none: clocks have no known length to be held against.
        """

    def energy_counter(self) -> Callable[[], int]:
        """Return a function that reads a running total in uJ; raise `Unreadable` without one."""

    def monitor(self) -> Monitor:
        """Return a fresh monitor of the sensors; without sensors one that says so."""

    def check_valgrind(self) -> None:
        """Raise `Unreadable` where a process that uses the device cannot run under valgrind."""

    def out_of_memory(self, error: BaseException) -> bool:
        """Say whether the error is the device's way to report that memory ran out."""

    def lost(self, error: BaseException) -> bool:
        """Say whether after this error nothing works any more on the device in this process."""

    def occupied(self, words: str) -> bool:
        """Say whether an error in these words means that another process has the device alone."""

    def describe(self) -> Mapping[str, Fact]:
        """Return the device's facts for the environment record."""


def _cpu(_name: str) -> Device:
    from .cpu import CPU

    return CPU()


def _cuda(name: str) -> Device:
    from .cuda import CUDA

    return CUDA(name)


def _xpu(name: str) -> Device:
    from .xpu import XPU

    return XPU(name)


def _mps(name: str) -> Device:
    from .mps import MPS

    return MPS(name)


DEVICES: Final[Mapping[str, Callable[[str], Device]]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "xpu": _xpu,
    "mps": _mps,
}


_INDEX: Final = re.compile(r"[0-9]{1,2}|1[01][0-9]|12[0-7]")
"""An index that torch can have: of 8 bits."""
ALL: Final = "all"
"""In place of an index: every device of the family."""

MEANT: Final[Mapping[str, str]] = {
    **dict.fromkeys(("gpu", "nvidia", "amd", "hip", "rocm"), "cuda"),
    "intel": "xpu",
    "apple": "mps",
    "metal": "mps",
}
"""What people call a family otherwise; ROCm's torch calls it ``cuda``, too."""


def find(name: str) -> Device:
    """Return the device called ``cpu``, ``cuda`` or ``cuda:N``, and so on; raise `UnknownName`."""
    family, separator, index = name.partition(":")
    if family not in DEVICES or (separator and (family == "cpu" or not _INDEX.fullmatch(index))):
        lower = family.lower()
        meant = MEANT.get(lower, lower if lower in DEVICES else "")
        meant = f"{meant}{separator}{index}" if meant and separator else meant
        here = f"this machine has {', '.join(available())}"
        raise UnknownName("device", name, (*DEVICES, "cuda:0"), meant=meant, note=here)
    return DEVICES[family](name)


def all_of(family: str) -> list[str]:
    """Return every device of a family that this process sees; raise `DeviceUnavailable` of none."""
    first = find(family)
    first.check()
    return [family, *(f"{family}:{index}" for index in range(1, first.count()))]


def available() -> list[str]:
    """Return the device families that this machine has."""
    names = []
    for family in DEVICES:
        try:
            find(family).check()
        except DeviceUnavailable:
            continue
        names.append(family)
    return names


def in_cluster(resources: Collection[str]) -> list[str]:
    """Return the families that machines of a cluster have, by the resources that it counts there.

    It counts the GPUs of every maker as one kind, for which the first family stands: CUDA's.
    """
    families: dict[str, str] = {}
    for family in DEVICES:
        families.setdefault(find(family).cluster_resource, family)
    return [family for resource, family in families.items() if resource in {"", *resources}]


def in_use() -> Device:
    """Return an accelerator that this process has started, by its family's name, or the CPU.

    Nothing is started in order to know.
    """
    started = (device for device in map(find, DEVICES) if device.in_use)
    return next(started, find("cpu"))
