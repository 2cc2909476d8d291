"""What one call of anybody's function does to memory: its peak, what it saves, what it leaves."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal

from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import Node
from torch.nn.modules.module import register_module_forward_hook

from .. import devices
from ..call_threads import CallThreads, at_work_since, others_at_work_s
from ..devices import Device, Ledger, OutOfSight, Trace, Unreadable
from ..errors import GradbenchError, WrongDevice, in_one_line
from ..lazy_results import check_done
from ..records.allocations import Change, Entry, Mark, PeakBreakdown, Tag, attribute_peak
from ..workloads.module_parts import tensors_of
from ..workloads.trees import tensors
from . import leaks
from .called_modules import called_modules
from .leaves import kept_unsaved, nodes
from .peak_places import BackwardModules, Held, PlaceMarks, held_at_peak
from .saved_tensors import (
    AliveAtOnce,
    ModuleFrames,
    Packed,
    Saved,
    SavingHooks,
    meeting,
    paths,
    refuses_hooks,
    users_line,
)
from .storage_tracker import Creation
from .storages import handed_out, key, shape, storages

AUTO: Final = "auto"
CPU: Final = "cpu"
CALLS = 3  # to see whether something is left each time: the first may fill caches


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call did, beyond what was there before it.

    ``peak_bytes`` is the most that it had allocated at once, ``breakdown`` what that was made of.
    ``leaked_bytes`` is what each further call leaves behind, None where that was not asked, and
    ``kept`` who made it; ``held`` is what the peak holds by place, where a budget asked for that.
    """

    peak_bytes: int
    breakdown: PeakBreakdown
    seen: "SavedByCall | Unreadable"
    leaked_bytes: int | None = None
    kept: tuple[Creation, ...] = ()
    held: tuple[Held, ...] = ()

    def __str__(self) -> str:
        """Return the figures in a line, as a user prints them."""
        unread = isinstance(self.seen, Unreadable)
        parts = [
            f"peak {self.peak_bytes:,} B",
            f"saved for backward: {self.seen}" if unread else f"saved {self.saved_bytes:,} B",
        ]
        if self.leaked_bytes is not None:
            parts.append(f"each further call leaves {self.leaked_bytes:,} B")
        return "; ".join(parts)

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

    @property
    def outside_bytes(self) -> int:
        """Bytes that were saved of memory that torch's allocator did not hand out, NumPy's say.

        No other figure counts them, for nobody knows whether the call made them. Raise
        `Unreadable`.
        """
        if isinstance(self.seen, Unreadable):
            raise self.seen
        return self.seen.outside_bytes


@dataclass(frozen=True, slots=True)
class SavedByCall:
    """What autograd saved of a call's own allocations."""

    at_once: tuple[Saved, ...]
    total_bytes: int
    outside_bytes: int = 0  # of memory that is not of torch's allocator, whoever made it


@dataclass(frozen=True, slots=True)
class _SavedTag(Tag):
    """Where a block was saved, too."""

    saved: Saved
    outside: bool = field(default=False, kw_only=True)  # torch's allocator did not hand it out


@dataclass(frozen=True, slots=True)
class _OwnedTag(Tag):
    """A block is a parameter's or a buffer's of a module that the call made."""


