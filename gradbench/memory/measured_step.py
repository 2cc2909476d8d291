"""A step run for real, in a child: where its sizes depend on what it computes."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Final

import torch

from ..call_threads import CallThreads
from ..devices import Device
from ..devices.host_memory import free_bytes
from ..experiment.matrix import Cell
from ..records.allocations import Change, Mark
from ..workloads.arms import build, make_arm, steps
from ..workloads.models import Model
from ..workloads.state import RandomNumbers
from ..workloads.steps import Subject, is_over_the_call
from .child_process import Children
from .fake_model import SHARE
from .module_threads import in_sight
from .outline import Outline
from .resident_blocks import disjoint, live, outside
from .saved_tensors import refuses_hooks
from .step_phases import Marks

WARM_UP_STEPS: Final = 2
"""As many as a measured cell makes before the step whose peak counts."""

REST: Final = -1
"""The key of what was there before and is no parameter, buffer, input or state."""


class TooLargeToRun(Exception):
    """A step that needs more memory than it may take here; the message says how much that is."""


def measured_step(
    cell: Cell, model: Model, children: Children, *, seed: int, with_parts: bool = True
) -> Outline:
    """Return the outline of a warm step that was run in a child; raise whatever it raised.

    Without parts, nothing says what its blocks are for, and it is run once.

    Where its tensors lie in the host's memory, it may take half of what is free: the rest is the
    machine's. A step that needs more raises `TooLargeToRun`.
    """
    device = children.device
    most_bytes = free_bytes() // SHARE if device.tensors_from_malloc else None
    limited = replace(children, most_bytes=most_bytes)
    run = partial(_run, cell, model, device, seed)
    try:
        plain: Outline = limited.run(partial(run, hooked=False))
        return _with_parts(plain, limited, run) if with_parts else plain
    except (RuntimeError, MemoryError) as error:
        if most_bytes is None or not device.out_of_memory(error):
            raise
        raise TooLargeToRun(
            f"it needs more than half of the free memory, {most_bytes:,} B"
        ) from error


def _with_parts(plain: Outline, limited: Children, run: Callable[..., Outline]) -> Outline:
    """Return the step once more with hooks, which say what its blocks are for.

    As it was without where it fails with hooks, or where these change what it allocates.
    """
    try:
        hooked = limited.run(partial(run, hooked=True))
    except RuntimeError as error:
        if not refuses_hooks(str(error)):
            raise
        return plain
    return hooked if _changes(hooked) == _changes(plain) else plain


def _changes(outline: Outline) -> list[int]:
    changes = [entry.nbytes for entry in outline.entries if isinstance(entry, Change)]
    return [outline.before_bytes, *changes]


def _run(
    cell: Cell,
    model: Model,
    device: Device,
    seed: int,
    _say: Callable[[int], None],
    *,
    hooked: bool,
) -> Outline:
    model.load()
    gc.collect()  # what was left to the collector must not be freed while this one counts
    if not device.in_use:
        torch.set_num_threads(min(cell.threads, torch.get_num_threads()))
    ledger = device.ledger()

    def built(_: Callable[[Mark], None]) -> Subject:
        subject = build(cell, model, seed=seed)
        gc.collect()  # or what building left to the collector would be the step's
        return subject

    shared, _, traced = ledger.trace(built)
    marks = Marks(address=lambda storage: storage.data_ptr())
    subject = marks.around(shared)
    # Weights from a mapped file are resident, and the allocator never handed them out.
    elsewhere_bytes = outside(marks.resident(subject), live(traced.entries(device.place)))
    numbers = RandomNumbers(shared.resident())
    arm, _ = ledger.observe(partial(make_arm, cell, subject))

    def step(mark: Callable[[Mark], None]) -> None:
        numbers.put_back()  # a run's memory pass does so before each
        if not hooked:
            steps(arm, 1)
            return
        with marks.telling(mark, subject.parameters()):  # the first says where its state is, too
            steps(arm, 1)

    with _with_its_call(subject), CallThreads(nullcontext) as threads, in_sight(threads):
        for _ in range(WARM_UP_STEPS):
            ledger.observe(arm.renew)
            ledger.observe(partial(step, _unheard))
            ledger.observe(subject.clear_gradients)
    ledger.observe(arm.renew)
    there = marks.resident(subject, arm.provided())
    apart = disjoint(there)
    # In the order in which they are owned: that of addresses is another at each batch size.
    resident = {address: apart[address] for address in there if address in apart}
    _, window, traced = ledger.trace(step)
    entries = traced.entries(device.place)
    window.check(entries)
    before = {address: block.nbytes for address, block in resident.items()}
    there_bytes = window.before_bytes + elsewhere_bytes
    before[REST] = max(0, there_bytes - sum(before.values()))
    return Outline(entries, resident, before)


@contextmanager
def _with_its_call(subject: Subject) -> Iterator[None]:
    """Note on an error over what the module was called with what that was."""
    try:
        yield
    except Exception as error:
        if is_over_the_call(error):
            error.add_note(f"called with {subject.batch}")
        raise


def _unheard(_mark: Mark) -> None:
    """Keep nothing of a mark."""
