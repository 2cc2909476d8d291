"""Every allocation and free on every device while a function runs, in order, with marks between.

This file alone knows the shape of the profiler's events, which are torch's private matter.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined] # re-exported
from torch.autograd.profiler import profile, record_function

from ..records.allocations import Change, Mark
from . import Trace
from .collective_frees import collective_frees
from .thread_profile import PLACE, Moment, ThreadProfiles
from .uncounted_calls import no_forks, the_only_profiler

T = TypeVar("T")

# Kineto writes two lines to stderr each time that a profiler starts and stops, unless forbidden
# before the first does.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

SIGN: Final = "gradbench mark "
WHOLE: Final = "gradbench trace"
CALL: Final = "gradbench call"

COPY: Final = "aten::to"


def trace(function: Callable[[Callable[[Mark], None]], T]) -> tuple[T, Trace]:
    """Run a function that is given a way to make marks; return its result and the trace.

    Blocks freed here that were allocated outside of every trace may be missing (torch forgets
    their sizes on the CPU). Seen is what autograd's own threads allocate, and what those threads
    do on the CPU that the function starts or gives work to; raise `Unreadable` where that cannot
    be. Other threads of the process are not seen. Raise `OutOfSight` where the function runs a
    profiler of its own, or TorchScript that forks.

    A mark is an operator range of no length in the profiler's own record: its clock alone says
    in which order marks and allocations came. One range is around all: torch leaves a GPU's
    allocations and frees out of the tree of events where no operator is around them, and what
    Python drops is freed under none.
    """
    marks: dict[int, Mark] = {}
    numbers = itertools.count()

    def mark(what: Mark) -> None:
        number = next(numbers)  # another thread may make one meanwhile
        marks[number] = what
        with record_function(f"{SIGN}{number}"):
            pass

    def read_mark(name: str) -> Mark | None:
        return marks[int(name.removeprefix(SIGN))] if name.startswith(SIGN) else None

    with (
        profile(profile_memory=True) as profiler,
        record_function(WHOLE),
        the_only_profiler(),
        no_forks(),
        ThreadProfiles(read_mark) as others,
        collective_frees() as unseen,
    ):
        result = function(mark)
    freed = [] if unseen is None else unseen.taken()
    moments = others.merged([*_moments(profiler, read_mark), *freed])
    return result, Trace(tuple((device, entry) for _, device, entry in moments))


def cpu_changes(function: Callable[[], T]) -> tuple[T, list[int]]:
    """Run a function; return its result and the bytes of each allocation and free on the CPU.

    As `trace` does, for less: the tree of operators is not built.
    """
    with (
        profile(profile_memory=True) as profiler,
        the_only_profiler(),
        no_forks(),
        ThreadProfiles() as others,
        collective_frees() as unseen,
    ):
        result = function()
    freed = [] if unseen is None else unseen.taken()
    moments = others.merged([*_cpu_memory_events(profiler), *freed])
    return result, [entry.nbytes for _, _, entry in moments if isinstance(entry, Change)]


@dataclass(frozen=True, slots=True)
class OwnTime:
    """Of the operators of one name: how often they ran, and how long without those inside."""

    calls: int
    own_ns: int


class OperatorProfile:
    """Profiles the operators of the calls that are made through it while it is entered."""

    def __init__(self) -> None:
        self._profile, self._stack = profile(), ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._profile)
        self._stack.enter_context(the_only_profiler())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @staticmethod
    def call(step: Callable[[], T]) -> T:
        """Make a call that counts."""
        with record_function(CALL):
            return step()

    def own_times(self) -> dict[str, OwnTime]:
        """Return what the calls were made of, by operator; "" is what no operator took of them.

        Operators of other threads ran beside the call, and are no part of its time.
        """
        results: Any = self._profile.kineto_results  # untyped in torch
        ranges = [
            (event.start_thread_id(), event.start_ns(), -event.end_ns(), event.name())
            for event in results.events()
            if event.device_type() == DeviceType.CPU
        ]
        callers = {thread for thread, _, _, name in ranges if name == CALL}
        own: dict[str, OwnTime] = {}
        for thread in callers:
            _add_own_times(own, sorted(one[1:] for one in ranges if one[0] == thread))
        return own


def _add_own_times(own: dict[str, OwnTime], ranges: Sequence[tuple[int, int, str]]) -> None:
    """Add up the ranges of one thread: start, negative end and name, the outer before the inner."""
    around: list[tuple[int, str]] = []  # where those end that run, and their names
    for start, negative_end, name in ranges:
        while around and around[-1][0] <= start:
            around.pop()
        if not around and name != CALL:
            continue
        end = -negative_end
        if around:
            _add(own, around[-1][1], 0, start - end)
        part = "" if name == CALL else name
        _add(own, part, 1, end - start)
        around.append((end, part))


def _add(own: dict[str, OwnTime], name: str, calls: int, ns: int) -> None:
    before = own.get(name, OwnTime(0, 0))
    own[name] = OwnTime(before.calls + calls, before.own_ns + ns)


def _cpu_memory_events(profiler: profile) -> list[Moment]:
    results: Any = profiler.kineto_results  # untyped in torch
    return [
        (event.start_ns(), PLACE, Change(0, event.nbytes()))
        for event in results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]


def _moments(profiler: profile, read_mark: Callable[[str], Mark | None]) -> Iterator[Moment]:
    results: Any = profiler.kineto_results  # untyped in torch
    stack = [(node, "", False) for node in reversed(results.experimental_event_tree())]
    while stack:
        node, parent, cast = stack.pop()
        fields, name = node.extra_fields, node.name
        if isinstance(fields, torch._C._profiler._ExtraFields_Allocation):
            allocates = fields.alloc_size > 0
            change = Change(fields.ptr, fields.alloc_size, parent, cast=cast and allocates)
            yield node.start_time_ns, str(fields.device), change
            continue
        if mark := read_mark(name):
            yield node.start_time_ns, "", mark
            continue
        inside = "" if name == WHOLE else name
        casting = not cast and any(child.name == name for child in node.children)
        stack += [
            (child, inside, cast or (casting and child.name == COPY))
            for child in reversed(node.children)
        ]
