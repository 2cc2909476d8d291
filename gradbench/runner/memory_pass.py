"""The memory passes, inside their processes: allocator peaks to the byte, and the process's own."""

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from ..devices import Device, Ledger, Span, Unreadable, Window
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..memory import leaks
from ..memory.predict import CannotTrain, Predictor, Unpredictable
from ..memory.saved_tensors import SavedTensors, paths
from ..memory.step_phases import Marks
from ..records.allocations import Mark, PeakBreakdown, attribute_peak
from ..records.measurements import Breakdown, Fact, Measurement, Reading
from ..workloads.arms import CellArm, steps
from ..workloads.models import Model
from ..workloads.steps import Subject
from . import meters
from .attempts import (
    TRIAL_STEPS,
    Message,
    Refusal,
    Stopwatch,
    Trying,
    attempt,
    guarded,
    refusal,
    settle,
    skip,
    try_to_arm,
    try_to_build,
)
from .meters import METERS

T = TypeVar("T")

OUTSIDE: Final = "(outside of the model)"
"""Where the loss has tensors saved."""

MODULES: Final = 10
"""Modules that a breakdown names."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure in its meter's unit, and what is to be noted with it."""

    value: int
    notes: Mapping[str, Fact] = field(default_factory=dict)


MeterResult = Figure | Breakdown | Unreadable


def memory_block(
    cells: Sequence[Cell], model: Model, plan: Plan, wanted: Collection[str]
) -> Iterator[Message]:
    """Yield the exact figures of a block's cells: peaks, what they are made of, what is saved."""
    watch, device = Stopwatch(), settle(cells[0])
    measured = [name for name in wanted if name != "predicted_peak"]
    if measured:
        yield from _measured(cells, model, device, measured, seed=plan.seed, watch=watch)
    if "predicted_peak" in wanted:
        predictor = Predictor(cells[0].device)
        for cell in cells:
            yield _outcome(cell, "predicted_peak", _predicted(predictor, cell, model, plan))
        yield watch.lap("predictions")


def _measured(
    cells: Sequence[Cell],
    model: Model,
    device: Device,
    wanted: Collection[str],
    *,
    seed: int,
    watch: Stopwatch,
) -> Iterator[Message]:
    try:
        ledger = device.ledger()
    except Unreadable as reason:
        for cell in cells:
            for name in wanted:
                yield skip(cell, name, Refusal("unreadable", str(reason)))
        return
    subject, built = ledger.observe(partial(try_to_build, cells[0], model, device, seed=seed))
    at_rest = built.after_bytes
    yield watch.lap("build")
    if not isinstance(subject, Subject):
        yield from (skip(cell, name, subject) for cell in cells for name in wanted)
        return
    for cell in cells:
        yield Trying(cell)
        reader = _Reader(cell, subject, ledger, device)
        results = reader.read()
        after = reader.close()
        if not isinstance(results, Refusal):
            results["leaked"] = _left(results["leaked"], after - at_rest)
        at_rest = after
        for name in wanted:
            yield _outcome(cell, name, results if isinstance(results, Refusal) else results[name])
    yield watch.lap("memory passes")