@dataclass(frozen=True, slots=True)
class _ReturnedTag(Tag):
    """The call returns a block; its part is what it was."""


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
    saves, with which some code fails; with ``leaks_too`` three times more, or as often as it
    takes to name what is left. Memory that torch's allocator does not hand out, NumPy's say, is in
    no figure but ``outside_bytes``, where autograd saves it.

    ``device`` is by itself the accelerator on which the call allocates, or the CPU where it uses
    none. What is saved for backward counts on every device.

    ``modules`` are those whose paths may be named; without it, those found in the function and
    its arguments. Keyword arguments go in a `functools.partial`. Threads that the call starts
    count, and work that it gives to a pool; on the CPU to the byte.

    Raise `DeviceUnavailable` without that device, `WrongDevice` where the call worked on another
    than was named, `LazyResult` where it returned a generator, a coroutine or another iterator,
    whose work has not run, `OutOfSight` where it works in a thread that nobody watches,
    `Unreadable` where this torch's allocator cannot be read, and whatever the function raises.
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
        self._plain: list[Entry] = []  # what the call did that nobody disturbed
        self._elsewhere = ""  # the class of a module that ran in a thread that nobody watches
        self._device = devices.in_use().busiest() if device == AUTO else devices.find(device)
        self._device.check()
        self._device.warm_up()  # or the first call of a process would seem to take the workspaces
        gc.collect()  # what earlier calls left would be freed in this one's account
        self._ledger = self._device.ledger(undisturbing=True)

    def usage(self, leaks_too: bool) -> Usage:
        """Return all figures."""
        plain = self.plain()
        hooked, seen = self._in_sight()
        breakdown = hooked if hooked and hooked.peak_bytes == plain.peak_bytes else plain
        leaked, kept = self.leaks() if leaks_too else (None, ())
        return Usage(plain.peak_bytes, breakdown, seen, leaked, kept)

    def only(self, figure: Literal["peak", "saved"], *, leaks_too: bool) -> Usage:
        """Return one of the figures, from one call, and the other from it as far as it goes."""
        seen: SavedByCall | Unreadable
        if figure == "peak":
            before = others_at_work_s()
            parts, seen = self.plain(), Unreadable("it was not asked for")
            if at_work_since(before):  # was that for the call? Hooks see whose modules run there
                self._in_sight()
        else:
            hooked, seen = self.hooked()
            parts = hooked or self.plain()
        leaked, kept = self.leaks() if leaks_too else (None, ())
        return Usage(parts.peak_bytes, parts, seen, leaked, kept)

    def named(self, usage: Usage) -> Usage:
        """Return the usage with whose the bytes of its peak are, as a watched call shows it.

        A further call may be another: the first step of a training makes gradients and state.
        """
        watch, where = _GraphWatch(), ModuleFrames(self._modules)
        backward = BackwardModules(self._modules)

        def watched(mark: Callable[[Mark], None]) -> None:
            places = PlaceMarks(mark, where, backward)
            with CallThreads(lambda: places), places, meeting(where, _unmarked):
                self._telling(mark, watch)

        try:
            _, own, _ = self._entries(watched)
        except (GradbenchError, Unreadable):
            raise
        except Exception as error:
            if not refuses_hooks(str(error)):
                raise
            return usage
        parts = attribute_peak(own, resident={}, before_bytes=0)
        if parts.peak_bytes == usage.peak_bytes:
            return replace(usage, breakdown=parts, held=self._titled(held_at_peak(own)))
        return replace(usage, held=self._titled(held_at_peak(self._plain, own)))

    def _titled(self, held: Sequence[Held]) -> tuple[Held, ...]:
        """Return what is held with modules by path and class."""
        titles = {path: f"{path} {type(module).__name__}" for path, module in self._modules.items()}
        return tuple(replace(one, module=titles.get(one.module, one.module)) for one in held)

    def plain(self) -> PeakBreakdown:
        """Call it as it is; return its peak by operator.

        Raise `OutOfSight` where it returns what nobody was seen to allocate.
        """

        def called(mark: Callable[[Mark], None]) -> object:
            result = self._call()
            for block in _blocks(result):
                mark(_ReturnedTag(block.data_ptr(), "other", nbytes=block.nbytes()))
            return result

        result, own, everywhere = self._entries(called)
        self._check_returned(result, everywhere)
        self._plain = own
        return attribute_peak(own, resident={}, before_bytes=0)

    def _in_sight(self) -> "tuple[PeakBreakdown | None, SavedByCall | Unreadable]":
        """Do as `hooked`; raise `OutOfSight` where modules ran in a thread that nobody watches."""
        hooked = self.hooked()
        if self._elsewhere:
            raise OutOfSight(
                f"{self._elsewhere} ran in a thread that was there before the call, and what that "
                "allocates is not seen: start the thread in the call, or use a ThreadPoolExecutor"
            )
        return hooked

    def hooked(self) -> "tuple[PeakBreakdown | None, SavedByCall | Unreadable]":
        """Call it with hooks on what is saved; return the peak and what was seen."""
        watch = _GraphWatch()
        self._elsewhere = ""
        try:
            _, own, everywhere = self._entries(lambda mark: self._telling(mark, watch))
        except (GradbenchError, Unreadable):
            raise
        except Exception as error:
            if not (self._called or refuses_hooks(str(error))):
                raise
            return None, Unreadable(f"with hooks on what autograd saves: {in_one_line(error)}")
        self._elsewhere = watch.elsewhere
        parts = attribute_peak(own, resident={}, before_bytes=0)
        if watch.unseen:  # was that there before? Then a further call has it, too
            again, _ = self._ledger.observe(self._call)
            watch.unseen -= set(nodes(again))
        blind = watch.blind_spot(everywhere)
        return parts, Unreadable(blind) if blind else _saved(everywhere)

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
    ) -> tuple[object, list[Entry], list[Entry]]:
        """Return what a function returned, and did on the device that it works on; and all it did.

        That device is ours from then on.
        """
        result, window, traced = self._ledger.trace(function)
        worked_on = _worked_on(traced, self._device, named=self._named)
        if worked_on.place == self._device.place:
            window.check(traced.entries(self._device.place))
        else:
            self._device, self._ledger = worked_on, worked_on.ledger(undisturbing=True)
        own = list(_own(traced.entries(worked_on.place)))
        return result, own, [entry for _, entry in traced.moments]

    def _check_returned(self, result: object, entries: Sequence[Entry]) -> None:
        """Raise `OutOfSight` where the call returned what it made, and no entry allocates that.

        What was there before, as a parameter or a cache, is returned by a further call, too.
        """
        made: set[int] = set()
        unknown: set[int] = set()
        for entry in entries:
            match entry:
                case Change(address, nbytes, _) if nbytes > 0:
                    made.add(address)
                case _ReturnedTag(address, _) if address not in made:
                    unknown.add(address)
        if not unknown:
            return
        again, _ = self._ledger.observe(self._call)
        unknown -= {block.data_ptr() for block in _blocks(again)}
        if unknown:
            nbytes = sum(b.nbytes() for b in _blocks(result) if b.data_ptr() in unknown)
            raise OutOfSight(
                f"the call returned {nbytes:,} B that it was not seen to allocate: made by a "
                "thread that was there before it, or not by torch's allocator"
            )

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
                outside = not handed_out(block)
                mark(
                    _SavedTag(
                        block.data_ptr(), "saved", saved, nbytes=block.nbytes(), outside=outside
                    )
                )
            return Packed(tensor, partial(released, [block.data_ptr() for block in blocks]))

        def released(addresses: Sequence[int]) -> None:
            if not over:  # a graph may outlive the record of it
                for address in addresses:
                    mark(_ReleasedTag(address, "saved"))

        def owned(module: nn.Module) -> None:
            for tensor in tensors_of(module):
                for block in storages(tensor):
                    mark(_OwnedTag(block.data_ptr(), "other"))

        with meeting(where, owned), watch.around(SavingHooks(pack)):
            watch.returned(self._call())
        over = True


