"""What a subject's steps leave alive: bytes that each of them adds, and what is left once."""

import gc
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from ..devices import Unreadable
from ..memory import leaks, left_behind
from ..memory.saved_tensors import paths
from ..memory.storages import key, storages
from ..records.measurements import Fact
from ..workloads.arms import steps
from . import ranks
from .attempts import Refusal, guarded
from .observed_subject import ObservedSubject
from .outcomes import Figure


@dataclass(frozen=True, slots=True)
class Grown:
    """Bytes alive beyond those before the first step, and after how many steps that was."""

    nbytes: int
    steps: int

    @classmethod
    def of(cls, observed: ObservedSubject) -> Self:
        """Return what a subject has grown by so far."""
        return cls(observed.grown_bytes(), observed.steps_made)

    def without_garbage(self, observed: ObservedSubject, leaked: Figure | Unreadable) -> Self:
        """Return the same without what was only waiting for the collector.

        ``leaked`` is what every step adds.
        """
        if self.nbytes <= 0:
            return self
        observed.observe_call(gc.collect)
        each = leaked.value if isinstance(leaked, Figure) else 0
        now = observed.grown_bytes() - each * (observed.steps_made - self.steps)
        return replace(self, nbytes=min(self.nbytes, now))


def leaked(observed: ObservedSubject, live: list[int]) -> Figure | Unreadable:
    """Return the bytes that each step adds, and who made them.

    ``live`` are the bytes that were live after each of the steps so far, gradients put away; where
    they grow, more steps are made.
    """
    if not ranks.any_of("memory grew", bool(leaks.growth(live))):
        return Figure(0)
    for _ in range(leaks.STEPS):  # what only waits for the collector is no leak
        refused, _ = observed.observe_step(observed.step)
        if refused is not None:
            return Unreadable(f"in one of its later steps: {refused.reason}")
        observed.rest()
        _, window = observed.observe_call(gc.collect)
        live.append(window.after_bytes)
    nbytes = leaks.growth(live[-leaks.STEPS :])
    if not ranks.any_of("memory leaks", bool(nbytes)):
        return Figure(0)
    subject, arm = observed.subject, observed.arm
    with arm.held():
        look = partial(leaks.kept, arm.step, subject.clear_gradients, paths(*subject.parts()))
        births, _ = observed.observe_call(partial(guarded, look, observed.device))
    observed.steps_made += leaks.STEPS
    if isinstance(births, Refusal) or not nbytes:
        return Figure(nbytes)
    return Figure(nbytes, {"kept": leaks.named(births)})


def kept_after_first(observed: ObservedSubject, nbytes: int) -> Figure:
    """Return so many bytes that the first step left, and who keeps them; then it is built again."""
    if not ranks.any_of("something is kept", nbytes > 0):
        return Figure(0)
    names = _names_of_kept(observed, nbytes)
    return Figure(nbytes, names) if nbytes > 0 else Figure(0)


def _names_of_kept(observed: ObservedSubject, nbytes: int) -> dict[str, Fact]:
    """Watch two steps of another subject; return as a note who keeps so many bytes."""
    if (observed.build_again() or observed.make_arm()) is not None:
        return {}

    def two_steps() -> None:
        for _ in range(2):
            observed.numbers.put_back()
            steps(observed.arm, 1)
            observed.subject.clear_gradients()

    def state() -> set[int]:
        return {key(one) for tensor in observed.marks.state() for one in storages(tensor)}

    look = partial(left_behind.left_by, two_steps, observed.subject.parts(), apart=state)
    with observed.marks.learning_optimizers():
        left = guarded(look, observed.device)
    if isinstance(left, Refusal):
        return {}
    missing = nbytes - left.nbytes
    once = f"{missing:,} B that are made once for the process" if missing > 0 else ""
    return {"kept": "; ".join(filter(None, (left_behind.in_words(left.made), once)))}