class _Reader:
    """Reads one cell, every allocation of which is on the ledger."""

    def __init__(self, cell: Cell, shared: Subject, ledger: Ledger, device: Device) -> None:
        self._cell, self._ledger, self._device = cell, ledger, device
        self._marks = Marks(address=lambda tensor: tensor.untyped_storage().data_ptr())
        self._subject = self._marks.around(shared)
        self._arm: CellArm | Refusal | None
        self._arm, _ = ledger.observe(partial(try_to_arm, cell, self._subject, device))

    def read(self) -> dict[str, MeterResult] | Refusal:
        """Return what every meter of the pass reads, or why the cell cannot run.

        The first step is traced, then one from a warm state; saved tensors are recorded in a
        step of their own, for they are held. What is live after each, gradients put away, says
        whether something is left every time.
        """
        arm = self._arm
        if not isinstance(arm, CellArm):
            assert arm is not None  # it was not let go of
            return arm
        self._at_rest()
        self._device.forget()
        try_once = partial(attempt, arm, self._device, 1)
        refused, first_window, first = self._attributed(try_once)
        live = [self._at_rest()]
        if refused is None:
            for _ in range(TRIAL_STEPS - 1):
                refused, _ = self._ledger.observe(try_once)
                live.append(self._at_rest())
        if refused is not None:
            return refused
        _, window, warm = self._attributed(partial(steps, arm, 1))
        live.append(self._at_rest())
        saved, _ = self._ledger.observe(partial(self._saved, arm))
        live.append(self._at_rest())
        leaked = self._leaked(arm, live[1:])
        workspaces = self._workspaces()
        figures = meters.allocator_figures(window, workspaces=workspaces)
        notes = _notes(window, workspaces)
        return {
            **{
                name: figure if isinstance(figure, Unreadable) else Figure(figure, notes)
                for name, figure in figures.items()
            },
            "first_peak_allocated": Figure(first_window.peak_bytes, _notes(first_window, 0)),
            "breakdown": self._breakdown(first, warm, window.rounding_bytes, saved),
            "saved_for_backward": Figure(saved.nbytes)
            if isinstance(saved, SavedTensors)
            else saved,
            "leaked": leaked,
        }

    def close(self) -> int:
        """Let go of the arm, its optimizer and what libraries keep; return what is live then."""

        def let_go() -> None:
            self._arm = None
            self._marks.optimizers.clear()
            gc.collect()  # optimizers are held by cycles
            self._device.forget()

        _, window = self._ledger.observe(let_go)
        return window.after_bytes

    def _at_rest(self) -> int:
        """Put gradients away; return what is live then."""
        _, window = self._ledger.observe(self._subject.clear_gradients)
        return window.after_bytes

    def _workspaces(self) -> int:
        """Let go of what libraries keep between steps; return the bytes that they asked for."""
        _, window = self._ledger.observe(self._device.forget)
        asked: Span = window.requested if isinstance(window.requested, Span) else window
        return asked.before_bytes - asked.after_bytes

    def _attributed(
        self, function: Callable[[], T]
    ) -> tuple[T, Window, PeakBreakdown | Unreadable]:
        """Run a function; return its window, and what its peak was made of where that adds up."""
        resident = self._marks.resident(self._subject)

        def marked(mark: Callable[[Mark], None]) -> T:
            with self._marks.telling(mark, self._subject.parameters()):
                return function()

        result, window, traced = self._ledger.trace(marked)
        entries = traced.entries(self._device.place)
        try:
            window.check(entries)
        except Unreadable as reason:
            return result, window, reason
        before_bytes = window.before_bytes
        parts = attribute_peak(entries, resident=resident, before_bytes=before_bytes)
        return result, window, parts

    def _saved(self, arm: CellArm) -> SavedTensors | Unreadable:
        recorder = SavedTensors(
            modules=paths(*self._subject.parts()), apart=self._subject.resident()
        )
        try:
            with arm.held(), recorder:
                arm.step()
        except Exception as error:  # noqa: BLE001 # hooks meet any code, compiled graphs included
            cause, words = refusal(error, self._device)
            if cause == "out_of_memory":
                return Unreadable(f"they are held to be counted, and memory ran out: {words}")
            return Unreadable(f"saved-tensor hooks do not work here: {words}")
        return recorder

    def _breakdown(
        self,
        first: PeakBreakdown | Unreadable,
        warm: PeakBreakdown | Unreadable,
        rounding_bytes: int,
        saved: SavedTensors | Unreadable,
    ) -> Breakdown | Unreadable:
        if isinstance(first, Unreadable):
            return first
        if isinstance(warm, Unreadable):
            return warm
        modules = saved.by_module() if isinstance(saved, SavedTensors) else {}
        return Breakdown(
            cell=self._cell,
            parts=warm.parts,
            first_parts=first.parts,
            timeline=warm.timeline,
            phases=warm.phases,
            modules={path or OUTSIDE: nbytes for path, nbytes in list(modules.items())[:MODULES]},
            rounding_bytes=rounding_bytes,
        )

    def _leaked(self, arm: CellArm, live: list[int]) -> MeterResult:
        if not leaks.growth(live):
            return Figure(0)
        for _ in range(leaks.STEPS):  # what only waits for the collector is no leak
            self._ledger.observe(partial(steps, arm, 1))
            self._at_rest()
            _, window = self._ledger.observe(gc.collect)
            live.append(window.after_bytes)
        leaked = leaks.growth(live[-leaks.STEPS :])
        if not leaked:
            return Figure(0)
        with arm.held():
            modules = paths(*self._subject.parts())
            look = partial(leaks.kept, arm.step, self._subject.clear_gradients, modules)
            births, _ = self._ledger.observe(look)
        return Figure(leaked, {"kept": leaks.named(births)})


