"""What an accelerator's memory is held against: known blocks, torch's counters, its traces."""

from collections.abc import Iterator
from typing import Any, Final

import torch

from ..devices import Allocator, Device, Ledger, Span, Unreadable, Window, balance, nothing
from ..experiment.matrix import Cell
from ..records.allocations import Change
from ..records.selfcheck import Check
from ..runner.attempts import refusal
from ..runner.fork_server import MallocProfile
from ..workloads.arms import build, make_arm, steps
from ..workloads.models import MODELS

MIB: Final = 2**20
BLOCKS: Final = tuple(round(mib * MIB) for mib in (1e-6, 5e-4, 0.9, 1.1, 9.7, 10.3, 19.5, 21.4))
"""Around every size at which torch's caching allocator does something else."""
SPLITS: Final = tuple(round(mib * MIB) for mib in (0.3, 3.0, 0.1, 12.0, 2.5))
"""What is then cut from the blocks that are free again."""
TOO_MUCH: Final = 2**50
TRACED: Final = (
    ("mlp_tiny", "inference", "no_grad"),
    ("mlp_tiny", "training", "global_on"),
    ("cnn_small", "training", "global_on"),
)


def known_blocks(device: Device) -> Iterator[Check]:
    """Ask for blocks of known sizes, give them back, and ask for others that fit in their place."""
    ledger, model = device.ledger(), device.allocator()
    kept: dict[int, torch.Tensor] = {}

    def taken() -> None:
        for key, nbytes in enumerate(BLOCKS):
            kept[key] = _block(device, nbytes)
        for key in range(0, len(BLOCKS), 2):
            del kept[key]
        for key, nbytes in enumerate(SPLITS, start=len(BLOCKS)):
            kept[key] = _block(device, nbytes)

    _, window = ledger.observe(taken)
    yield _asked_for(window)
    yield _handed_out(window, model)
    kept.clear()
    _, window = ledger.observe(nothing)
    yield _bytes("blocks given back", window.after_bytes - window.before_bytes, "left")


def _asked_for(window: Window) -> Check:
    name = "bytes asked for, of known blocks"
    if isinstance(window.requested, Unreadable):
        return Check.unreadable(name, str(window.requested))
    changes = [*BLOCKS, *(-nbytes for nbytes in BLOCKS[::2]), *SPLITS]
    peak, end = balance(0, changes)
    grown: Span = window.requested
    off = (
        grown.peak_bytes - grown.before_bytes - peak,
        grown.after_bytes - grown.before_bytes - end,
    )
    return _bytes(name, max(map(abs, off)), f"off a peak of {peak:,} B and an end of {end:,} B")


def _handed_out(window: Window, model: Allocator) -> Check:
    """Let a model of the allocator do the same: its rounding and splitting must be the device's."""
    for key, nbytes in enumerate(BLOCKS):
        model.take(key, nbytes)
    for key in range(0, len(BLOCKS), 2):
        model.give(key)
    for key, nbytes in enumerate(SPLITS, start=len(BLOCKS)):
        model.take(key, nbytes)
    grown = window.peak_bytes - window.before_bytes
    return _bytes(
        "bytes handed out, of known blocks",
        grown - model.peak_bytes,
        f"off a peak of {model.peak_bytes:,} B, rounding and splitting as torch does",
    )


def counters(device: Device) -> Iterator[Check]:
    """Hold a window of the ledger against what `torch.accelerator` says of the same moment."""
    ledger, index = device.ledger(), torch.device(device.place).index

    def comes_and_goes() -> torch.Tensor:
        kept = _block(device, 3 * MIB)
        del kept
        return _block(device, MIB)

    block, window = ledger.observe(comes_and_goes)
    accelerator: Any = torch.accelerator  # its memory functions have no types yet
    for name, own, counted in (
        ("live bytes", window.after_bytes, accelerator.memory_allocated),
        ("peak", window.peak_bytes, accelerator.max_memory_allocated),
        ("reserved bytes", window.reserved_bytes, accelerator.max_memory_reserved),
    ):
        title = f"ledger against torch.accelerator: {name}"
        if isinstance(own, Unreadable):
            yield Check.unreadable(title, str(own))
        else:
            yield _bytes(title, own - int(counted(index)), f"between {own:,} B and torch's count")
    del block


