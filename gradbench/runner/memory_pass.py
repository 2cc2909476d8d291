"""The memory passes, inside their processes: allocator peaks to the byte, and the process's own."""

import gc
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar

from torch import nn
from torch.autograd.graph import Node
from torch.nn.modules.module import register_module_forward_hook

from ..devices import Device, Ledger, OutOfSight, Span, Unreadable, Window
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..memory import leaks
from ..memory.leaves import kept_unsaved, nodes
from ..memory.predict import (
    CannotTrain,
    EndsItsProcess,
    Predictor,
    TookTooLong,
    Unpredictable,
)
from ..memory.resident_blocks import disjoint, live, outside
from ..memory.saved_tensors import SavedTensors, SavingHooks, paths, refuses_hooks
from ..memory.step_phases import Marks
from ..records import predictions
from ..records.allocations import Entry, Mark, PeakBreakdown, attribute_peak
from ..records.measurements import Breakdown, Fact, Measurement, Reading
from ..workloads.arms import CellArm
from ..workloads.models import Model
from ..workloads.state import RandomNumbers, Snapshot
from ..workloads.steps import Subject
from . import host_system, meters
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
from .process_settings import ProcessSettings
from .visits import watched_step

T = TypeVar("T")

NO_HOOKS: Final = "its step does not suffer the hooks that tell what blocks are for"

OUTSIDE: Final = "(outside of the model)"
"""Where the loss has tensors saved."""

PREDICTING: Final = 0.9
"""Of a process's time limit: what its predictions may take, so that none is lost with another."""

SHORTEST_S: Final = 1.0
"""What each prediction may take even then."""

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
    """Yield the exact figures of cells: peaks, what they are made of, what is saved.

    Each builds its own model, so that no mode finds what another left in it.
    """
    watch, device = Stopwatch(), settle(cells[0])
    for cell in cells:
        yield Trying(cell)
        yield from _measured(cell, model, device, wanted, plan=plan, watch=watch)


def predict_block(
    cells: Sequence[Cell], model: Model, plan: Plan, _wanted: Collection[str]
) -> Iterator[Message]:
    """Yield the predicted peaks of a block's cells, which share what is learned of kernels."""
    watch, device = Stopwatch(), settle(cells[0])
    predictor = Predictor(cells[0].device, forks=host_system.here().forks)
    ends_s = time.monotonic() + PREDICTING * plan.limit_s
    for place, cell in enumerate(cells):
        yield Trying(cell)
        left_s = max(ends_s - time.monotonic(), SHORTEST_S)
        predictor.limit_s = left_s / (len(cells) - place)
        prediction = guarded(partial(_predicted, predictor, cell, model, plan), device)
        yield _outcome(cell, "predicted_peak", prediction)
    yield watch.lap("predictions")


def _measured(
    cell: Cell,
    model: Model,
    device: Device,
    wanted: Collection[str],
    *,
    plan: Plan,
    watch: Stopwatch,
) -> Iterator[Message]:
    gc.collect()  # what an earlier cell left must not be freed while this one counts
    settings = ProcessSettings.now()
    loaded = guarded(model.load, device)
    try:
        ledger = device.ledger()
    except Unreadable as reason:
        loaded = Refusal("unreadable", str(reason))
    if loaded is not None:
        yield from (skip(cell, name, loaded) for name in wanted)
        return

    def build(_: Callable[[Mark], None]) -> Subject | Refusal:
        subject = try_to_build(cell, model, device, seed=plan.seed, settings=settings)
        gc.collect()  # or what building left to the collector would be the first step's
        return subject

    subject, _, traced = ledger.trace(build)
    yield watch.lap("build")
    if isinstance(subject, Refusal):
        yield from (skip(cell, name, subject) for name in wanted)
        return
    try:
        results = _Reader(cell, subject, ledger, device, traced.entries(device.place)).read()
    except OutOfSight as reason:
        results = Refusal("unreadable", str(reason))
    for name in wanted:
        yield _outcome(cell, name, results if isinstance(results, Refusal) else results[name])
    yield watch.lap("memory passes")


