"""Where a step's time goes: the host's part, the device's part, and its energy, arms in turn."""

import math
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from ..devices import Device, DeviceClock, HostClock, Unreadable, nothing
from ..experiment.plan import FEWEST_ROUNDS, Plan
from ..records.measurements import Fact
from ..workloads.generation import provide
from .interleave import Arm
from .timing_rules import collector_resting

ROUNDS: Final = 50
BUDGET_S: Final = 1.0  # of host and device rounds together

SLACK_NS: Final = 100_000  # what a held stream waits beyond the time that enqueueing took before
LONGEST_HOLD_NS: Final = 1_000_000_000  # displays hang when a kernel runs for seconds
TRIES: Final = 3  # at holding back, each for twice as long: the host may be preempted

ENERGY_ROUNDS: Final = 3
ENERGY_WINDOW_S: Final = 0.25  # at least; the counter ticks every 20 to 100 ms
ENERGY_CHUNK_NS: Final = 5_000_000  # of work between two looks at the counter
STILL_S: Final = 2.0  # a counter that has not moved for so long does not count

NEVER_HELD: Final = (
    "not even one step could be enqueued while the stream was held back: "
    "it waits for the device itself, or launches more than the queue takes"
)
INTERRUPTED: Final = "the host was kept from enqueueing in time in every round: free the machine"
COLD_ENERGY: Final = "overwriting the L2 before each step would count with it: l2=hot"


@dataclass(frozen=True, slots=True)
class Reading:
    """Raw rounds: ``values[round]`` over ``iterations[round]`` steps, in the meter's unit."""

    values: list[int]
    iterations: list[int]
    notes: Mapping[str, Fact] = field(default_factory=dict)

    def per_step(self) -> float:
        """Return the median of a step."""
        pairs = zip(self.values, self.iterations, strict=True)
        return statistics.median(value / steps for value, steps in pairs)


Figure = Reading | Unreadable


@dataclass(frozen=True, slots=True)
class Split:
    """What one arm's clocks said: a figure a meter, and what follows for its step time."""

    figures: Mapping[str, Figure]
    notes: Mapping[str, Fact]


def read_clocks(
    arms: Sequence[Arm],
    device: Device,
    wanted: Collection[str],
    *,
    flush: Callable[[], object],
    iterations: int,
    step_ns: float,
    plan: Plan,
    rng: random.Random,
) -> list[Split]:
    """Return each arm's ``host_time``, ``device_time`` and ``energy``, as far as wanted.

    ``flush`` is called before each timed batch of at most ``iterations`` steps; a cold cache
    means one step. The note ``bound`` is "host" or "device", whichever takes longer over a step
    and so decides its time end to end; there is none where host and device do not part.
    """
    figures: dict[str, list[Figure]] = {}
    bounds: list[dict[str, Fact]] = [{} for _ in arms]
    if {"step_time", "host_time", "device_time"} & set(wanted):
        host, on_device = _host_and_device(
            arms, device, flush=flush, iterations=iterations, rng=rng
        )
        figures |= {"host_time": host, "device_time": on_device}
        bounds = list(map(_bound, host, on_device))
    if "energy" in wanted and flush is not nothing:
        figures["energy"] = [Unreadable(COLD_ENERGY) for _ in arms]
    elif "energy" in wanted:
        figures["energy"] = _energies(arms, device, step_ns=step_ns, plan=plan, rng=rng)
    return [
        Split({name: row[index] for name, row in figures.items() if name in wanted}, bound)
        for index, bound in enumerate(bounds)
    ]


def _bound(host: Figure, device: Figure) -> dict[str, Fact]:
    match host, device:
        case Reading(), Reading():
            return {"bound": "host" if host.per_step() >= device.per_step() else "device"}
        case Reading(), Unreadable():
            return {"bound": f"unknown: {device}"}
    return {}


def _host_and_device(
    arms: Sequence[Arm],
    device: Device,
    *,
    flush: Callable[[], object],
    iterations: int,
    rng: random.Random,
) -> tuple[list[Figure], list[Figure]]:
    """Return each arm's host time and each arm's device time."""
    try:
        host = device.host_clock()
    except Unreadable as reason:
        return [reason for _ in arms], [reason for _ in arms]
    with collector_resting():
        try:
            clocks = _Clocks(host, device.device_clock(), flush)
        except Unreadable as reason:
            # How many steps the queue takes is not known then; one step mostly fits.
            rows = _rounds(arms, _Clocks(host, None, flush), 1, [False for _ in arms], rng)
            return [_figure(values, 1) for values in rows[0]], [reason for _ in arms]
        most = [clocks.most(arm, iterations) for arm in arms]
        steps = min((count for count in most if count), default=1)
        rows = _rounds(arms, clocks, steps, [count > 0 for count in most], rng)
    return (
        [
            _figure(values, steps, {} if count else {"waits_for_device": True})
            for values, count in zip(rows[0], most, strict=True)
        ],
        [
            Unreadable(NEVER_HELD)
            if not count
            else _figure(values, steps)
            if values
            else Unreadable(INTERRUPTED)
            for values, count in zip(rows[1], most, strict=True)
        ],
    )


