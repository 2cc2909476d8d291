"""The memory pass, inside its process: what tensors hold at once in a step, to the byte."""

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from ..devices import Device, Ledger, OutOfSight, Span, Unreadable, Window, nothing
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..memory import leaks, left_behind
from ..memory.fused_calls import FusedCalls
from ..memory.measured_step import WARM_UP_STEPS
from ..memory.resident_blocks import disjoint, live, outside
from ..memory.saved_tensors import SavedTensors, paths, refuses_hooks
from ..memory.step_phases import Marks
from ..memory.storages import key, storages
from ..plurals import counted
from ..records.allocations import Mark, PeakBreakdown, attribute_peak
from ..records.measurements import Breakdown, Fact, Reading
from ..workloads.arms import steps
from ..workloads.models import Model
from ..workloads.state import RandomNumbers, Snapshot
from ..workloads.steps import WORKLOADS, Subject, may_fail
from . import meters, ranks
from .attempts import (
    Message,
    Refusal,
    Stopwatch,
    Trying,
    attempt,
    guarded,
    settle,
    skip,
    try_to_arm,
    try_to_build,
)
from .outcomes import Figure, outcome
from .process_settings import ProcessSettings
from .saved_step import OTHER_PATH, SavedStep
from .visits import drawn, restorer, watched_step

T = TypeVar("T")

NO_HOOKS: Final = "its step fails with the hooks by which blocks of memory are named"

OUTSIDE: Final = "(outside of the model)"
"""Where the loss has tensors saved."""

MODULES: Final = 10
"""Modules that a breakdown names."""


@dataclass(frozen=True, slots=True)
class _Grown:
    """Bytes alive beyond those before the first step, and after how many steps that was."""

    nbytes: int
    steps: int


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
    ranks.agree("memory can be watched", refused=loaded.reason if loaded else "")
    if loaded is not None:
        yield from (skip(cell, name, loaded) for name in wanted)
        return

    build = partial(try_to_build, cell, model, device, seed=plan.seed, settings=settings)
    reader = _Reader(cell, ledger, device, build)
    try:
        unbuilt = reader.build()
    except OutOfSight as reason:
        unbuilt = Refusal("unreadable", f"built: {reason}")
    yield watch.lap("build")
    if unbuilt is not None:
        yield from (skip(cell, name, unbuilt) for name in wanted)
        return
    try:
        results = reader.read()
    except OutOfSight as reason:
        results = Refusal("unreadable", str(reason))
    why = results.reason if isinstance(results, Refusal) else ""
    ranks.agree("a cell's memory is read", refused=why)
    for name in wanted:
        yield _outcome(cell, name, results if isinstance(results, Refusal) else results[name])
    yield watch.lap("memory passes")


