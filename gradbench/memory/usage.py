"""What one call of anybody's function does to memory: its peak, what it saves, what it leaves."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from .. import devices
from ..devices import Device, Ledger, Trace
from ..errors import WrongDevice
from ..records.allocations import Change, Entry, Mark, PeakBreakdown, Tag, attribute_peak
from . import leaks
from .called_modules import called_modules
from .saved_tensors import ModuleStack, Saved, paths, users_line
from .storage_tracker import Creation

AUTO: Final = "auto"
CPU: Final = "cpu"
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
    device: str = "auto",
    leaks_too: bool = False,
    modules: Mapping[str, nn.Module] | None = None,
) -> Usage:
    """Call a function once and return what that did to a device's memory, to the byte.

    ``device`` is by itself the accelerator on which the call allocates, or the CPU where it uses
    none. What is saved for backward counts on every device.

    With ``leaks_too`` it is called twice more, or as often as it takes to name what is left.
    ``modules`` are those whose paths may be named; without it, those found in the function and
    its arguments. Keyword arguments go in a `functools.partial`. What other Python threads
    allocate is not seen.

    Raise `DeviceUnavailable` without that device, `WrongDevice` where the call worked on another
    than was named, `Unreadable` where this torch's allocator cannot be read, and whatever the
    function raises.
    """
    looked_at = devices.in_use() if device == AUTO else devices.find(device)
    looked_at.check()
    looked_at.warm_up()  # or the first call of a process would seem to take the workspaces
    ledger = looked_at.ledger(undisturbing=True)
    known = dict(modules) if modules is not None else paths(*called_modules(function, args))

    def call() -> None:
        function(*args)

    with ModuleStack(known) as where:
        _, window, traced = ledger.trace(lambda mark: _telling(call, mark, where))
    worked_on = _worked_on(traced, looked_at, named=device != AUTO)
    if worked_on.place == looked_at.place:
        window.check(traced.entries(looked_at.place))
    else:
        ledger = worked_on.ledger(undisturbing=True)
    entries = list(_own(traced.entries(worked_on.place)))
    breakdown = attribute_peak(entries, resident={}, before_bytes=0)
    saved = tuple(_saved([entry for _, entry in traced.moments]))
    if not leaks_too:
        return Usage(breakdown, saved)
    leaked = leaks.growth([_live_after(ledger, call) for _ in range(CALLS)])
    kept: Sequence[Creation] = ()
    if leaked:
        kept, _ = ledger.observe(lambda: leaks.kept(call, lambda: None, known))
    return Usage(breakdown, saved, leaked, tuple(kept))


def _worked_on(traced: Trace, looked_at: Device, *, named: bool) -> Device:
    """Return the device that a call is judged by; raise `WrongDevice` where that is another."""
    allocated = traced.allocated()
    accelerators = sorted(place for place in allocated if place != CPU)
    if not named:
        if len(accelerators) > 1:
            raise WrongDevice(f"the call works on {' and '.join(accelerators)}: name one as device")
        return devices.find(accelerators[0] if accelerators else CPU)
    elsewhere = [place for place in accelerators if place != looked_at.place]
    if not elsewhere and looked_at.place not in allocated:
        elsewhere = sorted(allocated)
    if elsewhere:
        raise WrongDevice(
            f"the call works on {elsewhere[0]}, where it allocates {allocated[elsewhere[0]]:,} B, "
            f"and device={looked_at.name!r} was named: name that one, or none"
        )
    return looked_at


def _own(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the entries without frees of blocks that were there before: they are not the call's."""
    live: set[int] = set()
    for entry in entries:
        match entry:
            case Change(address, nbytes, _) if nbytes > 0:
                live.add(address)
            case Change(address, _, _):
                if address not in live:
                    continue
                live.remove(address)
        yield entry


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
