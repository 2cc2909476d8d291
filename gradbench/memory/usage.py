"""What one call of anybody's function does to memory: its peak, what it saves, what it leaves."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import devices
from ..devices import Ledger
from ..records.allocations import Change, Entry, Mark, PeakBreakdown, Tag, attribute_peak
from . import leaks
from .called_modules import called_modules
from .saved_tensors import ModuleStack, Saved, paths, users_line
from .storage_tracker import Creation

CALLS = 3  # to see whether something is left each time: the first may fill caches


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call did, beyond what was there before it.

    ``peak_bytes`` is the most that it had allocated at once, ``saved`` what of it autograd saved
    for backward, ``breakdown`` what the peak was made of. ``leaked_bytes`` is what each further
    call leaves behind, None where that was not asked, and ``kept`` who made it.
    """

    breakdown: PeakBreakdown
    saved: tuple[Saved, ...]
    leaked_bytes: int | None = None
    kept: tuple[Creation, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Most bytes that the call had allocated at once."""
        return self.breakdown.peak_bytes

    @property
    def saved_bytes(self) -> int:
        """Bytes that the call allocated and autograd saved, each storage once."""
        return sum(saved.nbytes for saved in self.saved)


@dataclass(frozen=True, slots=True)
class _SavedTag(Tag):
    """Where a block was saved, too."""

    saved: Saved


def memory_usage(
    function: Callable[..., object],
    *args: Any,
    device: str = "cpu",
    leaks_too: bool = False,
    modules: Mapping[str, nn.Module] | None = None,
) -> Usage:
    """Call a function once and return what that did to a device's memory, to the byte.

    With ``leaks_too`` it is called twice more, or as often as it takes to name what is left.
    ``modules`` are those whose paths may be named; without it, those found in the function and
    its arguments. Keyword arguments go in a `functools.partial`. What other Python threads
    allocate is not seen.

    Raise `DeviceUnavailable` without that device, `Unreadable` where this torch's allocator cannot
    be read, and whatever the function raises.
    """
    torch_device = devices.find(device)
    torch_device.check()
    ledger = torch_device.ledger()
    known = dict(modules) if modules is not None else paths(*called_modules(function, args))

    def call() -> None:
        function(*args)

    with ModuleStack(known) as where:
        _, _, entries = ledger.trace(lambda mark: _telling(call, mark, where))
    breakdown = attribute_peak(entries, resident={}, before_bytes=0)
    saved = tuple(_saved(entries))
    if not leaks_too:
        return Usage(breakdown, saved)
    leaked = leaks.growth([_live_after(ledger, call) for _ in range(CALLS)])
    kept: Sequence[Creation] = ()
    if leaked:
        kept, _ = ledger.observe(lambda: leaks.kept(call, lambda: None, known))
    return Usage(breakdown, saved, leaked, tuple(kept))


def _telling(call: Callable[[], None], mark: Callable[[Mark], None], where: ModuleStack) -> None:
    def pack(tensor: Tensor) -> Tensor:
        kept = tensor.detach()  # a node that saves its own output would hold itself for ever
        storage = kept.untyped_storage()
        saved = Saved(
            nbytes=storage.nbytes(),
            shape=tuple(kept.shape),
            dtype=str(kept.dtype).removeprefix("torch."),
            module=where.module,
            line=users_line(),
        )
        mark(_SavedTag(storage.data_ptr(), "saved", saved))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        call()


def _saved(entries: Sequence[Entry]) -> Iterator[Saved]:
    """Yield each block that was allocated here and saved, once."""
    live: dict[int, bool] = {}  # address -> was it saved?
    for entry in entries:
        match entry:
            case Change(address, nbytes, _) if nbytes > 0:
                live[address] = False
            case Change(address, _, _):
                live.pop(address, None)
            case _SavedTag(address, _, saved) if live.get(address) is False:
                live[address] = True
                yield saved


def _live_after(ledger: Ledger, call: Callable[[], None]) -> int:
    def tidy() -> None:
        call()
        gc.collect()  # what only waits for the collector is no leak

    _, window = ledger.observe(tidy)
    return window.after_bytes
