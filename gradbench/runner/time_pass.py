"""The time pass, inside its process: one block, its modes interleaved."""

import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..devices import Device, Unreadable
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..records.measurements import BATCH_GIVEN, Fact, Measurement, Outcome
from ..workloads.arms import samples_given
from ..workloads.generation import provide
from ..workloads.models import Model
from ..workloads.state import RandomNumbers
from . import host_system, ranks
from .attempts import (
    Message,
    Refusal,
    Stopwatch,
    Trying,
    Unfinished,
    guarded,
    settle,
    skip,
)
from .compilation import NOTHING_COMPILED, nothing_cached
from .cuda_clocks import Figure, read_clocks
from .host_noise import HostNoise
from .interleave import Interleaving, Rounds, Warmth, warm_up
from .memory_guard import MemoryGuard
from .meters import METERS, StepTime
from .output_difference import NAME as OUTPUT_DIFFERENCE, output_differences
from .process_settings import ProcessSettings
from .timing_rules import LONG_STEP_NS, calibrate
from .visits import VisitedArm, losing, share_numbers, start

COMPILE_TIME = "compile_time"
CLOCKS = ("host_time", "device_time", "energy")
OF_ONE_ALONE = Refusal("unreadable", "it is read of a process that waits for no others")
STREAM_S = 2.0  # between two sendings of what there is
FAULT_STEPS = 10
LATENCY_SHARE = 0.2  # of a block's budget
NEVER = 1e-12  # a precision that is not reached: single calls are counted out by the budget


def time_block(
    cells: Sequence[Cell], model: Model, plan: Plan, wanted: Collection[str]
) -> Iterator[Message]:
    """Yield the interleaved times of a block's cells: of batches, and of single calls."""
    with nothing_cached(cells):
        yield from _time_block(cells, model, plan, wanted)


def _time_block(
    cells: Sequence[Cell], model: Model, plan: Plan, wanted: Collection[str]
) -> Iterator[Message]:
    watch, device = Stopwatch(), settle(cells[0])
    ends_ns = ranks.largest("begins", time.perf_counter_ns()) + plan.limit_s * 1e9
    flush = device.l2_flusher(cells[0].l2)  # its buffer first: it's the model that may not fit
    begun = start(cells[0], model, device, plan)
    yield watch.lap("build")
    if isinstance(begun, Refusal):
        yield from (skip(cell, name, begun) for cell in cells for name in wanted)
        return
    arms: list[VisitedArm] = []
    for cell in cells:
        yield Trying(cell)
        arm = begun.first_steps(cell)
        if isinstance(arm, VisitedArm):
            arms.append(arm)
        else:
            yield from (skip(cell, name, arm) for name in wanted)
    numbers = share_numbers(arms, begun)
    if "step_time" in wanted:
        _note_samples(arms, model)
    if OUTPUT_DIFFERENCE in wanted:
        yield from output_differences(arms, device)
        wanted = [name for name in wanted if name != OUTPUT_DIFFERENCE]
    if not wanted:
        return
    clock = StepTime.of(device, flush=flush)
    yield from _Timing(
        arms=arms,
        numbers=numbers,
        clock=clock,
        device=device,
        plan=plan,
        rng=random.Random(f"{plan.seed} {cells[0].block}"),
        ends_ns=ends_ns,
        watch=watch,
    ).read(wanted)


def _note_samples(arms: Sequence[VisitedArm], model: Model) -> None:
    """Note how many samples a batch has that does not have the size that was asked for."""
    given = samples_given(arms[0].cell, model, arms[0].arm.subject.given) if arms else None
    if given is not None:
        for arm in arms:
            arm.notes[BATCH_GIVEN] = given


