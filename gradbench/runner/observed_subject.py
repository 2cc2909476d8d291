"""The subject of one cell, whose every allocation is on a ledger, and the steps that it makes."""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ..devices import Device, Ledger, Span, Unreadable, Window, nothing
from ..experiment.matrix import Cell
from ..memory.measured_step import WARM_UP_STEPS
from ..memory.resident_blocks import disjoint, live, outside
from ..memory.step_phases import Marks
from ..records.allocations import Mark, PeakBreakdown, attribute_peak
from ..records.measurements import Fact
from ..workloads.state import RandomNumbers, Snapshot
from ..workloads.steps import Subject
from .attempts import Refusal, attempt, guarded, try_to_arm
from .process_settings import ProcessSettings
from .visits import drawn, restorer, watched_step

T = TypeVar("T")


class ObservedSubject:
    """Builds the subject of a cell, makes its steps, and reads the bytes that they take.

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
        self.cell, self.device = cell, device
        self.steps_made = 0  # of the subject that was built last
        self._ledger, self._try_to_build = ledger, build
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
        self.marks = Marks(address=lambda storage: storage.data_ptr())
        self.subject = self.marks.around(shared)
        there = live(traced.entries(self.device.place))
        self._elsewhere_bytes = outside(self.marks.resident(self.subject), there)
        self.numbers = RandomNumbers(shared.resident())
        self.steps_made = 0
        self._beside = self._beside or Snapshot.beside(shared.parts())
        return None

    def build_again(self) -> Refusal | None:
        """Let go of the subject and its arm, and build another, on a ledger of its own."""
        for name in ("arm", "subject", "marks"):
            vars(self).pop(name, None)  # some are missing where an earlier build has failed
        self._settings.put_back()
        if self._beside is not None:
            self._beside.put_back()
        gc.collect()  # or it would be freed while the other counts
        self._ledger = self.device.ledger()
        return self.build()

    def make_arm(self) -> Refusal | None:
        """Make the step of the subject that was just built."""
        arm, _ = self._ledger.observe(partial(try_to_arm, self.cell, self.subject, self.device))
        if isinstance(arm, Refusal):
            return arm
        self.arm = arm
        self.rest()
        self.device.forget()
        self._there_bytes = self._asked().before_bytes
        return None

    def warm_up_again(self) -> Refusal | None:
        """Build the subject again and make the steps that come before its warm ones."""
        refused = self.build_again() or self.make_arm()
        for _ in range(WARM_UP_STEPS):
            if refused is None:
                refused, _ = self.observe_step(self.step)
                self.rest()
        return refused

    def restorer(self) -> Callable[[], object]:
        """Return what brings the subject back to what it is now, or builds another like it."""
        return restorer(self.subject, self.cell, self._try_to_build, on_host=True)

    def observe_step(self, step: Callable[[], T]) -> tuple[T, Window]:
        """Make a step that the ledger observes, after what it begins with was made anew."""
        self._renew()
        return self._ledger.observe(step)

    def attribute_step(self, step: Callable[[], T]) -> tuple[T, Window, PeakBreakdown | Unreadable]:
        """Make a step; return its window, and what its peak was made of where that adds up."""
        self._renew()
        resident = disjoint(self.marks.resident(self.subject, self.arm.provided()))

        def marked(mark: Callable[[Mark], None]) -> T:
            with self.marks.telling(mark, self.subject.parameters()):
                return step()

        result, window, traced = self._ledger.trace(marked)
        entries = traced.entries(self.device.place)
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
            autocast=self.cell.autocast != "off",
        )
        return result, window, parts

    def step(self, put_back: Callable[[], object] = nothing) -> Refusal | None:
        """Make a step with the same random numbers as all others; return why it fails."""
        return self._stepping(partial(attempt, self.arm, self.device, 1, put_back=put_back))

    def watched_step(self) -> dict[str, Fact] | Refusal:
        """Make a step; return what is to be noted of all figures, or why it fails."""
        notes = guarded(
            partial(self._stepping, partial(watched_step, self.arm, self.device)), self.device
        )
        if isinstance(notes, Refusal):
            return notes
        self.numbers.look()
        return {**self.subject.notes, **notes, **drawn(self.numbers)}

    def rest(self) -> int:
        """Put gradients away; return the bytes that are live then."""
        _, window = self._ledger.observe(self.subject.clear_gradients)
        return window.after_bytes

    def observe_call(self, call: Callable[[], T]) -> tuple[T, Window]:
        """Make a call that is no step; return what it returns, and its window."""
        return self._ledger.observe(call)

    def forget_workspaces(self) -> int:
        """Let go of what libraries keep between steps; return the bytes that they asked for."""
        asked = self._asked(self.device.forget)
        return asked.before_bytes - asked.after_bytes

    def grown_bytes(self) -> int:
        """Return what was asked for and is alive beyond what was before the first step.

        The state of optimizers is left out.
        """
        alive_bytes = self._asked().after_bytes
        blocks = self.marks.resident(self.subject).values()
        state = sum(block.nbytes for block in blocks if block.part == "optimizer_state")
        return alive_bytes - self._there_bytes - state

    def with_elsewhere(self, window: Window) -> Window:
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

    def _renew(self) -> None:
        """Make anew what the next step begins with; where that fails, the step will say so."""
        self._ledger.observe(partial(guarded, self.arm.renew, self.device))

    def _stepping(self, step: Callable[[], T]) -> T:
        """Make a step with the same random numbers as all others."""
        self.numbers.put_back()
        self.steps_made += 1
        return step()

    def _asked(self, call: Callable[[], object] = nothing) -> Span:
        """Return the bytes asked for around a call, which on the CPU are those handed out."""
        _, window = self._ledger.observe(call)
        return window.requested if isinstance(window.requested, Span) else window
