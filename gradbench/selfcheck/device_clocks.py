"""What an accelerator's clocks and sensors are held against: kernels and delays of known length."""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch

from ..devices import Device, DeviceClock, Unreadable, nothing
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..records.measurements import Fact
from ..records.selfcheck import Check
from ..runner.cuda_clocks import Figure, Reading, read_clocks
from ..runner.meters import StepTime
from ..stats import estimates
from ..workloads.arms import CellArm, build, make_arm
from ..workloads.models import MODELS
from ..workloads.steps import Step

MS: Final = 1_000_000  # ns
SHORT_NS, LONG_NS = 5 * MS, 45 * MS  # kernels from whose difference the length of a tick is known
REPEATS: Final = 15
STEPS: Final = 10
KERNEL_NS: Final = MS
DELAY_NS: Final = 200_000
STEPS_INJECTED: Final = 2  # a batch that ends before the scheduler's slice does
INJECTED: Final = 5  # kernels
INJECTED_NS: Final = 200_000  # each
HOST_ROUNDS: Final = 15
HOLDS: Final = 3
ENERGY_S: Final = 0.5
HELD_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class KnownKernel:
    """A kernel whose length is known from the host's clock, to which it is end to end."""

    launch: Callable[[int], object]
    ticks_per_ns: float

    @classmethod
    def of(cls, device: Device) -> "KnownKernel":
        """Time a short kernel and a long one, end to end; what both pay beside it cancels.

        The shortest of several: whatever else happens on the machine only adds.
        """
        launch, clock = device.spinner(), StepTime.of(device)
        ticks = 1_000_000
        clock.read(partial(launch, ticks), 1)  # the first loads it
        ticks_per_ns = ticks / clock.read(partial(launch, ticks), 1)
        lengths = [round(ns * ticks_per_ns) for ns in (SHORT_NS, LONG_NS)]
        taken: list[list[int]] = [[], []]
        for _ in range(REPEATS):
            for ticks, times in zip(lengths, taken, strict=True):
                times.append(clock.read(partial(launch, ticks), 1))
        short, long = map(min, taken)
        return cls(launch, (lengths[1] - lengths[0]) / (long - short))

    def lasting(self, ns: float) -> Step:
        """Return what enqueues one of so many ns."""
        return partial(self.launch, round(ns * self.ticks_per_ns))


@dataclass(slots=True)
class HostWork:
    """A step with a delay of the host behind it, which keeps count of what the host did."""

    step: Step
    delay_ns: int
    done_ns: int = 0
    clock_ns: Callable[[], int] = time.perf_counter_ns

    def __call__(self) -> None:
        """Do both."""
        start_ns = self.clock_ns()
        self.step()
        end_ns = self.clock_ns() + self.delay_ns
        while self.clock_ns() < end_ns:
            pass
        self.done_ns += self.clock_ns() - start_ns


@dataclass(frozen=True, slots=True)
class Injected:
    """An arm with something behind its step."""

    arm: CellArm
    more: Step

    def step(self) -> None:
        """Do both."""
        self.arm.step()
        self.more()

    def held(self) -> AbstractContextManager[object]:
        """Return the arm's own context."""
        return self.arm.held()


def known_lengths(device: Device) -> Iterator[Check]:
    """Time kernels of known length with each of the three clocks."""
    kernel = KnownKernel.of(device)
    step, truth_ns = kernel.lasting(KERNEL_NS), STEPS * KERNEL_NS
    what = f"{STEPS} kernels of {KERNEL_NS / 1e6:g} ms"
    yield _device_time(device, step, truth_ns, what)
    end_to_end = min(StepTime.of(device).read(step, STEPS) for _ in range(REPEATS))
    yield _off("end to end: kernels of known length", end_to_end / truth_ns, what, 0.02)
    host = device.host_clock()
    share = min(host.read(step, STEPS) for _ in range(REPEATS)) / truth_ns
    yield Check(
        "host clock: kernels are not waited for",
        share,
        "share",
        f"of {what}",
        "<= 10%",
        share <= 0.1,
    )
    yield _host_time(device, kernel)


def _device_time(device: Device, step: Step, truth_ns: int, what: str) -> Check:
    name = "device clock: kernels of known length"
    clock = device.device_clock()
    readings = [held for _ in range(REPEATS) if (held := _held(clock, step)) is not None]
    if not readings:
        return Check(name, None, "", "the device was never held back for long enough", passed=False)
    return _off(name, statistics.median(readings) / truth_ns, what, 0.005)


def _held(clock: DeviceClock, step: Step) -> int | None:
    readings = (clock.read(step, STEPS, hold_ns=(2 << i) * MS) for i in range(HOLDS))
    return next((read for read in readings if read is not None), None)


def _host_time(device: Device, kernel: KnownKernel) -> Check:
    clock, ratios = device.host_clock(), []
    for _ in range(HOST_ROUNDS):
        work = HostWork(kernel.lasting(DELAY_NS / 2), DELAY_NS)
        ratios.append(clock.read(work, STEPS) / work.done_ns)
    words = f"{STEPS} steps of {DELAY_NS / 1000:g} us and a launch, {HOST_ROUNDS} times"
    return _off("host clock: work of known length", statistics.median(ratios), words, 0.02)