def workspaces(device: Device) -> Iterator[Check]:
    """See that what libraries keep is taken once, and that it can be dropped."""
    ledger = device.ledger()
    ledger.observe(device.forget)
    _, first = ledger.observe(device.warm_up)
    _, again = ledger.observe(device.warm_up)
    _, dropped = ledger.observe(device.forget)
    kept = first.after_bytes - first.before_bytes
    more = again.after_bytes - again.before_bytes
    yield _bytes(
        "workspaces of libraries: second use", more, f"more than the {kept:,} B of the first"
    )
    left = dropped.after_bytes - first.before_bytes
    yield _bytes("workspaces of libraries: dropped", left, f"left of {kept:,} B")


def traces(device: Device) -> Iterator[Check]:
    """Hold the peak and the end that a step's trace leads to against the allocator's counters."""
    ledger = device.ledger()
    for model, workload, mode in TRACED:
        cell = Cell(
            model=model, workload=workload, grad_mode=mode, batch_size=8, device=device.name
        )
        off, window = _trace_off(cell, device, ledger)
        yield _bytes(
            f"trace against the counted peak: {model} {workload}",
            off,
            f"off a peak of {window.peak_bytes:,} B or an end of {window.after_bytes:,} B",
        )


def _trace_off(cell: Cell, device: Device, ledger: Ledger) -> tuple[int, Window]:
    arm = make_arm(cell, build(cell, MODELS[cell.model], seed=0))
    steps(arm, 2)
    _, window, traced = ledger.trace(lambda _mark: steps(arm, 1))
    entries = traced.entries(device.place)
    changes = [entry.nbytes for entry in entries if isinstance(entry, Change)]
    peak, end = balance(window.before_bytes, changes)
    return max(abs(peak - window.peak_bytes), abs(end - window.after_bytes)), window


def memory_runs_out(device: Device) -> Iterator[Check]:
    """Ask for more than any device has: the error must be recognised, and leave nothing behind."""
    ledger = device.ledger()
    _, before = ledger.observe(nothing)
    try:
        _block(device, TOO_MUCH)
    except Exception as error:  # noqa: BLE001 # whatever the device raises is what is looked at
        cause, words, _ = refusal(error, device)
        recognised = cause == "out_of_memory"
    else:
        recognised, words = False, f"{TOO_MUCH:,} B were handed out"
    first = words.partition(". ")[0]
    yield Check("out of memory: recognised", int(recognised), "of 1", first, "1", recognised)
    block, after = ledger.observe(lambda: _block(device, MIB))
    del block
    kept = after.before_bytes - before.after_bytes
    yield _bytes("out of memory: recovered", kept, "left behind; 1 MiB could be had afterwards")


def _block(device: Device, nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device=device.place)


def _bytes(name: str, off: int, detail: str) -> Check:
    return Check(name, float(off), "bytes", detail, "0 B", off == 0)


def starts(kind: MallocProfile, device: Device) -> Iterator[Check]:
    """Send numbers to the device and back: a process that may not use it says so here."""
    sent = torch.arange(1000.0)
    same = bool(torch.equal(sent.to(device.place).cpu(), sent))
    yield Check(
        f"the device starts, in a process of the kind {kind}",
        int(same),
        "of 1",
        "1,000 numbers went and came back",
        "1",
        same,
    )


def left_alone(device: Device) -> Iterator[Check]:
    """Take a CPU step with AdamW, which asks for an accelerator: none may be started by it."""
    cell = Cell(
        model="mlp_tiny",
        workload="training",
        grad_mode="global_on",
        batch_size=8,
        optimizer="adamw",
    )
    steps(make_arm(cell, build(cell, MODELS[cell.model], seed=0)), 2)
    started = device.in_use
    words = "two steps with AdamW, as the CPU's cells make them"
    yield Check(
        "a CPU cell starts no accelerator", int(started), "started", words, "0", not started
    )