@dataclass(slots=True, kw_only=True)
class _Timing:
    """Times a block's arms; one that raises is left out from there on, and the others go on."""

    arms: list[VisitedArm]
    numbers: RandomNumbers
    clock: StepTime
    device: Device
    plan: Plan
    rng: random.Random
    ends_ns: float  # when the process is killed
    watch: Stopwatch
    warmth: Warmth = field(init=False)

    def read(self, wanted: Collection[str]) -> Iterator[Message]:
        """Yield what the meters of the pass read."""
        guard = MemoryGuard(self.device.memories())
        for arm in self.arms:
            arm.after = partial(guard.visited, str(arm.cell))
        self.warmth = warm_up(
            self.arms,
            self.clock,
            plan=self.plan,
            rng=self.rng,
            lost=losing(self.arms, self.device, "while it warmed up"),
        )
        if COMPILE_TIME in wanted:
            yield from self._compile_times()
        yield from self._without_lost(wanted)
        yield self.watch.lap("warm-up")
        if not self.arms:
            return
        yield from self._clocks(wanted)
        if "step_time" in wanted:
            for arm in self.arms:
                arm.notes |= {
                    "warmup_rounds": self.warmth.rounds,
                    "warmup_steady": self.warmth.steady,
                }
            yield from self._step_times()
            yield from self._without_lost(["latency"] if "latency" in wanted else [])
        yield self.watch.lap("timing")
        if "latency" in wanted and self.arms:
            yield from self._latencies()
            yield self.watch.lap("latency")

    def _compile_times(self) -> Iterator[Message]:
        """Yield what each mode's first step took more than its others, and what was compiled."""
        first = True
        for arm, typical_ns in zip(self.arms, self.warmth.typical_ns, strict=True):
            if arm.failed is not None:
                continue
            if arm.cell.compile == "off":
                yield skip(arm.cell, COMPILE_TIME, Refusal("not_applicable", NOTHING_COMPILED))
                continue
            more_ns = max(0, round(arm.first_ns - typical_ns))  # 0: no longer than the others
            notes = arm.compilations.notes(first=first)
            first = first and not arm.compilations.functions
            yield _timed(arm, COMPILE_TIME, [more_ns], [1], notes)

    def _without_lost(self, wanted: Collection[str]) -> Iterator[Message]:
        """Leave out the arms that have raised, and give their meters that reason."""
        for arm in self.arms:
            if arm.failed is not None:
                yield from (skip(arm.cell, name, arm.failed) for name in wanted)
        self.arms = [arm for arm in self.arms if arm.failed is None]

    def _clocks(self, wanted: Collection[str]) -> Iterator[Message]:
        """Yield the split of host and device; where a step raises there, the rounds go on."""
        read = partial(
            read_clocks,
            self.arms,
            self.device,
            wanted,
            flush=self.clock.flush,
            iterations=calibrate(self._typical_ns(), self.clock.batch_ns),
            step_ns=self._typical_ns(),
            plan=self.plan,
            rng=self.rng,
        )
        alone = ranks.here() is None
        splits = guarded(read, self.device) if alone else OF_ONE_ALONE
        if isinstance(splits, Refusal):
            for arm in self.arms:
                yield from (skip(arm.cell, name, splits) for name in CLOCKS if name in wanted)
            return
        for arm, split in zip(self.arms, splits, strict=True):
            arm.notes |= split.notes
            yield from _further(arm, split.figures)

    def _step_times(self) -> Iterator[Message]:
        """Yield each arm's batches, and on the way what there is of them."""
        monitor = self.device.monitor()

        def between() -> None:
            monitor.sample()
            self.numbers.mark()  # the round's: every arm draws these

        rounds = Interleaving(
            self.arms,
            self.clock,
            plan=self.plan,
            rng=self.rng,
            warmth=self.warmth,
            between=between,
            lost=losing(self.arms, self.device, "in its timed rounds"),
            deadline_ns=self._deadline_ns(0.8),
        )
        before = ProcessSettings.now()
        with HostNoise() as noise:
            for _ in rarely(rounds):
                yield from self._unfinished("step_time", rounds.so_far())
        made = rounds.so_far()
        changes = before.notes(ProcessSettings.now(), who="steps_set")
        notes = {**changes, **noise.notes(len(self.arms) * len(made.iterations)), **monitor.notes()}
        for arm, values in zip(self.arms, made.batch_ns, strict=True):
            if arm.failed is not None:
                yield skip(arm.cell, "step_time", arm.failed)
                continue
            yield _timed(
                arm,
                "step_time",
                values,
                made.iterations,
                {
                    "stopped_by": made.stopped,
                    "half_width": round(made.precision, 6),
                    **self._faults(arm),
                    **notes,
                    **arm.notes,
                },
            )

    def _latencies(self) -> Iterator[Message]:
        """Yield each arm's single calls, interleaved: as many as a share of the budget holds."""
        single = replace(
            self.plan,
            budget_s=self.plan.budget_s * LATENCY_SHARE,
            precision_short=NEVER,
            precision_long=NEVER,
        )
        rounds = Interleaving(
            self.arms,
            replace(self.clock, batch_ns=0),
            plan=single,
            rng=self.rng,
            warmth=self.warmth,
            between=self.numbers.mark,
            lost=losing(self.arms, self.device, "in its timed rounds"),
            deadline_ns=self._deadline_ns(0.95),
        )
        for _ in rarely(rounds):
            yield from self._unfinished("latency", rounds.so_far())
        made = rounds.so_far()
        for arm, values in zip(self.arms, made.batch_ns, strict=True):
            if arm.failed is not None:
                yield skip(arm.cell, "latency", arm.failed)
            else:
                yield _timed(arm, "latency", values, made.iterations, {})

    def _unfinished(self, meter: str, rounds: Rounds) -> Iterator[Message]:
        """Yield what there is of a meter, should the process be killed in its next round."""
        for arm, values in zip(self.arms, rounds.batch_ns, strict=True):
            if arm.failed is None:
                notes = {"stopped_by": "limit"} | arm.notes
                yield Unfinished(_timed(arm, meter, values, rounds.iterations, notes))

    def _typical_ns(self) -> float:
        return min(self.warmth.typical_ns)

    def _deadline_ns(self, share: float) -> float:
        """Return when rounds must be over that may use the process's time up to a share of it."""
        return self.ends_ns - (1 - share) * self.plan.limit_s * 1e9

    def _faults(self, arm: VisitedArm) -> dict[str, Fact]:
        if not self.device.tensors_from_malloc:
            return {}
        count = 1 if self._typical_ns() >= LONG_STEP_NS else FAULT_STEPS
        faults = guarded(partial(minor_faults, arm, count), self.device)
        return {} if isinstance(faults, Refusal) else {"minor_faults_per_step": faults}


