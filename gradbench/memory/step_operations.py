"""What one step makes torch do, counted: operators, graph nodes, bytes saved, bytes added at most.

Counts repeat where times do not. Operators and nodes are of what is dispatched: what a kernel does
inside and what Python does between the operators is in neither. Bytes are those that a run reads.
"""

import gc
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from ..devices import Device, Ledger, OutOfSight, Unreadable, Window, nothing
from ..errors import in_one_line
from ..workloads.arms import CellArm, steps
from ..workloads.state import RandomNumbers
from .call_counts import DETACH, DETACHED
from .measured_step import WARM_UP_STEPS
from .saved_tensors import SavedTensors, unwatched_thread
from .storage_tracker import StorageTracker

T = TypeVar("T")

_UNCOUNTED: Final = ("prim",)
"""Namespaces of operators that ask for facts, as a tensor's device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOperations:
    """One step's counts; None where there is none, of which ``unread`` says why."""

    operators: Mapping[str, int] | None = None  # dispatched, by name
    nodes: int | None = None  # of the graph that were made
    saved_bytes: int | None = None  # most at once, for backward
    peak_bytes: int | None = None  # most that the step adds to what was there before it
    unread: Mapping[str, str] = field(default_factory=dict)  # a count's name -> the reason


def counted_step(device: Device, build: Callable[[], CellArm]) -> tuple[CellArm, StepOperations]:
    """Build a step and make it a few times; return it, and what a warm one makes torch do.

    The peak is ``peak_transient`` as a run reads it, of the third step, without hooks. Which step
    counts, what it draws and when garbage is collected are the same each time, for sizes may depend
    on what is computed: equal code is to come to equal counts.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        gc.collect()  # what was there before must not be freed while steps are counted
        account = _Account(device)
        # in one window, for it takes longer to watch one than to make a step
        (arm, prepare), _ = account.observe(partial(_warmed_up, device, build))
        _, window = account.observe(partial(_finished, arm, device))
        counts = operations_of(arm, prepare=prepare)
    finally:
        if collects:
            gc.enable()
    if window is None:
        return arm, replace(counts, unread={"peak_bytes": account.unread, **counts.unread})
    if "peak_bytes" in counts.unread:  # some of it is out of sight
        return arm, counts
    return arm, replace(counts, peak_bytes=window.peak_bytes - window.before_bytes)


class _Account:
    """A device's ledger for as long as it can be read; what it is to observe runs in any case."""

    def __init__(self, device: Device) -> None:
        self._ledger: Ledger | None = None
        self.unread = ""
        try:
            self._ledger = device.ledger()
        except Unreadable as why:
            self.unread = str(why)

    def observe(self, function: Callable[[], T]) -> tuple[T, Window | None]:
        """Run a function, once; return what it returned, and what was seen of it, if anything."""
        results: list[T] = []
        if self._ledger is not None:
            try:
                _, window = self._ledger.observe(lambda: results.append(function()))
            except Unreadable as why:
                self._ledger, self.unread = None, str(why)
            else:
                return results.pop(), window
        return results.pop() if results else function(), None


def _warmed_up(device: Device, build: Callable[[], CellArm]) -> tuple[CellArm, Callable[[], None]]:
    """Build a step, make it until it is warm, and prepare another; return it, and what prepares."""
    arm = build()
    prepare = partial(_prepare, arm, RandomNumbers(arm.subject.resident()))
    prepare()
    device.forget()
    for _ in range(WARM_UP_STEPS):
        prepare()
        _finished(arm, device)
    gc.collect()  # what is garbage now must not be freed while the next one is counted
    prepare()
    return arm, prepare


def _prepare(arm: CellArm, numbers: RandomNumbers) -> None:
    """Bring about what each step is to begin with."""
    arm.subject.clear_gradients()
    arm.renew()
    numbers.put_back()


def _finished(arm: CellArm, device: Device) -> None:
    steps(arm, 1)
    device.synchronize()


def operations_of(arm: CellArm, *, prepare: Callable[[], object] = nothing) -> StepOperations:
    """Step the arm twice; return what a step makes torch do, but for its peak.

    ``prepare`` is called before each.
    """
    unread: dict[str, str] = {}
    saved_bytes = operators = nodes = None
    prepare()
    try:
        saved_bytes = _saved_bytes(arm)
    except OutOfSight as why:
        unread |= dict.fromkeys(("saved_bytes", "peak_bytes"), str(why))
    except Exception as error:  # noqa: BLE001 # hooks meet any code
        unread["saved_bytes"] = f"its step fails with hooks on what is saved: {in_one_line(error)}"
    prepare()
    try:
        operators, nodes = _dispatched(arm)
    except Exception as error:  # noqa: BLE001 # so do dispatch modes
        unread["operators"] = f"its step fails in a dispatch mode: {in_one_line(error)}"
    return StepOperations(operators=operators, nodes=nodes, saved_bytes=saved_bytes, unread=unread)


def _saved_bytes(arm: CellArm) -> int:
    """Return the bytes saved at once; raise `OutOfSight` where a thread saves that is not seen."""
    recorder = SavedTensors(apart=arm.subject.resident())
    elsewhere: list[nn.Module] = []

    def ran(module: nn.Module, _inputs: object, _output: object) -> None:
        if not recorder.hooks.here:
            elsewhere.append(module)

    looking = register_module_forward_hook(ran)
    try:
        _step(arm, recorder)
    finally:
        looking.remove()
    if elsewhere:
        raise unwatched_thread(f"{type(elsewhere[0]).__name__} runs")
    return recorder.nbytes


def _dispatched(arm: CellArm) -> tuple[Mapping[str, int], int]:
    operators: Counter[str] = Counter()

    def called(func: Any, *_: object) -> None:
        if func.namespace not in _UNCOUNTED:
            operators[str(func) if func is not DETACH else DETACHED] += 1

    before = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined] # of torch's own tracer
    _step(arm, StorageTracker(on_create=lambda _: None, called=called))
    nodes = torch.autograd._get_sequence_nr() - before  # type: ignore[attr-defined] # the same
    return dict(sorted(operators.items())), int(nodes)


def _step(arm: CellArm, watch: AbstractContextManager[object]) -> None:
    with arm.held(), watch:
        arm.step()
