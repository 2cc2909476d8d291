"""The machines: what differs between devices is a method here, never an ``if`` elsewhere.

Each backend is one file, imported only when its name is asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeVar

from ..errors import DeviceUnavailable, UnknownName
from ..records import Fact

T = TypeVar("T")


class Unreadable(Exception):
    """A meter has nothing to read here; the message says why."""


@dataclass(frozen=True, slots=True)
class Window:
    """What an allocator did while a function ran, in bytes."""

    before_bytes: int  # live when it began
    peak_bytes: int  # most that was live at once, ``before_bytes`` included
    reserved_bytes: int | Unreadable  # most that the allocator had taken from the driver


class Ledger(Protocol):
    """An account of a process's allocations on one device.

    Everything that allocates or frees there must run inside `observe` from the ledger's start
    on: an exact balance has no gaps.
    """

    def observe(self, function: Callable[[], T]) -> tuple[T, Window]:
        """Run the function; return what it returned and what the allocator did meanwhile."""


class Device(Protocol):
    """One device as the runner sees it."""

    @property
    def name(self) -> str:
        """The axis value, ``cpu`` or ``cuda:1``."""

    @property
    def start(self) -> Literal["fork", "spawn"]:
        """How a measuring process starts: a fork of a loaded parent, or a fresh one."""

    @property
    def batch_ns(self) -> int:
        """How long one timed batch should last."""

    @property
    def l2(self) -> tuple[str, ...]:
        """Values of the axis ``l2`` that can be had here."""

    def check(self) -> None:
        """Raise `DeviceUnavailable` where the device is not on this machine."""

    def prepare(self) -> None:
        """Fix the backend's settings that change figures; called first in every process."""

    def synchronize(self) -> None:
        """Return when all work queued on the device is done."""

    def ledger(self) -> Ledger:
        """Return a fresh account; raise `Unreadable` where allocations cannot be counted."""

    def out_of_memory(self, error: BaseException) -> bool:
        """Say whether the error is the device's way to report that memory ran out."""

    def describe(self) -> Mapping[str, Fact]:
        """Return the device's facts for the environment record."""


def _cpu(_name: str) -> Device:
    from .cpu import CPU

    return CPU()


def _cuda(name: str) -> Device:
    from .cuda import CUDA

    return CUDA(name)


DEVICES: Final[Mapping[str, Callable[[str], Device]]] = {"cpu": _cpu, "cuda": _cuda}


def find(name: str) -> Device:
    """Return the device called ``cpu``, ``cuda`` or ``cuda:N``; raise `UnknownName`."""
    family, separator, index = name.partition(":")
    if family not in DEVICES or (separator and not (index.isdecimal() and family != "cpu")):
        raise UnknownName("device", name, (*DEVICES, "cuda:0"))
    return DEVICES[family](name)


def available() -> list[str]:
    """Return the device families that this machine has."""
    found = []
    for family in DEVICES:
        try:
            find(family).check()
        except DeviceUnavailable:
            continue
        found.append(family)
    return found
