"""A caching allocator's counters as a ledger: several backends keep them under the same names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch

from ..records.allocations import Change, Mark
from . import Span, Trace, Unreadable, Window, balance
from .trace import trace

T = TypeVar("T")

PROOF_BYTES: Final = 1024
ALLOCATED, REQUESTED, RESERVED = "allocated_bytes", "requested_bytes", "reserved_bytes"


@dataclass(frozen=True, slots=True)
class AllocatorLedger:
    """The caching allocator's counters; it needs no watching between windows."""

    device: torch.device
    memory: Any  # torch.cuda, torch.xpu or torch.accelerator: their functions have the same names

    def stats(self) -> Mapping[str, int]:
        """Return the counters, all queued work done."""
        self.memory.synchronize(self.device)
        counters: Mapping[str, int] = self.memory.memory_stats(self.device)
        return counters

    def observe(self, function: Callable[[], T]) -> tuple[T, Window]:
        """Run the function between a reset of the peaks and a synchronized reading of them."""
        self.memory.synchronize(self.device)
        self.memory.empty_cache()  # or earlier steps' cached blocks would count as reserved here
        self.memory.reset_peak_memory_stats(self.device)
        before = self.stats()
        result = function()
        after = self.stats()
        return result, Window(
            _current(before, ALLOCATED),
            _peak(after, ALLOCATED),
            _current(after, ALLOCATED),
            _peak(after, RESERVED),
            Span(_current(before, REQUESTED), _peak(after, REQUESTED), _current(after, REQUESTED)),
            retries=_retries(after) - _retries(before),
        )

    def trace(self, function: Callable[[Callable[[Mark], None]], T]) -> tuple[T, Window, Trace]:
        """Do the same under the profiler, whose events are of the allocator's own rounded sizes."""
        (result, traced), window = self.observe(lambda: trace(function))
        return result, window, traced


@dataclass(frozen=True, slots=True)
class TracedLedger(AllocatorLedger):
    """The same account without a reset: the process's peaks and cache are somebody else's.

    Peaks come from the trace, and only where it began and ended from the counters.
    """

    def observe(self, function: Callable[[], T]) -> tuple[T, Window]:
        """Run the function and return what its trace says."""
        result, window, _ = self.trace(lambda _: function())
        return result, window

    def trace(self, function: Callable[[Callable[[Mark], None]], T]) -> tuple[T, Window, Trace]:
        """Run the function under the profiler, between two readings of what is live."""
        before = self.stats()
        result, traced = trace(function)
        after = self.stats()
        live = _current(before, ALLOCATED)
        entries = traced.entries(str(self.device))
        peak, _ = balance(live, (entry.nbytes for entry in entries if isinstance(entry, Change)))
        unknown = Unreadable("the process's own statistics are left as they are")
        return (
            result,
            Window(live, peak, _current(after, ALLOCATED), unknown, unknown),
            traced,
        )


def _current(stats: Mapping[str, int], what: str) -> int:
    return int(stats.get(f"{what}.all.current", 0))


def _peak(stats: Mapping[str, int], what: str) -> int:
    return int(stats.get(f"{what}.all.peak", 0))


def _retries(stats: Mapping[str, int]) -> int:
    return int(stats.get("num_alloc_retries", 0)) + int(stats.get("num_ooms", 0))


def proved(ledger: AllocatorLedger, about: str) -> None:
    """Raise `Unreadable`, with what is known ``about`` the allocator, unless it counts a block."""
    before = ledger.stats()
    block = torch.empty(PROOF_BYTES, dtype=torch.uint8, device=ledger.device)
    after = ledger.stats()
    del block
    grown = [_current(after, what) - _current(before, what) for what in (ALLOCATED, REQUESTED)]
    reserved = _current(after, RESERVED)
    if grown != [PROOF_BYTES, PROOF_BYTES] or reserved < PROOF_BYTES:
        raise Unreadable(
            f"{PROOF_BYTES} bytes were counted as {grown[0]} allocated and {grown[1]} asked for, "
            f"of {reserved} reserved: allocator {about}"
        )
