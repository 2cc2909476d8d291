"""A step run for real at a small batch, in a fork: where its sizes depend on what it computes."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Final

import torch

from ..devices import Device
from ..experiment.matrix import Cell
from ..records.allocations import Entry, Mark
from ..workloads.arms import build, make_arm, steps
from ..workloads.models import Model
from ..workloads.steps import Subject
from .apart import apart
from .outline import Outline
from .step_phases import Marks

WARM_UP_STEPS: Final = 2
"""As many as a measured cell makes before the step whose peak counts."""

REST: Final = -1
"""The key of what was there before and is no parameter, buffer, input or state."""


def measured_step(cell: Cell, model: Model, device: Device, *, seed: int) -> Outline:
    """Return the outline of a warm step that was run in a child; raise whatever it raised."""
    return apart(partial(_run, cell, model, device, seed), device)


def _built(cell: Cell, model: Model, seed: int) -> Subject:
    subject = build(cell, model, seed=seed)
    gc.collect()  # or what building left to the collector would be the step's
    return subject


def _run(
    cell: Cell, model: Model, device: Device, seed: int, _say: Callable[[int], None]
) -> Outline:
    model.load()
    if not device.in_use:
        torch.set_num_threads(min(cell.threads, torch.get_num_threads()))
    ledger = device.ledger()
    shared, _ = ledger.observe(partial(_built, cell, model, seed))
    marks = Marks(address=lambda storage: storage.data_ptr())
    subject = marks.around(shared)
    arm, _ = ledger.observe(partial(make_arm, cell, subject))

    def warm_up() -> None:
        with marks.telling(lambda _: None, subject.parameters()):
            steps(arm, 1)  # the hooks of its optimizer say where its state is
        steps(arm, WARM_UP_STEPS - 1)
        subject.clear_gradients()

    def marked(mark: Callable[[Mark], None]) -> None:
        with marks.telling(mark, subject.parameters()):
            steps(arm, 1)

    ledger.observe(warm_up)
    resident = marks.resident(subject)
    _, window, traced = ledger.trace(marked)
    entries: list[Entry] = traced.entries(device.place)
    window.check(entries)
    before = {key: block.nbytes for key, block in resident.items()}
    # Weights from a mapped file are resident, and the allocator never handed them out.
    before[REST] = max(0, window.before_bytes - sum(before.values()))
    return Outline(entries, resident, before)
