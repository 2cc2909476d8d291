"""Every allocation and free on a device while a function runs, in order, with marks between.

This file alone knows the shape of the profiler's events, which are torch's private matter.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import torch
from torch.autograd.profiler import profile, record_function

from ..records.allocations import Change, Entry, Mark

T = TypeVar("T")

# Kineto writes two lines to stderr each time that a profiler starts and stops, unless forbidden
# before the first does.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

SIGN: Final = "gradbench mark "


def trace(function: Callable[[Callable[[Mark], None]], T], *, device: str) -> tuple[T, list[Entry]]:
    """Run a function that is given a way to make marks; return its result and the entries.

    ``device`` is the type, ``cpu`` or ``cuda``, whose allocations count. Blocks freed here that
    were allocated outside of every trace may be missing (torch forgets their sizes). Allocations
    of other Python threads are not seen, those of autograd's own threads are.

    A mark is an operator range of no length in the profiler's own record: its clock alone says
    in which order marks and allocations came.
    """
    marks: list[Mark] = []

    def mark(what: Mark) -> None:
        with record_function(f"{SIGN}{len(marks)}"):
            marks.append(what)

    with profile(profile_memory=True) as profiler:
        result = function(mark)
    ordered = sorted(_entries(profiler, marks, device), key=lambda pair: pair[0])
    return result, [entry for _, entry in ordered]


def _entries(profiler: profile, marks: list[Mark], device: str) -> Iterator[tuple[int, Entry]]:
    results: Any = profiler.kineto_results  # untyped in torch
    stack = [(node, "") for node in reversed(results.experimental_event_tree())]
    while stack:
        node, parent = stack.pop()
        fields, name = node.extra_fields, node.name
        if isinstance(fields, torch._C._profiler._ExtraFields_Allocation):
            if fields.device.type == device:
                yield node.start_time_ns, Change(fields.ptr, fields.alloc_size, parent)
            continue
        if name.startswith(SIGN):
            yield node.start_time_ns, marks[int(name.removeprefix(SIGN))]
            continue
        stack += [(child, name) for child in reversed(node.children)]