class _Reader:
    """Reads one cell, every allocation of which is on the ledger but the bytes from elsewhere.

    While a figure of bytes is read, nothing here holds what the module may replace, a cache or its
    last output: so no state is kept to be put back. A state is reached again by building again.
    """

    def __init__(
        self,
        cell: Cell,
        ledger: Ledger,
        device: Device,
        build: Callable[[], Subject | Refusal],
    ) -> None:
        self._cell, self._ledger, self._device, self._try_to_build = cell, ledger, device, build
        self._made = 0  # steps of this subject
        self._beside: Snapshot | None = None  # what classes and files had when it was first built
        self._settings = ProcessSettings.now()

    def build(self) -> Refusal | None:
        """Build the subject, with the ledger at its beginning; return why that is impossible."""

        def built(_: Callable[[Mark], None]) -> Subject | Refusal:
            subject = self._try_to_build()
            gc.collect()  # or what building left to the collector would be the first step's
            return subject

        shared, _, traced = self._ledger.trace(built)
        if isinstance(shared, Refusal):
            return shared
        self._marks = Marks(address=lambda storage: storage.data_ptr())
        self._subject = self._marks.around(shared)
        there = live(traced.entries(self._device.place))
        self._elsewhere_bytes = outside(self._marks.resident(self._subject), there)
        self._numbers = RandomNumbers(shared.resident())
        self._made = 0
        self._beside = self._beside or Snapshot.beside(shared.parts())
        return None

    def read(self) -> dict[str, MeterResult] | Refusal:
        """Return what every meter of the pass reads, or why the cell cannot run.

        The first step is traced with hooks, which say what its blocks are for. The third is made
        as it is, and gives the figures. What is live after each of the first three, gradients put
        away, says whether something is left every time. Then come a step with hooks and one for
        what is saved: the fourth and the fifth where steps are alike, else each is the third of a
        subject that is built again.
        """
        first = self._first_step()
        if isinstance(first, Refusal):
            return first
        first_window, first_parts = first
        live_bytes = [self._at_rest()]
        with FusedCalls() as fused:
            notes, _ = self._observe(self._watched)
        if isinstance(notes, Refusal):
            return notes
        self._fused = fused.counts
        live_bytes.append(self._at_rest())
        grown = _Grown(self._grown_bytes(), self._made)
        refused, plain = self._observe(self._attempt)
        if refused is not None:
            return refused
        live_bytes.append(self._at_rest())
        window = self._with_elsewhere(plain)
        leaked = self._leaked(live_bytes)
        grown = self._without_garbage(grown, leaked)
        alike = not ranks.any_of("steps differ", live_bytes[-1] != live_bytes[-2])
        parts: PeakBreakdown | Unreadable = Unreadable(NO_HOOKS)
        if first_parts is not None:
            parts, alike = self._alike_or_rebuilt(plain, alike=alike)
        saved = self._saved() if alike else self._third_step_rebuilt(self._saved)
        if isinstance(saved, OutOfSight):
            raise saved  # no figure of it is right
        workspaces = self._workspaces()
        figures = meters.allocator_figures(window, workspaces=workspaces)
        elsewhere = _elsewhere(saved)
        notes = {**notes, **elsewhere, **_notes(window, workspaces)}
        return {
            **{
                name: figure if isinstance(figure, Unreadable) else Figure(figure, notes)
                for name, figure in figures.items()
            },
            "first_peak_allocated": Figure(
                first_window.peak_bytes,
                {**elsewhere, **_notes(first_window, 0), **self._first_path()},
            ),
            "breakdown": self._breakdown(
                first_parts or Unreadable(NO_HOOKS), parts, window.rounding_bytes, saved
            ),
            "saved_for_backward": _saved_figure(saved, elsewhere),
            "leaked": leaked,
            "kept_after_first": self._kept_figure(
                grown.nbytes - workspaces, hooked=first_parts is not None
            ),
        }

    def _alike_or_rebuilt(
        self, plain: Window, *, alike: bool
    ) -> tuple[PeakBreakdown | Unreadable, bool]:
        """Return what a warm step's peak is made of, and whether the next steps are alike."""
        if alike:
            parts, alike = self._parts(plain)
            self._at_rest()
            if not ranks.any_of("hooks change the step", not alike):
                return parts, True
        rebuilt = self._third_step_rebuilt(partial(self._parts, plain))
        return (rebuilt if isinstance(rebuilt, Unreadable) else rebuilt[0]), False

    def _third_step_rebuilt(self, read: Callable[[], T]) -> T | Unreadable:
        """Build the subject again; return what is read of its third step, in the same state."""
        refused = self._build_again() or self._make_arm()
        for _ in range(WARM_UP_STEPS):
            if refused is None:
                refused, _ = self._observe(self._attempt)
                self._at_rest()
        if refused is not None:
            return Unreadable(f"built a second time: {refused.reason}")
        return read()

    def _build_again(self) -> Refusal | None:
        """Let go of the subject and build another, on a ledger of its own."""
        for name in ("_arm", "_subject", "_marks"):
            vars(self).pop(name, None)  # some are missing where an earlier build has failed
        self._settings.put_back()
        if self._beside is not None:
            self._beside.put_back()
        gc.collect()  # or it would be freed while the other counts
        self._ledger = self._device.ledger()
        return self.build()

    def _make_arm(self) -> Refusal | None:
        """Make the step of the subject that was just built."""
        arm, _ = self._ledger.observe(partial(try_to_arm, self._cell, self._subject, self._device))
        if isinstance(arm, Refusal):
            return arm
        self._arm = arm
        self._at_rest()
        self._device.forget()
        _, window = self._ledger.observe(nothing)
        self._there_bytes = _asked(window).before_bytes
        return None

    def _first_step(self) -> tuple[Window, PeakBreakdown | Unreadable | None] | Refusal:
        """Make the very first step; where it fails with hooks, that of a second subject, without.

        Where the mode may be why training fails, the state as built is kept, to ask whether it is.
        Should the step work there, it is made again with nothing kept.
        """
        hooked, keeps = True, may_fail(self._cell.workload, self._cell.grad_mode)
        while True:
            first = self._try_first(hooked=hooked, keeps=keeps)
            if not (keeps or isinstance(first, Refusal)):
                return first
            if not isinstance(first, Refusal):
                keeps = False
            elif hooked and ranks.any_of("hooks are refused", refuses_hooks(first.reason)):
                hooked = False
            else:
                return first
            refused = self._build_again()
            if refused is not None:
                return refused

    def _try_first(
        self, *, hooked: bool, keeps: bool
    ) -> tuple[Window, PeakBreakdown | Unreadable | None] | Refusal:
        other = partial(restorer, self._subject, self._cell, self._try_to_build, on_host=True)
        put_back = other() if keeps else nothing
        refused = self._make_arm()
        if refused is not None:
            return refused
        step = partial(self._attempt, put_back=put_back)
        breakdown: PeakBreakdown | Unreadable | None = None
        with FusedCalls() as fused:
            if hooked:
                refused, window, breakdown = self._attributed(step)
            else:
                refused, window = self._observe(step)
        self._fused_first = fused.counts
        return refused or (self._with_elsewhere(window), breakdown)

    def _observe(self, step: Callable[[], T]) -> tuple[T, Window]:
        """Make a step that the ledger observes, after what it begins with was made anew."""
        self._renew()
        return self._ledger.observe(step)

    def _renew(self) -> None:
        """Make anew what the next step begins with; where that fails, the step will say so."""
        self._ledger.observe(partial(guarded, self._arm.renew, self._device))

    def _stepping(self, step: Callable[[], T]) -> T:
        """Make a step with the same random numbers as all others."""
        self._numbers.put_back()
        self._made += 1
        return step()

    def _attempt(self, put_back: Callable[[], object] = nothing) -> Refusal | None:
        return self._stepping(partial(attempt, self._arm, self._device, 1, put_back=put_back))

    def _watched(self) -> dict[str, Fact] | Refusal:
        notes = guarded(
            partial(self._stepping, partial(watched_step, self._arm, self._device)), self._device
        )
        if isinstance(notes, Refusal):
            return notes
        self._numbers.look()
        return {**self._subject.notes, **notes, **drawn(self._numbers)}

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

    def _parts(self, plain: Window) -> tuple[PeakBreakdown | Unreadable, bool]:
        """Return what the peak of a step with hooks is made of, and whether it is the plain one."""
        with FusedCalls() as fused:
            refused, window, parts = self._attributed(self._attempt)
        if refused is not None:
            return Unreadable(f"with hooks: {refused.reason}"), False
        if fused.counts != self._fused:
            return Unreadable(OTHER_PATH), False
        if window.peak_bytes != plain.peak_bytes:
            why = (
                f"hooks, which tell the parts, change the peak: {window.peak_bytes:,} B with, "
                f"{plain.peak_bytes:,} B without"
            )
            return Unreadable(why), False
        return parts, True

    def _workspaces(self) -> int:
        """Let go of what libraries keep between steps; return the bytes that they asked for."""
        _, window = self._ledger.observe(self._device.forget)
        asked = _asked(window)
        return asked.before_bytes - asked.after_bytes

    def _grown_bytes(self) -> int:
        """Return what was asked for and is alive beyond what was before the first step.

        The state of optimizers is left out.
        """
        _, window = self._ledger.observe(nothing)
        blocks = self._marks.resident(self._subject).values()
        state = sum(block.nbytes for block in blocks if block.part == "optimizer_state")
        return _asked(window).after_bytes - self._there_bytes - state

    def _without_garbage(self, grown: _Grown, leaked: MeterResult) -> _Grown:
        """Return the same without what was only waiting for the collector."""
        if grown.nbytes <= 0:
            return grown
        self._ledger.observe(gc.collect)
        each = leaked.value if isinstance(leaked, Figure) else 0
        now = self._grown_bytes() - each * (self._made - grown.steps)
        return replace(grown, nbytes=min(grown.nbytes, now))

    def _kept_figure(self, nbytes: int, *, hooked: bool) -> MeterResult:
        if not hooked and WORKLOADS[self._cell.workload].optimizes:
            return Unreadable(NO_HOOKS)
        if not ranks.any_of("something is kept", nbytes > 0):
            return Figure(0)
        names = self._names_of_kept(nbytes)
        return Figure(nbytes, names) if nbytes > 0 else Figure(0)

    def _names_of_kept(self, nbytes: int) -> dict[str, Fact]:
        """Watch two steps of another subject; return as a note who keeps so many bytes."""
        if (self._build_again() or self._make_arm()) is not None:
            return {}

        def two_steps() -> None:
            for _ in range(2):
                self._numbers.put_back()
                steps(self._arm, 1)
                self._subject.clear_gradients()

        def state() -> set[int]:
            return {key(one) for tensor in self._marks.state() for one in storages(tensor)}

        look = partial(left_behind.left_by, two_steps, self._subject.parts(), apart=state)
        with self._marks.learning_optimizers():
            left = guarded(look, self._device)
        if isinstance(left, Refusal):
            return {}
        missing = nbytes - left.nbytes
        once = f"{missing:,} B that are made once for the process" if missing > 0 else ""
        return {"kept": "; ".join(filter(None, (left_behind.in_words(left.made), once)))}

    def _attributed(
        self, function: Callable[[], T]
    ) -> tuple[T, Window, PeakBreakdown | Unreadable]:
        """Run a function; return its window, and what its peak was made of where that adds up."""
        self._renew()
        resident = disjoint(self._marks.resident(self._subject, self._arm.provided()))

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
        parts = attribute_peak(
            entries,
            resident=resident,
            before_bytes=before_bytes,
            autocast=self._cell.autocast != "off",
        )
        return result, window, parts

    def _saved(self) -> SavedTensors | Unreadable:
        """Make a step; return what autograd saved of it, or why that is not known."""
        step = SavedStep(
            self._arm,
            self._marks,
            self._numbers,
            self._device,
            fused_calls=self._fused,
        )
        saved, _ = self._observe(step.read)
        return saved

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
            casts=warm.casts,
        )

    def _first_path(self) -> dict[str, Fact]:
        """Return as a note that the first step took another path than the later ones."""
        if self._fused_first == self._fused:
            return {}
        here, later = sum(self._fused_first), sum(self._fused)
        return {"fused_attention": f"{counted(here, 'call')} here, {later} in later steps"}

    def _leaked(self, live: list[int]) -> MeterResult:
        if not ranks.any_of("memory grew", bool(leaks.growth(live))):
            return Figure(0)
        for _ in range(leaks.STEPS):  # what only waits for the collector is no leak
            refused, _ = self._observe(self._attempt)
            if refused is not None:
                return Unreadable(f"in one of its later steps: {refused.reason}")
            self._at_rest()
            _, window = self._ledger.observe(gc.collect)
            live.append(window.after_bytes)
        leaked = leaks.growth(live[-leaks.STEPS :])
        if not ranks.any_of("memory leaks", bool(leaked)):
            return Figure(0)
        with self._arm.held():
            modules = paths(*self._subject.parts())
            look = partial(leaks.kept, self._arm.step, self._subject.clear_gradients, modules)
            births, _ = self._ledger.observe(partial(guarded, look, self._device))
        self._made += leaks.STEPS
        if isinstance(births, Refusal) or not leaked:
            return Figure(leaked)
        return Figure(leaked, {"kept": leaks.named(births)})


def _notes(window: Window, workspaces: int) -> dict[str, Fact]:
    """Return what is to be known of a window's figures, where there is anything."""
    notes = {"workspace_bytes": workspaces, "allocation_retries": window.retries}
    return {name: count for name, count in notes.items() if count}


def _asked(window: Window) -> Span:
    """Return what was asked for, which on the CPU is what was handed out."""
    return window.requested if isinstance(window.requested, Span) else window


def _elsewhere(saved: SavedTensors | Unreadable) -> dict[str, Fact]:
    """Return what was saved of memory that no peak counts, where there is any."""
    nbytes = saved.elsewhere_bytes if isinstance(saved, SavedTensors) else 0
    return {"outside_bytes": nbytes} if nbytes else {}


def _saved_figure(saved: SavedTensors | Unreadable, notes: Mapping[str, Fact]) -> MeterResult:
    if isinstance(saved, Unreadable):
        return saved
    total = saved.total_bytes
    return Figure(saved.nbytes, {**notes, **({"in_total": total} if total != saved.nbytes else {})})


def _outcome(cell: Cell, name: str, result: MeterResult | Refusal) -> Reading:
    return result if isinstance(result, Breakdown) else outcome(cell, name, result)
