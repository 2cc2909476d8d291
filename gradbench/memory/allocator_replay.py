"""What an allocator would hand out in a predicted step: its allocations replayed on a model."""

from collections.abc import Mapping, Sequence
from typing import Final

from ..devices import Allocator, Workspaces
from ..records.allocations import Change, Entry, Phase, Within

INSIDE: Final = -1
"""The key of what an operator takes inside; below are those of workspaces: no storage has them."""

PRODUCTS: Final = frozenset(
    f"aten::{name}"
    for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "_addmm_activation")
)
"""Operators for which cuBLAS takes a workspace."""


def replay(
    before: Mapping[int, int],
    entries: Sequence[Entry],
    allocator: Allocator,
    *,
    workspaces: Workspaces,
) -> None:
    """Let an allocator hand out what was there before a step, then what two steps ask for.

    In the first one, libraries take their ``workspaces`` where the forward and where the backward
    pass first multiplies: out of what is free just then, which a later activation misses. The
    allocator's peak is the second step's.
    """
    for key, nbytes in before.items():
        allocator.take(key, nbytes)
    left = {"forward": workspaces.forward, "backward": workspaces.backward}
    workspace = INSIDE
    stayed: set[int] = set()
    for _ in range(2):
        for key in stayed:
            allocator.give(key)  # gradients: a step begins by dropping what the last one left
        stayed.clear()
        allocator.reset()
        thread = "forward"
        for entry in entries:
            match entry:
                case Phase(name):
                    thread = "backward" if name == "backward" else "forward"
                case Change(key, nbytes, op) if nbytes > 0:
                    allocator.take(key, nbytes)
                    stayed.add(key)
                    if op in PRODUCTS:
                        for size in left.pop(thread, ()):
                            workspace -= 1
                            allocator.take(workspace, size)
                case Change(key, _, _):
                    allocator.give(key)
                    stayed.discard(key)
                case Within(nbytes, _):
                    allocator.take(INSIDE, nbytes)
                    allocator.give(INSIDE)