def rarely(rounds: Interleaving) -> Iterator[None]:
    """Make the rounds; yield now and then in between."""
    last = time.monotonic()
    for _ in rounds:
        if time.monotonic() - last >= STREAM_S:
            yield
            last = time.monotonic()


def _further(arm: VisitedArm, figures: Mapping[str, Figure]) -> Iterator[Outcome]:
    for name, figure in figures.items():
        if isinstance(figure, Unreadable):
            yield skip(arm.cell, name, Refusal("unreadable", str(figure)))
        else:
            yield _timed(arm, name, figure.values, figure.iterations, figure.notes)


def _timed(
    arm: VisitedArm,
    name: str,
    values: Sequence[int],
    iterations: Sequence[int],
    notes: Mapping[str, Fact],
) -> Measurement:
    alike = len(set(iterations)) == 1
    return Measurement(
        cell=arm.cell,
        meter=name,
        unit=METERS[name].unit,
        values=tuple(values),
        iterations=iterations[0] if alike else tuple(iterations),
        exact=METERS[name].exact,
        notes=dict(notes),
    )


def minor_faults(arm: VisitedArm, count: int) -> float | str:
    """Return page faults served without a disk per step, or why not; timing wants none."""
    with arm.held():
        if count > 1:
            arm.step()
        provide(arm.step, count)
        before = host_system.page_faults()
        for _ in range(count):
            arm.step()
        after = host_system.page_faults()
    if before is None or after is None:
        return "unknown: this system does not count them apart"
    return (after - before) / count
