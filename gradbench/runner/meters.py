"""The instruments: what each reads, in which unit, and in which kind of process."""

import itertools
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from ..devices import Device, Unreadable, Window, nothing
from ..records.measurements import Unit
from ..workloads.generation import provide
from ..workloads.steps import Step
from . import host_system, ranks


@dataclass(frozen=True, slots=True)
class Meter:
    """A figure's name and unit, the pass that reads it, and whether it repeats to the byte."""

    name: str
    unit: Unit
    read_in: str  # the name of a pass
    exact: bool
    about: str
    default: bool = True  # is it read when nobody names meters?
    workloads: tuple[str, ...] = ()  # that it is about; () for all

    def about_workload(self, workload: str) -> bool:
        """Return whether there is anything to read of a workload's cells."""
        return not self.workloads or workload in self.workloads


METERS: Final[Mapping[str, Meter]] = {
    meter.name: meter
    for meter in (
        Meter("step_time", "ns", "time", False, "wall time of one step, from interleaved rounds"),
        Meter("latency", "ns", "time", False, "wall time of single calls, for its percentiles"),
        Meter(
            "compile_time",
            "ns",
            "time",
            False,
            "the first step less the typical one, where torch.compile is asked; its cache is empty",
        ),
        Meter(
            "host_time",
            "ns",
            "time",
            False,
            "the host's part of a step: time to enqueue it, nothing waited for (CUDA)",
        ),
        Meter(
            "device_time",
            "ns",
            "time",
            False,
            "the device's part of a step: CUDA events around work that was enqueued before",
        ),
        Meter(
            "output_difference",
            "ppt",
            "time",
            True,
            "how far the output lies from global_on's at most, relative, in parts per trillion; "
            "0 when they are equal to the bit",
        ),
        Meter("energy", "uJ", "time", False, "what the whole board used for one step (NVML)"),
        Meter(
            "peak_allocated",
            "bytes",
            "memory",
            True,
            "most bytes that tensors held at once during a step, what was there before included",
        ),
        Meter(
            "peak_requested",
            "bytes",
            "memory",
            True,
            "most bytes that tensors asked for at once, without rounding and workspaces (CUDA): "
            "what peak_allocated is on the CPU",
        ),
        Meter(
            "peak_transient",
            "bytes",
            "memory",
            True,
            "the part of peak_allocated that the step added to what was there before it",
        ),
        Meter(
            "peak_reserved",
            "bytes",
            "memory",
            False,
            "most bytes that the caching allocator had taken from the driver (CUDA)",
        ),
        Meter(
            "first_peak_allocated",
            "bytes",
            "memory",
            True,
            "peak_allocated of the very first step, which makes optimizer state and workspaces",
        ),
        Meter(
            "breakdown",
            "bytes",
            "memory",
            True,
            "what the peak is made of, the way there, and which modules had tensors saved",
        ),
        Meter(
            "predicted_peak",
            "bytes",
            "prediction",
            True,
            "peak_requested (on the CPU peak_allocated) as predicted by a step on fake tensors, "
            "without the memory",
        ),
        Meter(
            "leaked",
            "bytes",
            "memory",
            True,
            "bytes that every step leaves behind, gradients put away; a note names who made them",
        ),
        Meter(
            "kept_after_first",
            "bytes",
            "memory",
            True,
            "bytes alive after the second step and not before the first, gradients and optimizer "
            "state left out: caches, and twice what is leaked; a note names them",
        ),
        Meter(
            "left_by_evaluation",
            "bytes",
            "evaluation",
            True,
            "bytes that the first evaluation of evaluate_then_train makes and leaves in the model; "
            "a note names them, and what has other contents",
            workloads=("evaluate_then_train",),
        ),
        Meter(
            "fragmentation",
            "bytes",
            "memory",
            False,
            "peak_reserved less peak_allocated: taken from the driver and in no tensor (CUDA)",
        ),
        Meter(
            "saved_for_backward",
            "bytes",
            "memory",
            True,
            "bytes that autograd kept for backward, beyond parameters, buffers and the batch",
        ),
        Meter(
            "peak_rss",
            "bytes",
            "process",
            False,
            "the kernel's high-water mark of the process's resident memory (VmHWM)",
        ),
        Meter(
            "device_process",
            "bytes",
            "process",
            False,
            "what the driver says this process holds on the device, context included (NVML)",
        ),
        Meter(
            "instructions",
            "instructions",
            "instructions",
            True,
            "instructions that the host runs for one step, counted by valgrind's callgrind",
            default=False,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class StepTime:
    """The clock around a batch of steps."""

    synchronize: Callable[[], None]
    clock_ns: Callable[[], int]
    flush: Callable[[], object] = nothing  # keeps the batch from what the last one left in caches
    batch_ns: int = 0  # how long a batch should last; 0: one step

    @classmethod
    def of(cls, device: Device, *, flush: Callable[[], object] = nothing) -> Self:
        """Return the device's clock; where a cache is flushed, a batch is the one step after it."""
        batch_ns = device.batch_ns if flush is nothing else 0
        return cls(device.synchronize, time.perf_counter_ns, flush, batch_ns)

    def read(self, step: Step, iterations: int) -> int:
        """Return the nanoseconds that ``iterations`` steps took, their device work included.

        Ranks begin together, and each returns what the slowest took. What the loop itself costs a
        step and a batch, ``gradbench selfcheck`` prints.
        """
        repeats = itertools.repeat(None, iterations)
        synchronize, clock_ns = self.synchronize, self.clock_ns
        provide(step, iterations)
        self.flush()
        synchronize()
        ranks.agree("a batch begins")
        start_ns = clock_ns()
        for _ in repeats:
            step()
        synchronize()
        elapsed_ns = clock_ns() - start_ns
        return ranks.largest("a batch ends", elapsed_ns)

    def now_ns(self) -> int:
        """Return what the clock shows; of ranks, the latest: they decide by it to go on or stop."""
        return ranks.largest("what time it is", self.clock_ns())


def allocator_figures(window: Window, *, workspaces: int = 0) -> dict[str, int | Unreadable]:
    """Return the figures that one window of a ledger holds, by meter.

    ``workspaces`` are the bytes that libraries had asked for and kept all the time.
    """
    return {
        "peak_allocated": window.peak_bytes,
        "peak_requested": window.requested
        if isinstance(window.requested, Unreadable)
        else window.requested.peak_bytes - workspaces,
        "peak_transient": window.peak_bytes - window.before_bytes,
        "peak_reserved": window.reserved_bytes,
        "fragmentation": window.reserved_bytes
        if isinstance(window.reserved_bytes, Unreadable)
        else window.reserved_bytes - window.peak_bytes,
    }


def peak_rss(step: Step, *, steps: int, process: Path = Path("/proc/self")) -> tuple[int, str]:
    """Return the process's resident high-water mark over some steps, and what it is.

    Polling would miss short peaks, so the source is the kernel's own mark, ``VmHWM``, reset
    before the steps (proc(5): ``clear_refs``, value 5); then the words are empty. Where it cannot
    be reset they name the bias. Raise `Unreadable` where the kernel has no mark at all.
    """
    if not host_system.here().resets_peak:
        for _ in range(steps):
            step()
        return _peak_since_start()
    bias = ""
    try:
        (process / "clear_refs").write_text("5")
    except OSError as error:
        bias = f"VmHWM could not be reset ({error.strerror}): building the model counts too"
    for _ in range(steps):
        step()
    try:
        status = (process / "status").read_text("utf-8")
    except OSError as error:
        status = f"{error}"
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if match is not None:
        return int(match[1]) * 1024, bias
    if not bias:
        raise Unreadable("the kernel reports no VmHWM")
    return _peak_since_start()


def _peak_since_start() -> tuple[int, str]:
    peak = host_system.peak_resident()
    if peak is None:
        raise Unreadable("this system does not say how much was resident at most")
    return peak, (
        "ru_maxrss of the whole process, imports and building of the model included; "
        "it is inherited: a parent's higher peak would hide this one"
    )
