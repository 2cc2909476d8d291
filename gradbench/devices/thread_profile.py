"""What other threads of a call allocate on the CPU, beside the profiler of the thread that calls.

torch's profiler records the thread that starts it, and only one runs in a process. Its predecessor,
which torch keeps, runs in each thread by itself and counts the same allocations; but it gives sizes
without addresses, so a block of another thread is known by its size until a tag names it.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from threading import Thread
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch.autograd import profiler_legacy
from torch.autograd.profiler import record_function

from ..call_threads import CallThreads
from ..records.allocations import Change, Entry, Mark, Tag
from . import OutOfSight

Moment = tuple[int, str, Entry]
"""When, in ns since 1970; on which device, a mark on none; what."""

CLOCK: Final = "gradbench clock"
READINGS: Final = 5
PLACE: Final = "cpu"


class ThreadProfiles:
    """What the other threads of a call do while this is entered; read it afterwards.

    ``read_mark`` returns the mark that the name of a profiler's range stands for, or None.
    """

    def __init__(self, read_mark: Callable[[str], Mark | None] = lambda _: None) -> None:
        self._read_mark = read_mark
        self._moments: list[Moment] = []
        self._refused = ""
        self._threads = CallThreads(self._profiled)

    def __enter__(self) -> Self:
        self._threads.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.__exit__(kind, error, trace)

    def merged(self, ours: Iterable[Moment]) -> list[Moment]:
        """Return the calling thread's moments and the others', in order of time.

        Raise `OutOfSight` where what another thread allocates is not known.
        """
        ordered = sorted(ours, key=lambda moment: moment[0])
        if not self._threads.count:
            return ordered
        if running := self._threads.still_running:
            raise OutOfSight(
                f"threads that the call started are at work when it has ended: {', '.join(running)}"
            )
        if self._refused or not _counts_others():
            raise OutOfSight(
                self._refused
                or f"torch {torch.__version__} does not count what other threads allocate"
            )
        everybodys = sorted([*ordered, *self._moments], key=lambda moment: moment[0])
        return list(_Blocks().addressed(everybodys))

    @contextmanager
    def _profiled(self) -> Iterator[None]:
        if torch._C._autograd._profiler_enabled():
            self._refused = "a thread that the call starts runs a profiler of its own"
            yield
            return
        profile = profiler_legacy.profile(profile_memory=True)  # type: ignore[no-untyped-call] # torch leaves it untyped
        torch._C._autograd._enable_profiler_legacy(profile.config())  # type: ignore[no-untyped-call] # torch leaves it untyped
        try:
            clock = _readings()
            yield
        finally:
            lists = torch._C._autograd._disable_profiler_legacy()
            self._moments += _moments(lists, clock, self._read_mark)


@cache
def _counts_others() -> bool:
    """Return whether an allocation of known size in another thread is counted as that."""

    def allocate() -> None:
        torch.empty(1024, dtype=torch.uint8)

    with ThreadProfiles() as profiles:
        thread = Thread(target=allocate)
        thread.start()
        thread.join()
    return [entry for _, _, entry in profiles._moments] == [
        Change(0, 1024, "aten::empty"),
        Change(0, -1024),
    ]


def _readings() -> list[tuple[int, int]]:
    """Return when ranges called `CLOCK` began: after the first time, before the second."""
    read = []
    for _ in range(READINGS):
        before_ns = time.time_ns()
        with record_function(CLOCK):
            read.append((before_ns, time.time_ns()))
    return read


def _moments(
    lists: Sequence[Sequence[Any]],
    clock: Sequence[tuple[int, int]],
    read_mark: Callable[[str], Mark | None],
) -> Iterator[Moment]:
    """Yield the events of a thread; blocks have the address 0."""
    events = [event for one in lists for event in one]
    ranges = [event for event in events if event.kind() == "push" and event.name() == CLOCK]
    (before_ns, after_ns), known = min(
        zip(clock, ranges, strict=True), key=lambda pair: pair[0][1] - pair[0][0]
    )
    known_ns = (before_ns + after_ns) // 2
    running: list[str] = []
    for event in events:
        at_ns = known_ns + round(known.cpu_elapsed_us(event) * 1000)
        match event.kind():
            case "push":
                if mark := read_mark(event.name()):
                    yield at_ns, "", mark
                running.append(event.name())
            case "pop":
                running.pop()
            case "memory_alloc" if nbytes := event.cpu_memory_usage():
                op = running[-1] if running and nbytes > 0 else ""
                yield at_ns, PLACE, Change(0, nbytes, op)


class _Blocks:
    """Blocks with an address, and those of other threads, which get one below 0."""

    def __init__(self) -> None:
        self._live: dict[int, int] = {}  # address -> bytes
        self._named: dict[int, int] = {}  # address that a tag gave -> ours
        self._nameless: dict[int, list[int]] = {}  # bytes -> ours
        self._sizes: dict[int, int] = {}  # ours -> bytes
        self._next = itertools.count(-1, -1)

    def addressed(self, moments: Iterable[Moment]) -> Iterator[Moment]:
        """Yield the moments with an address for each block."""
        for at_ns, device, entry in moments:
            if device == PLACE and isinstance(entry, Change):
                yield at_ns, device, self._change(entry)
            elif isinstance(entry, Tag):
                yield at_ns, device, self._tag(entry)
            else:
                yield at_ns, device, entry

    def _change(self, change: Change) -> Change:
        address, nbytes = change.address, change.nbytes
        if nbytes > 0:
            if address:
                self._live[address] = nbytes
                self._named.pop(address, None)
                return change
            ours = next(self._next)
            self._sizes[ours] = nbytes
            self._nameless.setdefault(nbytes, []).append(ours)
            return replace(change, address=ours)
        if self._live.pop(address, None) is not None:
            return change
        return replace(change, address=self._freed(address, -nbytes))

    def _freed(self, address: int, nbytes: int) -> int:
        """Return the block that is freed: the one of that name, or one of that size."""
        if address in self._named:
            return self._named.pop(address)
        if self._nameless.get(nbytes):
            return self._nameless[nbytes].pop()
        if address:
            return address  # it was there before
        for one, ours in self._named.items():
            if self._sizes[ours] == nbytes:
                return self._named.pop(one)
        for one, size in reversed(self._live.items()):
            if size == nbytes:
                del self._live[one]
                return one
        return next(self._next)

    def _tag(self, tag: Tag) -> Tag:
        address = tag.address
        if address not in self._live and address not in self._named:
            if not self._nameless.get(tag.nbytes):
                return tag
            self._named[address] = self._nameless[tag.nbytes].pop()
        return replace(tag, address=self._named.get(address, address))
