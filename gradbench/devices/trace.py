"""Every allocation and free on every device while a function runs, in order, with marks between.

This file alone knows the shape of the profiler's events, which are torch's private matter.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import torch
from torch.autograd.profiler import profile, record_function

from ..records.allocations import Change, Entry, Mark
from . import Trace

T = TypeVar("T")

# Kineto writes two lines to stderr each time that a profiler starts and stops, unless forbidden
# before the first does.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

SIGN: Final = "gradbench mark "
WHOLE: Final = "gradbench trace"


def trace(function: Callable[[Callable[[Mark], None]], T]) -> tuple[T, Trace]:
    """Run a function that is given a way to make marks; return its result and the trace.

    Blocks freed here that were allocated outside of every trace may be missing (torch forgets
    their sizes on the CPU). Allocations of other Python threads are not seen, those of autograd's
    own threads are.

    A mark is an operator range of no length in the profiler's own record: its clock alone says
    in which order marks and allocations came. One range is around all: torch leaves a GPU's
    allocations and frees out of the tree of events where no operator is around them, and what
    Python drops is freed under none.
    """
    marks: list[Mark] = []

    def mark(what: Mark) -> None:
        with record_function(f"{SIGN}{len(marks)}"):
            marks.append(what)

    with profile(profile_memory=True) as profiler, record_function(WHOLE):
        result = function(mark)
    ordered = sorted(_events(profiler, marks), key=lambda event: event[0])
    return result, Trace(tuple((device, entry) for _, device, entry in ordered))


def _events(profiler: profile, marks: list[Mark]) -> Iterator[tuple[int, str, Entry]]:
    results: Any = profiler.kineto_results  # untyped in torch
    stack = [(node, "") for node in reversed(results.experimental_event_tree())]
    while stack:
        node, parent = stack.pop()
        fields, name = node.extra_fields, node.name
        if isinstance(fields, torch._C._profiler._ExtraFields_Allocation):
            change = Change(fields.ptr, fields.alloc_size, parent)
            yield node.start_time_ns, str(fields.device), change
            continue
        if name.startswith(SIGN):
            yield node.start_time_ns, "", marks[int(name.removeprefix(SIGN))]
            continue
        inside = "" if name == WHOLE else name
        stack += [(child, inside) for child in reversed(node.children)]