def process_cells(
    cells: Sequence[Cell], model: Model, plan: Plan, wanted: Collection[str]
) -> Iterator[Message]:
    """Yield the resident high-water mark of the cells, one after the other in this process."""
    watch, device = Stopwatch(), settle(cells[0])
    subject = try_to_build(cells[0], model, device, seed=plan.seed)
    yield watch.lap("build")
    if not isinstance(subject, Subject):
        yield from (skip(cell, name, subject) for cell in cells for name in wanted)
        return
    for cell in cells:
        yield Trying(cell)
        arm = try_to_arm(cell, subject, device)
        refused = arm if isinstance(arm, Refusal) else attempt(arm, device, TRIAL_STEPS)
        if isinstance(arm, Refusal) or refused is not None:
            why = arm if isinstance(arm, Refusal) else refused
            yield from (skip(cell, name, why) for name in wanted if why is not None)
            continue
        subject.clear_gradients()
        figures: dict[str, MeterResult | Refusal] = {}
        with arm.held():
            figures["peak_rss"] = _or_reason(partial(_peak_rss, arm), device)
            figures["device_process"] = _or_reason(lambda: Figure(device.process_bytes()), device)
        for name in wanted:
            yield _outcome(cell, name, figures[name])
    yield watch.lap("memory passes")


def _notes(window: Window, workspaces: int) -> dict[str, Fact]:
    """Return what is to be known of a window's figures, where there is anything."""
    notes = {"workspace_bytes": workspaces, "allocation_retries": window.retries}
    return {name: count for name, count in notes.items() if count}


def _left(leaked: MeterResult, nbytes: int) -> MeterResult:
    """Return the figure with a note of what the cell left for those after it, if anything."""
    if not isinstance(leaked, Figure) or nbytes <= 0:
        return leaked
    return Figure(leaked.value, {**leaked.notes, "left_for_later_cells": nbytes})


def _predicted(predictor: Predictor, cell: Cell, model: Model, plan: Plan) -> MeterResult | Refusal:
    try:
        prediction = predictor.predict(cell, model, seed=plan.seed)
    except CannotTrain as words:
        return Refusal("cannot_train", str(words))
    except Unpredictable as reason:
        return Unreadable(str(reason))
    notes = {"not_counted_inside": ", ".join(prediction.unprobed)} if prediction.unprobed else {}
    return Figure(prediction.peak_bytes, notes)


def _peak_rss(arm: CellArm) -> Figure:
    peak_bytes, bias = meters.peak_rss(arm.step, steps=TRIAL_STEPS)
    return Figure(peak_bytes, {"bias": bias} if bias else {})


def _or_reason(read: Callable[[], Figure], device: Device) -> MeterResult | Refusal:
    try:
        return guarded(read, device)
    except Unreadable as reason:
        return reason


def _outcome(cell: Cell, name: str, result: MeterResult | Refusal) -> Reading:
    if isinstance(result, Refusal):
        return skip(cell, name, result)
    if isinstance(result, Breakdown):
        return result
    if isinstance(result, Unreadable):
        return skip(cell, name, Refusal("unreadable", str(result)))
    meter = METERS[name]
    return Measurement(
        cell=cell,
        meter=name,
        unit=meter.unit,
        values=(result.value,),
        iterations=1,
        exact=meter.exact,
        notes=result.notes,
    )
