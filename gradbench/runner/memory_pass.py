"""The memory pass, inside its process: what tensors hold at once in a step, to the byte."""

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from ..devices import Device, OutOfSight, Unreadable, Window, nothing
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..memory.fused_calls import FusedCalls
from ..memory.saved_tensors import SavedTensors, paths, refuses_hooks
from ..plurals import counted
from ..records.allocations import PeakBreakdown
from ..records.measurements import Breakdown, Fact, Reading
from ..workloads.models import Model
from ..workloads.steps import WORKLOADS, may_fail
from . import kept_bytes, meters, ranks
from .attempts import Message, Refusal, Stopwatch, Trying, guarded, settle, skip, try_to_build
from .kept_bytes import Grown
from .observed_subject import ObservedSubject
from .outcomes import Figure, outcome
from .process_settings import ProcessSettings
from .saved_step import OTHER_PATH, SavedStep

T = TypeVar("T")

NO_HOOKS: Final = "its step fails with the hooks by which blocks of memory are named"

OUTSIDE: Final = "(outside of the model)"
"""Where the loss has tensors saved."""

MODULES: Final = 10
"""Modules that a breakdown names."""


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
    observed = ObservedSubject(cell, ledger, device, build)
    try:
        unbuilt = observed.build()
    except OutOfSight as reason:
        unbuilt = Refusal("unreadable", f"built: {reason}")
    yield watch.lap("build")
    if unbuilt is not None:
        yield from (skip(cell, name, unbuilt) for name in wanted)
        return
    try:
        results = _Reader(observed).read()
    except OutOfSight as reason:
        results = Refusal("unreadable", str(reason))
    why = results.reason if isinstance(results, Refusal) else ""
    ranks.agree("a cell's memory is read", refused=why)
    for name in wanted:
        yield _outcome(cell, name, results if isinstance(results, Refusal) else results[name])
    yield watch.lap("memory passes")


@dataclass(frozen=True, slots=True)
class _WarmSteps:
    """What the steps after the first are: their notes, the third one's window, what they leave."""

    notes: dict[str, Fact]
    plain: Window
    grown: Grown
    leaked: Figure | Unreadable
    alike: bool  # do they leave as much live as the one before?


class _Reader:
    """Reads every meter of the pass for one cell."""

    def __init__(self, observed: ObservedSubject) -> None:
        self._observed, self._cell = observed, observed.cell

    def read(self) -> dict[str, MeterResult] | Refusal:
        """Return what every meter of the pass reads, or why the cell cannot run.

        The first step is traced with hooks, which say what its blocks are for. The second is
        watched, and the third made as it is: it gives the figures. Then come a step with hooks and
        one for what is saved: the fourth and the fifth where steps are alike, else each is the
        third of a subject that is built again.
        """
        first = self._first_step()
        if isinstance(first, Refusal):
            return first
        first_window, first_parts = first
        warm = self._warm_steps()
        if isinstance(warm, Refusal):
            return warm
        window = self._observed.with_elsewhere(warm.plain)
        parts: PeakBreakdown | Unreadable = Unreadable(NO_HOOKS)
        alike = warm.alike
        if first_parts is not None:
            parts, alike = self._alike_or_rebuilt(warm.plain, alike=alike)
        saved = self._saved() if alike else self._third_step_rebuilt(self._saved)
        if isinstance(saved, OutOfSight):
            raise saved  # no figure of it is right
        workspaces = self._observed.forget_workspaces()
        figures = meters.allocator_figures(window, workspaces=workspaces)
        elsewhere = _elsewhere(saved)
        notes = {**warm.notes, **elsewhere, **_notes(window, workspaces)}
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
            "leaked": warm.leaked,
            "kept_after_first": self._kept(
                warm.grown.nbytes - workspaces, hooked=first_parts is not None
            ),
        }

    def _warm_steps(self) -> _WarmSteps | Refusal:
        """Make the second step, watched, and the third as it is; more where memory grows.

        What is live after each of the first three, gradients put away, says whether something is
        left every time.
        """
        observed = self._observed
        live_bytes = [observed.rest()]
        with FusedCalls() as fused:
            notes, _ = observed.observe_step(observed.watched_step)
        if isinstance(notes, Refusal):
            return notes
        self._fused = fused.counts
        live_bytes.append(observed.rest())
        grown = Grown.of(observed)
        refused, plain = observed.observe_step(observed.step)
        if refused is not None:
            return refused
        live_bytes.append(observed.rest())
        leaked = kept_bytes.leaked(observed, live_bytes)
        grown = grown.without_garbage(observed, leaked)
        alike = not ranks.any_of("steps differ", live_bytes[-1] != live_bytes[-2])
        return _WarmSteps(notes, plain, grown, leaked, alike)

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
            refused = self._observed.build_again()
            if refused is not None:
                return refused

    def _try_first(
        self, *, hooked: bool, keeps: bool
    ) -> tuple[Window, PeakBreakdown | Unreadable | None] | Refusal:
        observed = self._observed
        put_back = observed.restorer() if keeps else nothing
        refused = observed.make_arm()
        if refused is not None:
            return refused
        step = partial(observed.step, put_back=put_back)
        breakdown: PeakBreakdown | Unreadable | None = None
        with FusedCalls() as fused:
            if hooked:
                refused, window, breakdown = observed.attribute_step(step)
            else:
                refused, window = observed.observe_step(step)
        self._fused_first = fused.counts
        return refused or (observed.with_elsewhere(window), breakdown)

    def _alike_or_rebuilt(
        self, plain: Window, *, alike: bool
    ) -> tuple[PeakBreakdown | Unreadable, bool]:
        """Return what a warm step's peak is made of, and whether the next steps are alike."""
        if alike:
            parts, alike = self._parts(plain)
            self._observed.rest()
            if not ranks.any_of("hooks change the step", not alike):
                return parts, True
        rebuilt = self._third_step_rebuilt(partial(self._parts, plain))
        return (rebuilt if isinstance(rebuilt, Unreadable) else rebuilt[0]), False

    def _third_step_rebuilt(self, read: Callable[[], T]) -> T | Unreadable:
        """Build the subject again; return what is read of its third step, in the same state."""
        refused = self._observed.warm_up_again()
        if refused is not None:
            return Unreadable(f"built a second time: {refused.reason}")
        return read()

    def _parts(self, plain: Window) -> tuple[PeakBreakdown | Unreadable, bool]:
        """Return what the peak of a step with hooks is made of, and whether it is the plain one."""
        with FusedCalls() as fused:
            refused, window, parts = self._observed.attribute_step(self._observed.step)
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

    def _saved(self) -> SavedTensors | Unreadable:
        """Make a step; return what autograd saved of it, or why that is not known."""
        observed = self._observed
        step = SavedStep(
            observed.arm,
            observed.marks,
            observed.numbers,
            observed.device,
            fused_calls=self._fused,
        )
        saved, _ = observed.observe_step(step.read)
        return saved

    def _kept(self, nbytes: int, *, hooked: bool) -> MeterResult:
        """Return what the first step left; last of all, for the subject is built again.

        Without hooks, bytes of an optimizer's state are not known apart.
        """
        if not hooked and WORKLOADS[self._cell.workload].optimizes:
            return Unreadable(NO_HOOKS)
        return kept_bytes.kept_after_first(self._observed, nbytes)

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
        known = paths(*self._observed.subject.parts())
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


def _notes(window: Window, workspaces: int) -> dict[str, Fact]:
    """Return what is to be known of a window's figures, where there is anything."""
    notes = {"workspace_bytes": workspaces, "allocation_retries": window.retries}
    return {name: count for name, count in notes.items() if count}


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
