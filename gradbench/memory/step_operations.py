"""What one step makes torch do, counted: operators, graph nodes, bytes saved and bytes at most.

Counts repeat where times do not. They are of what is dispatched: what a kernel allocates inside
and what Python does between the operators is in none of them.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import torch

from ..workloads.arms import CellArm
from .call_counts import DETACH, DETACHED
from .saved_tensors import SavedTensors
from .storage_tracker import Creation, StorageTracker

_UNCOUNTED: Final = ("prim",)
"""Namespaces of operators that ask for facts, as a tensor's device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOperations:
    """One step's counts; None where code fails with hooks or modes."""

    operators: Mapping[str, int] | None = None  # dispatched, by name
    nodes: int | None = None  # of the graph that were made
    peak_bytes: int | None = None  # most that tensors made in the step held at once
    saved_bytes: int | None = None  # most at once, for backward


def operations_of(arm: CellArm) -> StepOperations:
    """Step the arm twice; return what a step makes torch do."""
    saved = _read(lambda: _saved_bytes(arm))
    dispatched = _read(lambda: _dispatched(arm))
    operators, nodes, peak_bytes = dispatched if dispatched is not None else (None, None, None)
    return StepOperations(
        operators=operators, nodes=nodes, peak_bytes=peak_bytes, saved_bytes=saved
    )


def _saved_bytes(arm: CellArm) -> int:
    recorder = SavedTensors(apart=arm.subject.resident())
    _step(arm, recorder)
    return recorder.nbytes


def _dispatched(arm: CellArm) -> tuple[Mapping[str, int], int, int]:
    operators: Counter[str] = Counter()
    live, most = 0, 0

    def called(func: Any, *_: object) -> None:
        if func.namespace not in _UNCOUNTED:
            operators[str(func) if func is not DETACH else DETACHED] += 1

    def created(creation: Creation) -> None:
        nonlocal live, most
        live += creation.nbytes
        most = max(most, live)

    def freed(creation: Creation) -> None:
        nonlocal live
        live -= creation.nbytes

    before = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined] # of torch's own tracer
    _step(arm, StorageTracker(on_create=created, on_free=freed, called=called))
    nodes = torch.autograd._get_sequence_nr() - before  # type: ignore[attr-defined] # the same
    return dict(sorted(operators.items())), int(nodes), most


def _step(arm: CellArm, watch: AbstractContextManager[object]) -> None:
    with arm.held(), watch:
        arm.step()


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:  # noqa: BLE001 # hooks and modes meet any code: then there is no count
        return None
