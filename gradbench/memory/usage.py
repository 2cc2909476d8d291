"""What one call of anybody's function does to memory: its peak, what it saves, what it leaves."""

import gc
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Self

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from .. import devices
from ..devices import Device, Ledger, Trace, Unreadable
from ..errors import GradbenchError, WrongDevice
from ..lazy_results import check_done
from ..records.allocations import Change, Entry, Mark, PeakBreakdown, Tag, attribute_peak
from . import leaks
from .called_modules import called_modules
from .leaves import has_graph, kept_unsaved
from .saved_tensors import (
    AliveAtOnce,
    ModuleFrames,
    Packed,
    Saved,
    paths,
    refuses_hooks,
    saving_hooks,
    users_line,
)
from .storage_tracker import Creation
from .storages import shape, storages

AUTO: Final = "auto"
CPU: Final = "cpu"
CALLS = 3  # to see whether something is left each time: the first may fill caches


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call did, beyond what was there before it.

    ``peak_bytes`` is the most that it had allocated at once, ``breakdown`` what that was made of.
    ``leaked_bytes`` is what each further call leaves behind, None where that was not asked, and
    ``kept`` who made it.
    """

    peak_bytes: int
    breakdown: PeakBreakdown
    seen: "SavedByCall | Unreadable"
    leaked_bytes: int | None = None
    kept: tuple[Creation, ...] = ()

    @property
    def saved(self) -> tuple[Saved, ...]:
        """What the call allocated and autograd saved, at once when that was most.

        Raise `Unreadable` where a graph was built out of sight.
        """
        if isinstance(self.seen, Unreadable):
            raise self.seen
        return self.seen.at_once

    @property
    def saved_bytes(self) -> int:
        """Most bytes that were saved at once, each storage once; raise `Unreadable`."""
        return sum(saved.nbytes for saved in self.saved)

    @property
    def saved_in_total_bytes(self) -> int:
        """Bytes of all that was saved, at once or one after the other; raise `Unreadable`."""
        if isinstance(self.seen, Unreadable):
            raise self.seen
        return self.seen.total_bytes


@dataclass(frozen=True, slots=True)
class SavedByCall:
    """What autograd saved of a call's own allocations."""

    at_once: tuple[Saved, ...]
    total_bytes: int


@dataclass(frozen=True, slots=True)
class _SavedTag(Tag):
    """Where a block was saved, too."""

    saved: Saved


@dataclass(frozen=True, slots=True)
class _ReleasedTag(Tag):
    """The graph lets go of a block; its part is what it was."""


def memory_usage(
    function: Callable[..., object],
    *args: Any,
    device: str = "auto",
    leaks_too: bool = False,
    modules: Mapping[str, nn.Module] | None = None,
) -> Usage:
    """Call a function and return what that did to a device's memory, to the byte.

    It is called once as it is, for its peak, and once more with hooks that see what autograd
    saves, which some code does not suffer; with ``leaks_too`` three times more, or as often as it
    takes to name what is left.

    ``device`` is by itself the accelerator on which the call allocates, or the CPU where it uses
    none. What is saved for backward counts on every device.

    ``modules`` are those whose paths may be named; without it, those found in the function and
    its arguments. Keyword arguments go in a `functools.partial`. What other Python threads
    allocate is not seen.

    Raise `DeviceUnavailable` without that device, `WrongDevice` where the call worked on another
    than was named, `LazyResult` where it returned a generator, a coroutine or another iterator,
    whose work has not run, `Unreadable` where this torch's allocator cannot be read, and whatever
    the function raises.
    """
    known = dict(modules) if modules is not None else paths(*called_modules(function, args))
    return CallMeter(partial(function, *args), device=device, modules=known).usage(leaks_too)