@dataclass(frozen=True, slots=True)
class _Clocks:
    """The two clocks, each behind a flush of the cache."""

    host: HostClock
    device: DeviceClock | None
    flush: Callable[[], object]

    def host_ns(self, arm: Arm, steps: int) -> int:
        provide(arm.step, steps)
        self.flush()
        return self.host.read(arm.step, steps)

    def device_ns(self, arm: Arm, steps: int, host_ns: int) -> int | None:
        """Return None when the stream could not be held back until all steps were enqueued."""
        assert self.device is not None
        for attempt in range(TRIES):
            hold_ns = min((2 << attempt) * host_ns + SLACK_NS, LONGEST_HOLD_NS)
            provide(arm.step, steps)
            self.flush()
            read = self.device.read(arm.step, steps, hold_ns=hold_ns)
            if read is not None:
                return read
        return None

    def most(self, arm: Arm, steps: int) -> int:
        """Return how many steps, halving from ``steps``, fit into the launch queue; 0 for none.

        The queue takes about a thousand launches and then makes the host wait. That shows in
        that the steps are not enqueued before the held stream goes on.
        """
        with arm.held():
            arm.step()
            if self.device_ns(arm, 1, self.host_ns(arm, 1)) is None:
                return 0
            while steps > 1 and self.device_ns(arm, steps, self.host_ns(arm, steps)) is None:
                steps //= 2
        return steps


def _rounds(
    arms: Sequence[Arm],
    clocks: _Clocks,
    steps: int,
    holdable: Sequence[bool],
    rng: random.Random,
) -> tuple[list[list[int]], list[list[int]]]:
    """Return host times and device times, ``[arm][round]``, read in turn within each visit.

    A round in which the device clock failed on one arm has no device times at all, for equal
    rounds are pairs; arms that are not ``holdable`` have none in any.
    """
    host_ns: list[list[int]] = [[] for _ in arms]
    device_ns: list[list[int]] = [[] for _ in arms]
    order = list(range(len(arms)))
    start_s = time.perf_counter()
    for count in range(ROUNDS):
        if count >= FEWEST_ROUNDS and time.perf_counter() - start_s >= BUDGET_S:
            break
        rng.shuffle(order)
        row: dict[int, int | None] = {}
        for index in order:
            arm = arms[index]
            with arm.held():
                arm.step()
                host_ns[index].append(clocks.host_ns(arm, steps))
                if holdable[index]:
                    row[index] = clocks.device_ns(arm, steps, host_ns[index][-1])
        if None not in row.values():
            for index, value in row.items():
                assert value is not None
                device_ns[index].append(value)
    return host_ns, device_ns


def _figure(values: list[int], steps: int, notes: Mapping[str, Fact] | None = None) -> Reading:
    return Reading(values, [steps] * len(values), notes or {})


def _energies(
    arms: Sequence[Arm],
    device: Device,
    *,
    step_ns: float,
    plan: Plan,
    rng: random.Random,
) -> list[Figure]:
    """Return each arm's energy: one window each at least, more while half the budget lasts."""
    try:
        counter = device.energy_counter()
        chunk = max(1, math.ceil(ENERGY_CHUNK_NS / max(step_ns, 1.0)))
        energies: list[list[tuple[int, int]]] = [[] for _ in arms]
        order = list(range(len(arms)))
        start_s = time.perf_counter()
        with collector_resting():
            for count in range(ENERGY_ROUNDS):
                if count and time.perf_counter() - start_s >= plan.budget_s / 2:
                    break
                rng.shuffle(order)
                for index in order:
                    arm = arms[index]
                    with arm.held():
                        run = partial(_steps, arm, chunk, device.synchronize)
                        energy_uj, chunks = _energy_window(run, counter)
                        energies[index].append((energy_uj, chunks * chunk))
    except Unreadable as reason:
        return [reason for _ in arms]
    return [
        Reading([energy for energy, _ in rounds], [steps for _, steps in rounds])
        for rounds in energies
    ]


def _steps(arm: Arm, count: int, synchronize: Callable[[], None]) -> None:
    provide(arm.step, count)
    for _ in range(count):
        arm.step()
    synchronize()


def _energy_window(
    run: Callable[[], None],
    counter: Callable[[], int],
    clock_s: Callable[[], float] = time.perf_counter,
) -> tuple[int, int]:
    """Return the energy in uJ and how often ``run`` ran, between two ticks of the counter.

    The counter stands still between its updates, so a window that began and ended anywhere
    would be wrong by up to an update at each end. Raise `Unreadable` when it never moves.
    """

    def tick(last: int, not_before_s: float) -> tuple[int, int]:
        """Run until the counter has moved on from its value at that time; count the runs."""
        runs, give_up_s = 0, not_before_s + STILL_S
        while True:
            run()
            runs += 1
            now, now_s = counter(), clock_s()
            if now != last and now_s >= not_before_s:
                return now, runs
            if now_s >= give_up_s:
                raise Unreadable(f"the energy counter stood still for {STILL_S:g} s of steps")
            last = now

    first, _ = tick(counter(), clock_s())
    last, runs = tick(first, clock_s() + ENERGY_WINDOW_S)
    return last - first, runs
