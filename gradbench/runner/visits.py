"""An arm as a pass visits it: from the state that its own first step left, drawing the same."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import torch

from ..devices import Device, nothing
from ..experiment.matrix import Cell
from ..experiment.plan import Plan
from ..lazy_results import not_done
from ..memory.fused_calls import FusedCalls, in_words
from ..records.measurements import Fact
from ..workloads.arms import CellArm
from ..workloads.models import Model
from ..workloads.scripted import with_own_executors
from ..workloads.state import RandomNumbers, Snapshot
from ..workloads.steps import WORKLOADS, Step, Subject
from ..workloads.trees import tensors
from . import ranks
from .attempts import Refusal, attempt, guarded, refusal, try_to_arm, try_to_build
from .compilation import NOTHING, Compilations

DRAWS: Final = "same_random_numbers_of"
"""The note on who was drawn from."""

LONG_TRIAL: Final = 0.02
"""Of a process's time limit: a first step that takes more is not tried a second time."""


@dataclass(slots=True)
class VisitedArm:
    """A cell's arm, what is put back before each visit, and what is to be noted of its figures.

    Once its step has raised, ``failed`` says what. ``after`` is called when a visit is over and its
    mode was left.
    """

    arm: CellArm
    state: Snapshot
    numbers: RandomNumbers
    notes: dict[str, Fact] = field(default_factory=dict)
    failed: Refusal | None = None
    after: Callable[[], object] = nothing
    first_ns: int = 0  # what its first step took
    compilations: Compilations = NOTHING  # in its first steps

    @property
    def cell(self) -> Cell:
        """The arm's cell."""
        return self.arm.cell

    @property
    def step(self) -> Step:
        """The arm's step."""
        return self.arm.step

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put back what the others may have changed, then hold the mode."""
        self.numbers.put_back()
        if self.state.forget():  # to fill it anew is no part of the time of a visit
            self.state.put_back()
            with self.arm.held():
                self.arm.step()
            self.numbers.put_back()
        self.state.put_back(forgetting=False)
        with self.arm.held():
            yield
        self.after()


class Start:
    """The state of a subject that was just built: each of its arms takes its first step there."""

    def __init__(
        self,
        subject: Subject,
        cell: Cell,
        device: Device,
        *,
        limit_s: float,
        rebuild: Callable[[], Subject | Refusal] | None = None,
    ) -> None:
        self._subject, self._device, self._limit_s = subject, device, limit_s
        self._rebuild = rebuild  # for modes that are each given a subject of their own
        self._built = _snapshot(subject, cell)
        self.numbers = RandomNumbers(subject.resident())

    def subject(self) -> Subject | Refusal:
        """Return the subject as it was built, for one mode to step it."""
        if self._rebuild is not None:
            return self._rebuild()
        self.numbers.put_back()
        self._built.put_back()
        return guarded(partial(_in_its_own_mode, self._subject), self._device)

    def first_steps(self, cell: Cell, *, count: int = 1) -> VisitedArm | Refusal:
        """Return the cell's arm after its first steps, or why they cannot be made."""
        subject = self.subject()
        if isinstance(subject, Refusal):
            return subject
        arm = try_to_arm(cell, subject, self._device)
        if isinstance(arm, Refusal):
            return arm
        compiled, began = Compilations.so_far(), time.monotonic()
        refused = attempt(arm, self._device, count, put_back=self._rebuild or self._built.put_back)
        if refused is not None:
            return refused
        took_s = ranks.largest("first steps took", (time.monotonic() - began) / count)
        state = _snapshot(subject, cell, since=self._built)
        visited = VisitedArm(arm, state, self.numbers, dict(subject.notes))
        if took_s <= LONG_TRIAL * self._limit_s:
            notes = guarded(partial(watched_step, arm, self._device), self._device)
            if isinstance(notes, Refusal):
                return notes
            visited.notes |= notes
            unlike = guarded(arm.check, self._device)
            if isinstance(unlike, Refusal):
                return unlike
            visited.state.look()
        visited.first_ns = round(took_s * 1e9)
        visited.compilations = Compilations.so_far().since(compiled)
        self.numbers.look()
        return visited


