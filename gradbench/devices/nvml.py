"""NVML: one GPU's clock, slowdowns and energy, or the reason why they are not known."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..records.measurements import Fact
from . import Monitor, Unreadable, Unwatched

MISSING: Final = "pynvml is not here: install nvidia-ml-py"
KERNEL_MODULE: Final = Path("/sys/module/nvidia/version")
EVERY_NS: Final = 50_000_000  # between two looks: each costs some 10 us of the host's time

# Bits of nvmlClocksEventReasons (nvml.h). The GPU lowers its clock because it must:
THROTTLED: Final = (
    0x04  # software power cap
    | 0x08  # hardware slowdown
    | 0x20  # software thermal slowdown
    | 0x40  # hardware thermal slowdown
    | 0x80  # hardware power brake
)
# The others are as someone chose (0x02 application clocks, 0x10 sync boost, 0x100 display
# clock), or the GPU has nothing to do (0x01): no throttling.

_REASONS: Final = (
    "nvmlDeviceGetCurrentClocksEventReasons",  # from driver 535 on
    "nvmlDeviceGetCurrentClocksThrottleReasons",
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as NVML knows it: the module, and its handle."""

    pynvml: Any
    handle: Any

    def sm_clock_mhz(self) -> int:
        """Return the clock of the multiprocessors now; raise `Unreadable`."""
        return int(self._ask("nvmlDeviceGetClockInfo", self.pynvml.NVML_CLOCK_SM))

    def process_bytes(self, pid: int) -> int:
        """Return the bytes that the driver accounts to a process; raise `Unreadable`.

        In a container the driver may know the process by another number, and under some drivers
        it keeps no account of memory.
        """
        used = [
            process.usedGpuMemory
            for process in self._ask("nvmlDeviceGetComputeRunningProcesses")
            if process.pid == pid
        ]
        if not used:
            raise Unreadable(
                f"NVML lists no process {pid}: inside a container it has another number"
            )
        if used[0] is None:
            raise Unreadable("this driver keeps no account of a process's memory")
        return int(used[0])

    def slowdowns(self) -> int:
        """Return the bits that say why the clock is what it is; raise `Unreadable`."""
        for name in _REASONS:
            try:
                return int(self._ask(name))
            except Unreadable as error:
                reason = error
        raise reason

    def energy_mj(self) -> int:
        """Return the energy of the whole board since the driver was loaded; raise `Unreadable`."""
        return int(self._ask("nvmlDeviceGetTotalEnergyConsumption"))

    def power_limit_mw(self) -> int:
        """Return the power that the board may use; raise `Unreadable`."""
        return int(self._ask("nvmlDeviceGetEnforcedPowerLimit"))

    def persistent(self) -> bool:
        """Return whether the driver stays loaded with no process there; raise `Unreadable`."""
        return bool(self._ask("nvmlDeviceGetPersistenceMode"))

    def partitioned(self) -> bool:
        """Return whether the GPU is divided into instances (MIG) now; raise `Unreadable`."""
        return bool(self._ask("nvmlDeviceGetMigMode")[0])

    def compute_mode(self) -> int:
        """Return NVML's number for who may use it, 0 for everyone; raise `Unreadable`."""
        return int(self._ask("nvmlDeviceGetComputeMode"))

    def _ask(self, name: str, *arguments: object) -> Any:
        absent_or_failed: tuple[type[Exception], ...] = (AttributeError, *_errors(self.pynvml))
        try:
            return getattr(self.pynvml, name)(self.handle, *arguments)
        except absent_or_failed as error:
            raise Unreadable(f"{name}: {error}") from error


def find(*, uuid: str, pci: str) -> Gpu:
    """Return the GPU (or MIG instance) with this UUID, or else at this PCI address.

    ``uuid`` is bare, as torch tells it; either may be empty. Raise `Unreadable` without pynvml,
    without a driver, or when NVML knows neither.
    """
    pynvml = _started()
    ways = [
        (pynvml.nvmlDeviceGetHandleByUUID, prefix + uuid) for prefix in ("GPU-", "MIG-") if uuid
    ]
    ways += [(pynvml.nvmlDeviceGetHandleByPciBusId, pci)] if pci else []
    reason = "torch tells neither UUID nor PCI address of this device"
    for way, name in ways:
        try:
            return Gpu(pynvml, way(name))
        except _errors(pynvml) as error:
            reason = f"NVML does not know {name}: {error}"
    raise Unreadable(reason)