class _GraphWatch:
    """Learns of graphs that no hook sees: of other threads, or kept by attributes."""

    def __init__(self) -> None:
        self.unseen: set[Node] = set()  # that hold what nobody packed
        self._hooks: SavingHooks | None = None
        self.elsewhere = ""  # the class of a module that ran in a thread that nobody watches
        self._unsaved = False
        self._kept: set[int] = set()  # addresses of what hooks of tensors lead to

    @contextmanager
    def around(self, hooks: SavingHooks) -> Iterator[None]:
        """Look at what each module returns, and enter the hooks."""
        self._hooks = hooks
        looking = register_module_forward_hook(self._look)
        try:
            with hooks:
                yield
        finally:
            looking.remove()

    def returned(self, value: object) -> None:
        """Look at what the call returned."""
        self._unsaved |= kept_unsaved(value)
        if self._hooks is not None:
            self.unseen |= self._hooks.unseen(value)
            self._look_at_given(self._hooks)

    def blind_spot(self, entries: Sequence[Entry]) -> str:
        """Return why what was seen is not all that was saved in these entries, or ``""``."""
        if self.unseen:
            return (
                "a graph is built in a thread that was there before, and what it saves is not seen"
            )
        if self._unsaved:
            return "a node of the graph keeps tensors by an attribute, not saved"
        made = {one.address for one in entries if isinstance(one, Change) and one.nbytes > 0}
        saved = {one.address for one in entries if isinstance(one, _SavedTag)}
        if self._kept & (made - saved):
            return "a tensor's hook keeps tensors of the call, not saved"
        return ""

    def _look_at_given(self, hooks: SavingHooks) -> None:
        for one in hooks.given.kept():
            if one is None:
                self._unsaved = True
            else:
                self._kept |= {block.data_ptr() for block in storages(one)}

    def _look(self, module: nn.Module, _inputs: object, output: object) -> None:
        self._unsaved |= kept_unsaved(output)
        if self._hooks is not None:
            self._look_at_given(self._hooks)
        if self._hooks is not None and not self._hooks.here:
            self.elsewhere = type(module).__name__
            self.unseen |= self._hooks.unseen(output)


def _unmarked(_module: nn.Module) -> None:
    """Mark nothing of a module."""


def _blocks(value: object) -> list[UntypedStorage]:
    """Return the storages of what a call returned that have bytes."""
    by_key = {key(block): block for _, one in tensors(value) for block in storages(one)}
    return [block for block in by_key.values() if block.nbytes()]


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
    """Return the blocks that were allocated here and saved, but for those of a module's own."""
    live: set[int] = set()
    saved = AliveAtOnce()
    held: dict[int, int] = {}  # address -> how often it is saved
    outside: dict[int, int] = {}  # address -> bytes
    for entry in entries:
        match entry:
            case Change(address, nbytes, _) if nbytes > 0:
                live.add(address)
            case Change(address, _, _) | _OwnedTag(address, _):
                live.discard(address)
            case _SavedTag(address, _, one) if address in live:
                saved.save(address, one)
                held[address] = held.get(address, 0) + 1
            case _SavedTag(address, _, one) as tag if tag.outside:
                outside[address] = one.nbytes
            case _ReleasedTag(address, _) if held.get(address):
                saved.release(address)
                held[address] -= 1
    return SavedByCall(tuple(saved.most()), saved.total_bytes, sum(outside.values()))


def _live_after(ledger: Ledger, call: Callable[[], object]) -> int:
    def tidy() -> None:
        call()
        gc.collect()  # what only waits for the collector is no leak

    _, window = ledger.observe(tidy)
    return window.after_bytes