def _snapshot(subject: Subject, cell: Cell, *, since: Snapshot | None = None) -> Snapshot:
    """Keep the state of a cell's subject and batch.

    Of a subject that other modes do not step the batch alone: torch replaces the parameters of what
    it shards within a step, and knows where it is with them.
    """
    batch = subject.batch
    # Those in Python's own containers, too, into which a snapshot does not look.
    found = (tensor for _, tensor in tensors(subject.given))
    parts = subject.parts() if WORKLOADS[cell.workload].one_subject else []
    given = [*found, batch.args, batch.kwargs, batch.target]
    return Snapshot(parts, given=given, since=since)


def restorer(
    subject: Subject,
    cell: Cell,
    rebuild: Callable[[], Subject | Refusal],
    *,
    on_host: bool = False,
) -> Callable[[], object]:
    """Return what brings a subject back to what it is now, or what builds another like it.

    With ``on_host`` the copies that are kept for it lie on the host.
    """
    if not WORKLOADS[cell.workload].one_subject:
        return rebuild
    return Snapshot(subject.parts(), on_host=on_host).put_back


def _in_its_own_mode(subject: Subject) -> Subject:
    """Return the subject as one mode steps it: what TorchScript learns in it stays in it."""
    if subject.forward is not subject.module or subject.cut is not None:
        return subject
    module = with_own_executors(subject.module)
    return replace(subject, module=module, forward=module)


def start(cell: Cell, model: Model, device: Device, plan: Plan) -> Start | Refusal:
    """Build a block's subject; return it with its state, or why that is impossible."""
    rebuild = partial(try_to_build, cell, model, device, seed=plan.seed)
    subject = rebuild()
    if isinstance(subject, Refusal):
        return subject
    own = None if WORKLOADS[cell.workload].one_subject else rebuild
    begin = partial(Start, subject, cell, device, limit_s=plan.limit_s, rebuild=own)
    return guarded(begin, device)


def share_numbers(arms: Sequence[VisitedArm], start: Start) -> RandomNumbers:
    """Let the arms put back only what some of them draws from, which is noted; return that."""
    used = start.numbers.used()
    for arm in arms:
        arm.numbers = used
        arm.notes |= drawn(start.numbers)
    return used


def drawn(numbers: RandomNumbers) -> dict[str, Fact]:
    """Return as a note who was drawn from: each mode was given the same of these numbers."""
    return {DRAWS: ", ".join(numbers.drawn_from)} if numbers.drawn_from else {}


def losing(
    arms: Sequence[VisitedArm], device: Device, when: str
) -> Callable[[int, BaseException], None]:
    """Return what notes of an arm that it raised."""

    def lost(index: int, error: BaseException) -> None:
        why = refusal(error, device)
        ranks.agree(f"{arms[index].cell.grad_mode} is lost", refused=why.reason)
        arms[index].failed = why._replace(reason=f"{why.reason} ({when})")

    return lost


def watched_step(arm: CellArm, device: Device) -> dict[str, Fact]:
    """Make one step; return what its figures do not show of themselves."""
    notes: dict[str, Fact] = {}
    with arm.held():
        grad = torch.is_grad_enabled()
        with FusedCalls() as fused:
            returned = arm.step()
        if torch.is_grad_enabled() != grad:
            notes["grad_left"] = "off" if grad else "on"
    device.synchronize()
    recorded = arm.mode.records or arm.workload.reenables
    if words := in_words(fused.counts, *arm.subject.parts(), recorded=recorded):
        notes["fused_attention"] = words
    if not arm.workload.optimizes and arm.subject.module.training:
        notes["stays_in_training"] = "it does not heed eval()"
    if not arm.workload.optimizes and (lazy := _nothing_in(returned)):
        notes["nothing_computed"] = lazy
    return notes


def _nothing_in(returned: object) -> str:
    """Return what a forward returned that is no result of a computation, or ``""``."""
    if returned is None:
        return "forward returned None"
    lazy = not_done(returned)
    return f"forward returned {lazy}" if lazy else ""