def driver() -> str:
    """Return the driver's version, by NVML or by the kernel's module, or why it is unknown."""
    try:
        return _driver_version()
    except Unreadable as reason:
        try:
            return KERNEL_MODULE.read_text("ascii").strip()
        except (OSError, ValueError):
            return f"unknown: {reason}"


def _driver_version() -> str:
    pynvml = _started()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    except _errors(pynvml) as error:
        raise Unreadable(f"nvmlSystemGetDriverVersion: {error}") from error


def settings(find_gpu: Callable[[], Gpu]) -> dict[str, Fact]:
    """Return how the GPU is set up, of what changes times: power limit, persistence, MIG, mode."""
    asked: dict[str, Callable[[Gpu], Fact]] = {
        "gpu_power_limit_mw": lambda gpu: gpu.power_limit_mw(),
        "gpu_persistence": lambda gpu: gpu.persistent(),
        "gpu_mig": lambda gpu: gpu.partitioned(),
        "gpu_compute_mode": lambda gpu: gpu.compute_mode(),
    }
    facts: dict[str, Fact] = {}
    for name, ask in asked.items():
        try:
            facts[name] = ask(find_gpu())
        except Unreadable as reason:
            facts[name] = f"unknown: {reason}"
    return facts


def energy_counter(gpu: Gpu) -> Callable[[], int]:
    """Return a function that reads the board's energy in uJ; raise `Unreadable` without one.

    NVML counts it in mJ from Volta on, and updates it every 20 to 100 ms.
    """
    gpu.energy_mj()
    return lambda: gpu.energy_mj() * 1000


def monitor(find_gpu: Callable[[], Gpu]) -> Monitor:
    """Return a monitor of the GPU, or one whose note says why there is none."""
    try:
        gpu = find_gpu()
    except Unreadable as reason:
        return Unwatched({"nvml": f"unknown: {reason}"})
    return Sampler(gpu)


@dataclass(slots=True)
class Sampler:
    """Keeps what NVML says at each look."""

    gpu: Gpu
    clock_ns: Callable[[], int] = time.perf_counter_ns
    _clocks_mhz: list[int] = field(default_factory=list)
    _throttled: list[bool] = field(default_factory=list)
    _why_not: dict[str, str] = field(default_factory=dict)
    _next_ns: int | None = None

    def sample(self) -> None:
        """Look at the SM clock and at what slows it down, every 50 ms at most."""
        now_ns = self.clock_ns()
        if self._next_ns is not None and now_ns < self._next_ns:
            return
        self._next_ns = now_ns + EVERY_NS
        try:
            self._clocks_mhz.append(self.gpu.sm_clock_mhz())
        except Unreadable as reason:
            self._why_not["sm_clock_mhz"] = str(reason)
        try:
            self._throttled.append(bool(self.gpu.slowdowns() & THROTTLED))
        except Unreadable as reason:
            self._why_not["throttled_share"] = str(reason)

    def notes(self) -> Mapping[str, Fact]:
        """Return the lowest and the highest clock in MHz, and the share of throttled looks."""
        clock, looks = "sm_clock_mhz", len(self._throttled)
        notes: dict[str, Fact] = {}
        if self._clocks_mhz:
            notes[f"{clock}_min"] = min(self._clocks_mhz)
            notes[f"{clock}_max"] = max(self._clocks_mhz)
        else:
            why = self._why_not.get(clock, "never looked")
            notes |= {f"{clock}_min": f"unknown: {why}", f"{clock}_max": f"unknown: {why}"}
        if looks:
            notes["throttled_share"] = round(sum(self._throttled) / looks, 4)
        else:
            why = self._why_not.get("throttled_share", "never looked")
            notes["throttled_share"] = f"unknown: {why}"
        return notes


def _started() -> Any:
    """Return pynvml with its library loaded; raise `Unreadable`."""
    try:
        import pynvml
    except ImportError:
        raise Unreadable(MISSING) from None
    try:
        pynvml.nvmlInit()
    except _errors(pynvml) as error:
        raise Unreadable(f"NVML does not start: {error}") from error
    return pynvml


def _errors(pynvml: Any) -> tuple[type[Exception], ...]:
    """Return what pynvml raises: a library older than its header is an error apart."""
    mismatch = getattr(pynvml, "NVMLLibraryMismatchError", None)
    return (pynvml.NVMLError, *([mismatch] if mismatch is not None else []))