class CallMeter:
    """Reads one call's figures, each from calls of its own."""

    def __init__(
        self, function: Callable[[], object], *, device: str, modules: Mapping[str, nn.Module]
    ) -> None:
        self._function, self._modules, self._named = function, modules, device != AUTO
        self._called = False  # has it come to its end?
        self._device = devices.in_use() if device == AUTO else devices.find(device)
        self._device.check()
        self._device.warm_up()  # or the first call of a process would seem to take the workspaces
        self._ledger = self._device.ledger(undisturbing=True)

    def usage(self, leaks_too: bool) -> Usage:
        """Return all figures."""
        plain = self.plain()
        hooked, seen = self.hooked()
        breakdown = hooked if hooked and hooked.peak_bytes == plain.peak_bytes else plain
        leaked, kept = self.leaks() if leaks_too else (None, ())
        return Usage(plain.peak_bytes, breakdown, seen, leaked, kept)

    def only(self, figure: Literal["peak", "saved"], *, leaks_too: bool) -> Usage:
        """Return one of the figures, from one call, and the other from it as far as it goes."""
        seen: SavedByCall | Unreadable
        if figure == "peak":
            parts, seen = self.plain(), Unreadable("it was not asked for")
        else:
            hooked, seen = self.hooked()
            parts = hooked or self.plain()
        leaked, kept = self.leaks() if leaks_too else (None, ())
        return Usage(parts.peak_bytes, parts, seen, leaked, kept)

    def named(self, usage: Usage) -> Usage:
        """Return the usage with what of its peak was saved, if a hooked call has the same peak."""
        hooked, _ = self.hooked()
        same = hooked is not None and hooked.peak_bytes == usage.peak_bytes
        return replace(usage, breakdown=hooked) if same and hooked else usage

    def plain(self) -> PeakBreakdown:
        """Call it as it is; return its peak by operator."""
        own, _ = self._entries(lambda _: self._call())
        return attribute_peak(own, resident={}, before_bytes=0)

    def hooked(self) -> "tuple[PeakBreakdown | None, SavedByCall | Unreadable]":
        """Call it with hooks on what is saved; return the peak and what was seen."""
        watch = _GraphWatch()
        try:
            own, everywhere = self._entries(lambda mark: self._telling(mark, watch))
        except (GradbenchError, Unreadable):
            raise
        except Exception as error:
            if not (self._called or refuses_hooks(str(error))):
                raise
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            return None, Unreadable(f"with hooks on what autograd saves: {words}")
        seen = _saved(everywhere)
        blind = watch.blind_spot(seen.total_bytes)
        parts = attribute_peak(own, resident={}, before_bytes=0)
        return parts, Unreadable(blind) if blind else seen

    def leaks(self) -> tuple[int, tuple[Creation, ...]]:
        """Call it again and again; return the bytes that each call leaves, and who made them."""
        leaked = leaks.growth([_live_after(self._ledger, self._call) for _ in range(CALLS)])
        if not leaked:
            return 0, ()
        look = partial(leaks.kept, self._call, lambda: None, self._modules)
        kept, _ = self._ledger.observe(look)
        return leaked, tuple(kept)

    def _call(self) -> object:
        result = self._function()
        check_done(result, call="the call")
        self._called = True
        return result

    def _entries(
        self, function: Callable[[Callable[[Mark], None]], object]
    ) -> tuple[list[Entry], list[Entry]]:
        """Return what a function did on the device that it works on, from then on ours; and all."""
        _, window, traced = self._ledger.trace(function)
        worked_on = _worked_on(traced, self._device, named=self._named)
        if worked_on.place == self._device.place:
            window.check(traced.entries(self._device.place))
        else:
            self._device, self._ledger = worked_on, worked_on.ledger(undisturbing=True)
        own = list(_own(traced.entries(worked_on.place)))
        return own, [entry for _, entry in traced.moments]

    def _telling(self, mark: Callable[[Mark], None], watch: "_GraphWatch") -> None:
        where, over = ModuleFrames(self._modules), False

        def pack(tensor: Tensor) -> Packed:
            blocks = storages(tensor)
            for block in blocks:
                saved = Saved(
                    nbytes=block.nbytes(),
                    shape=shape(tensor),
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    module=where.module,
                    line=users_line(),
                )
                mark(_SavedTag(block.data_ptr(), "saved", saved))
            return Packed(tensor, partial(released, [block.data_ptr() for block in blocks]))

        def released(addresses: Sequence[int]) -> None:
            if not over:  # a graph may outlive the record of it
                for address in addresses:
                    mark(_ReleasedTag(address, "saved"))

        with watch, saving_hooks(pack):
            watch.returned(self._call())
        over = True


class _GraphWatch:
    """Learns of graphs that no hook sees: built in another thread, or kept by attributes."""

    def __init__(self) -> None:
        self._built = self._elsewhere = self._unsaved = False
        self._thread = threading.get_ident()

    def __enter__(self) -> Self:
        self._hook = register_module_forward_hook(self._look)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()

    def returned(self, value: object) -> None:
        """Look at what the call returned."""
        self._built |= has_graph(value)
        self._unsaved |= kept_unsaved(value)

    def blind_spot(self, saved_bytes: int) -> str:
        """Return why what was seen is not all that was saved, or ``""``."""
        if self._elsewhere:
            return "a graph is built in another thread, and what that saves is not seen"
        if self._unsaved:
            return "a node of the graph keeps tensors by an attribute, not saved"
        if self._built and not saved_bytes:
            return "a graph is built, and nothing was seen to be saved for it"
        return ""

    def _look(self, _module: nn.Module, _inputs: object, output: object) -> None:
        if has_graph(output):
            self._built = True
            self._elsewhere |= threading.get_ident() != self._thread
            self._unsaved |= kept_unsaved(output)


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


def _saved(entries: Sequence[Entry]) -> SavedByCall:
    """Return the blocks that were allocated here and saved."""
    live: set[int] = set()
    saved = AliveAtOnce()
    held: dict[int, int] = {}  # address -> how often it is saved
    for entry in entries:
        match entry:
            case Change(address, nbytes, _) if nbytes > 0:
                live.add(address)
            case Change(address, _, _):
                live.discard(address)
            case _SavedTag(address, _, one) if address in live:
                saved.save(address, one)
                held[address] = held.get(address, 0) + 1
            case _ReleasedTag(address, _) if held.get(address):
                saved.release(address)
                held[address] -= 1
    return SavedByCall(tuple(saved.most()), saved.total_bytes)


def _live_after(ledger: Ledger, call: Callable[[], object]) -> int:
    def tidy() -> None:
        call()
        gc.collect()  # what only waits for the collector is no leak

    _, window = ledger.observe(tidy)
    return window.after_bytes