def injections(device: Device) -> Iterator[Check]:
    """Add a delay of the host to a step, then kernels, and see which clock sees which."""
    kernel = KnownKernel.of(device)
    cell = Cell(
        model="mlp_tiny",
        workload="inference",
        grad_mode="no_grad",
        batch_size=8,
        device=device.name,
    )
    arm = make_arm(cell, build(cell, MODELS[cell.model], seed=0))
    one = kernel.lasting(INJECTED_NS)

    def kernels() -> None:
        for _ in range(INJECTED):
            one()

    arms = [
        Injected(arm, nothing),
        Injected(arm, HostWork(nothing, DELAY_NS)),
        Injected(arm, kernels),
    ]
    base, delayed, longer = (
        split.figures
        for split in read_clocks(
            arms,
            device,
            ("host_time", "device_time"),
            flush=nothing,
            iterations=STEPS_INJECTED,
            step_ns=0.0,  # of energy windows, and none is read
            plan=Plan(),
            rng=random.Random(0),
        )
    )
    host, on_device, kernels_ns = "host_time", "device_time", INJECTED * INJECTED_NS
    yield _grown("injected host delay: host clock", base[host], delayed[host], DELAY_NS, DELAY_NS)
    yield _grown(
        "injected host delay: device clock", base[on_device], delayed[on_device], 0, DELAY_NS
    )
    yield _grown(
        "injected kernels: device clock", base[on_device], longer[on_device], kernels_ns, kernels_ns
    )
    yield _launches("injected kernels: host clock", base[host], longer[host])


def _grown(name: str, base: Figure, more: Figure, expected_ns: int, injected_ns: int) -> Check:
    """Return how far a figure's growth is from what was expected, as a share of what was added."""
    for figure in (base, more):
        if isinstance(figure, Unreadable):
            return Check.unreadable(name, str(figure))
    assert isinstance(base, Reading)
    assert isinstance(more, Reading)
    grown_ns = more.per_step() - base.per_step()
    off = abs(grown_ns - expected_ns) / injected_ns
    words = f"{injected_ns / 1000:g} us added to a step: {grown_ns / 1000:+.2f} us on this clock"
    return Check(name, off, "share", words, "<= 5%", off <= 0.05)


def _launches(name: str, base: Figure, more: Figure) -> Check:
    """Return what more launches add to the host's time: its interval must lie above nothing."""
    for figure in (base, more):
        if isinstance(figure, Unreadable):
            return Check.unreadable(name, str(figure))
    assert isinstance(base, Reading)
    assert isinstance(more, Reading)
    ratio = estimates.paired_ratio(
        *(np.asarray(figure.values, dtype=np.float64) for figure in (more, base))
    )
    words = (
        f"{INJECTED} launches more a step: x {ratio.point:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"
    )
    return Check(name, ratio.point - 1, "share", words, "> 0%", ratio.low > 1)


def sensors(device: Device) -> Iterator[Check]:
    """Look at every sensor once, after work."""
    device.warm_up()
    monitor = device.monitor()
    monitor.sample()
    for name, fact in monitor.notes().items():
        yield _sensor(name, fact)
    yield _or_reason("energy counter moves with work", partial(_energy, device))
    yield _or_reason("the driver's bytes of this process", partial(_process_bytes, device))


def _sensor(name: str, fact: Fact) -> Check:
    title = f"sensor: {name}"
    if isinstance(fact, str):
        return Check.unreadable(title, fact)
    return Check(title, float(fact), "", "read once, after work", ">= 0", fact >= 0)


def _energy(device: Device) -> Check:
    read = device.energy_counter()
    begun_uj, start_s = read(), time.perf_counter()
    while time.perf_counter() - start_s < ENERGY_S:
        device.warm_up()
        device.synchronize()
    used_j = (read() - begun_uj) / 1e6
    watts = used_j / (time.perf_counter() - start_s)
    words = f"{used_j:.2f} J over {ENERGY_S:g} s of work"
    return Check("energy counter moves with work", watts, "W", words, "> 0 W", watts > 0)


def _process_bytes(device: Device) -> Check:
    before = device.process_bytes()
    block = torch.empty(HELD_BYTES, dtype=torch.uint8, device=device.place)
    device.synchronize()
    grown = device.process_bytes() - before
    del block
    return Check(
        "the driver's bytes of this process",
        float(grown),
        "bytes",
        f"more with a block of {HELD_BYTES:,} B, {before:,} B before",
        f">= {HELD_BYTES:,} B",
        grown >= HELD_BYTES,
    )


def _or_reason(name: str, ask: Callable[[], Check]) -> Check:
    try:
        return ask()
    except Unreadable as reason:
        return Check.unreadable(name, str(reason))


def _off(name: str, ratio: float, what: str, most: float) -> Check:
    off = abs(ratio - 1)
    words = f"{what}: x {ratio:.4f} of their length"
    return Check(name, off, "share", words, f"<= {most:.1%}", off <= most)