class _GraphLook:
    """Looks at the graphs of what a forward returns, for what no hook sees."""

    def __init__(self, hooks: SavingHooks) -> None:
        self._hooks = hooks
        self.unseen: set[Node] = set()  # nodes that hold what nobody packed
        self.nodes: set[Node] = set()
        self.unsaved = False  # does a node keep tensors by an attribute?
        self.elsewhere = ""  # the class of a module that ran in a thread that nobody watches

    def returned(self, module: nn.Module, _inputs: object, _output: object) -> None:
        """Look at which thread a module runs in."""
        if not self._hooks.here:
            self.elsewhere = type(module).__name__

    def __call__(self, output: object) -> None:
        self.unseen |= self._hooks.unseen(output)
        self.nodes |= set(nodes(output))
        self.unsaved |= kept_unsaved(output)


class _Reader:
    """Reads one cell, every allocation of which is on the ledger but the bytes from elsewhere."""

    def __init__(
        self,
        cell: Cell,
        shared: Subject,
        ledger: Ledger,
        device: Device,
        built: Sequence[Entry],
    ) -> None:
        self._cell, self._ledger, self._device = cell, ledger, device
        self._marks = Marks(address=lambda storage: storage.data_ptr())
        self._subject = self._marks.around(shared)
        self._elsewhere_bytes = outside(self._marks.resident(self._subject), live(built))
        self._numbers = RandomNumbers(shared.resident())
        self._built = Snapshot(shared.parts(), on_host=True)

    def read(self) -> dict[str, MeterResult] | Refusal:
        """Return what every meter of the pass reads, or why the cell cannot run.

        The first step is traced with hooks, which say what its blocks are for. The third is made
        as it is, and gives the figures; then the same once more with hooks, and once more for what
        is saved, from the same state. What is live after each of the first three, gradients put
        away, says whether something is left every time.
        """
        first = self._first_step()
        if isinstance(first, Refusal):
            return first
        arm, first_window, first_parts = first
        live_bytes = [self._at_rest()]
        notes, _ = self._ledger.observe(partial(self._watched, arm))
        if isinstance(notes, Refusal):
            return notes
        live_bytes.append(self._at_rest())
        warm = Snapshot(self._subject.parts(), on_host=True)
        try_once = partial(self._attempt, arm)
        refused, window = self._ledger.observe(try_once)
        if refused is not None:
            return refused
        live_bytes.append(self._at_rest())
        warm.look()
        self._put_back(warm)
        parts = self._parts(try_once, window) if first_parts is not None else None
        self._put_back(warm)
        saved, _ = self._ledger.observe(partial(self._saved, arm))
        if isinstance(saved, OutOfSight):
            raise saved  # no figure of it is right
        self._at_rest()
        leaked = self._leaked(arm, live_bytes)
        workspaces = self._workspaces()
        window = self._with_elsewhere(window)
        figures = meters.allocator_figures(window, workspaces=workspaces)
        notes = {**notes, **_notes(window, workspaces)}
        first_bytes = self._with_elsewhere(first_window).peak_bytes
        return {
            **{
                name: figure if isinstance(figure, Unreadable) else Figure(figure, notes)
                for name, figure in figures.items()
            },
            "first_peak_allocated": Figure(first_bytes, _notes(first_window, 0)),
            "breakdown": self._breakdown(
                first_parts or Unreadable(NO_HOOKS),
                parts or Unreadable(NO_HOOKS),
                window.rounding_bytes,
                saved,
            ),
            "saved_for_backward": _saved_figure(saved),
            "leaked": leaked,
        }

    def _first_step(
        self,
    ) -> tuple[CellArm, Window, PeakBreakdown | Unreadable | None] | Refusal:
        """Make the very first step; where it suffers no hooks, that of a second arm, without."""
        for hooked in (True, False):
            arm, _ = self._ledger.observe(
                partial(try_to_arm, self._cell, self._subject, self._device)
            )
            if isinstance(arm, Refusal):
                return arm
            self._at_rest()
            self._device.forget()
            step = partial(self._attempt, arm)
            if hooked:
                refused, window, parts = self._attributed(step)
            else:
                refused, window = self._ledger.observe(step)
                parts = None
            if refused is None:
                return arm, window, parts
            if not (hooked and refuses_hooks(refused.reason)):
                return refused
            self._put_back(self._built)
        raise AssertionError("the loop returns")  # without hooks it returns either way

    def _stepping(self, step: Callable[[], T]) -> T:
        """Make a step with the same random numbers as all others."""
        self._numbers.put_back()
        return step()

    def _attempt(self, arm: CellArm) -> Refusal | None:
        return self._stepping(partial(attempt, arm, self._device, 1, put_back=self._built.put_back))

    def _watched(self, arm: CellArm) -> dict[str, Fact] | Refusal:
        notes = guarded(
            partial(self._stepping, partial(watched_step, arm, self._device)), self._device
        )
        return notes if isinstance(notes, Refusal) else {**self._subject.notes, **notes}

    def _put_back(self, state: Snapshot) -> None:
        """Bring the module back to a state, gradients put away; on the ledger, for it frees."""

        def back() -> None:
            self._subject.clear_gradients()
            state.put_back()

        self._ledger.observe(back)

    def _at_rest(self) -> int:
        """Put gradients away; return what is live then."""
        _, window = self._ledger.observe(self._subject.clear_gradients)
        return window.after_bytes

    def _with_elsewhere(self, window: Window) -> Window:
        """Return the window with the resident bytes that torch's allocator never handed out."""
        nbytes = self._elsewhere_bytes

        def shifted(span: Span) -> dict[str, int]:
            return {
                "before_bytes": span.before_bytes + nbytes,
                "peak_bytes": span.peak_bytes + nbytes,
                "after_bytes": span.after_bytes + nbytes,
            }

        requested = window.requested
        if isinstance(requested, Span):
            requested = Span(**shifted(requested))
        return replace(window, **shifted(window), requested=requested)

    def _parts(
        self, step: Callable[[], Refusal | None], plain: Window
    ) -> PeakBreakdown | Unreadable:
        """Return what the peak of a step is made of, if hooks leave it the peak that it has."""
        refused, window, parts = self._attributed(step)
        if refused is not None:
            return Unreadable(f"with hooks: {refused.reason}")
        if window.peak_bytes != plain.peak_bytes:
            return Unreadable(
                f"hooks, which tell the parts, change the peak: {window.peak_bytes:,} B with, "
                f"{plain.peak_bytes:,} B without"
            )
        return parts

    def _workspaces(self) -> int:
        """Let go of what libraries keep between steps; return the bytes that they asked for."""
        _, window = self._ledger.observe(self._device.forget)
        asked: Span = window.requested if isinstance(window.requested, Span) else window
        return asked.before_bytes - asked.after_bytes

    def _attributed(
        self, function: Callable[[], T]
    ) -> tuple[T, Window, PeakBreakdown | Unreadable]:
        """Run a function; return its window, and what its peak was made of where that adds up."""
        resident = disjoint(self._marks.resident(self._subject))

        def marked(mark: Callable[[Mark], None]) -> T:
            with self._marks.telling(mark, self._subject.parameters()):
                return function()

        result, window, traced = self._ledger.trace(marked)
        entries = traced.entries(self._device.place)
        try:
            window.check(entries)
        except Unreadable as reason:
            return result, window, reason
        before_bytes = max(
            window.before_bytes + self._elsewhere_bytes,
            sum(block.nbytes for block in resident.values()),
        )
        parts = attribute_peak(entries, resident=resident, before_bytes=before_bytes)
        return result, window, parts

    def _saved(self, arm: CellArm) -> SavedTensors | Unreadable:
        """Make a step; return what autograd saved of it, or why that is not known."""
        recorder = SavedTensors(
            modules=paths(*self._subject.parts()), apart=self._subject.resident()
        )
        look = _GraphLook(recorder.hooks)
        try:
            with recorder:
                self._looked_at(arm, look)
            if look.unseen:  # was that there before? Then a further step has it, too
                self._looked_at(arm, again := _GraphLook(recorder.hooks))
                look.unseen -= again.nodes
        except BaseException as error:  # noqa: BLE001 # hooks meet any code, compiled graphs included
            why = refusal(error, self._device)
            if why.cause == "out_of_memory":
                return Unreadable(f"memory ran out while saved tensors were counted: {why.reason}")
            return Unreadable(f"saved-tensor hooks do not work here: {why.reason}")
        if look.unseen or look.elsewhere:
            what = f"{look.elsewhere} runs" if look.elsewhere else "a graph is built"
            return OutOfSight(
                f"{what} in a thread that was there before the step, and what that allocates is "
                "not seen: start the thread in the step, or use a ThreadPoolExecutor"
            )
        if look.unsaved:
            return Unreadable(
                "a graph is built, and a node keeps tensors by an attribute, not saved"
            )
        return recorder

    def _looked_at(self, arm: CellArm, look: "_GraphLook") -> None:
        self._marks.look = look
        looking = register_module_forward_hook(look.returned)
        try:
            self._numbers.put_back()
            with arm.held():
                arm.step()
        finally:
            looking.remove()
            self._marks.look = None

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
        by_module = saved.by_module() if isinstance(saved, SavedTensors) else {}
        most = dict(list(by_module.items())[:MODULES])
        known = paths(*self._subject.parts())
        return Breakdown(
            cell=self._cell,
            parts=warm.parts,
            first_parts=first.parts,
            timeline=warm.timeline,
            phases=warm.phases,
            modules={path or OUTSIDE: nbytes for path, nbytes in most.items()},
            rounding_bytes=rounding_bytes,
            classes={path: type(known[path]).__name__ for path in most if path in known},
        )

    def _leaked(self, arm: CellArm, live: list[int]) -> MeterResult:
        if not leaks.growth(live):
            return Figure(0)
        for _ in range(leaks.STEPS):  # what only waits for the collector is no leak
            refused, _ = self._ledger.observe(partial(self._attempt, arm))
            if refused is not None:
                return Unreadable(f"in one of its later steps: {refused.reason}")
            self._at_rest()
            _, window = self._ledger.observe(gc.collect)
            live.append(window.after_bytes)
        leaked = leaks.growth(live[-leaks.STEPS :])
        if not leaked:
            return Figure(0)
        with arm.held():
            modules = paths(*self._subject.parts())
            look = partial(leaks.kept, arm.step, self._subject.clear_gradients, modules)
            births, _ = self._ledger.observe(partial(guarded, look, self._device))
        if isinstance(births, Refusal):
            return Figure(leaked)
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


def _saved_figure(saved: SavedTensors | Unreadable) -> MeterResult:
    if isinstance(saved, Unreadable):
        return saved
    total = saved.total_bytes
    return Figure(saved.nbytes, {"in_total": total} if total != saved.nbytes else {})


def _predicted(predictor: Predictor, cell: Cell, model: Model, plan: Plan) -> MeterResult | Refusal:
    try:
        prediction = predictor.predict(cell, model, seed=plan.seed)
    except CannotTrain as words:
        return Refusal("cannot_train", str(words))
    except EndsItsProcess as how:
        return Refusal("crashed", str(how))
    except TookTooLong as how:
        return Refusal("timed_out", str(how))
    except Unpredictable as reason:
        return Unreadable(str(reason))
    return Figure(prediction.peak_bytes, predictions.notes(prediction))


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
