"""What a step keeps alive from one time to the next: how many bytes, and who made them."""

import gc
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from ..call_threads import CallThreads
from ..plurals import counted
from .saved_tensors import ModuleFrames
from .storage_tracker import Creation, StorageTracker

STEPS = 3  # in which something must be left each time


def growth(live_bytes: Sequence[int]) -> int:
    """Return the bytes that every step adds, from what was live after each; 0 if some adds none.

    What is filled once, a cache or an optimizer's state, is no leak.
    """
    added = [after - before for before, after in itertools.pairwise(live_bytes)]
    return max(0, min(added, default=0))


def kept(
    step: Callable[[], object], rest: Callable[[], object], modules: Mapping[str, nn.Module]
) -> list[Creation]:
    """Return the storages that `STEPS` steps made and that outlive them, largest first.

    ``rest`` is called after each step: it puts away what a step may leave, its gradients.
    ``modules``, by path, are those that may be named.
    """

    def all_steps() -> None:
        for _ in range(STEPS):
            step()
            rest()

    return sorted(alive_after(all_steps, modules), key=lambda birth: -birth.nbytes)


def alive_after(call: Callable[[], object], modules: Mapping[str, nn.Module]) -> list[Creation]:
    """Return the storages that a call made and that outlive it, in order."""
    alive: dict[int, Creation] = {}

    def on_free(birth: Creation) -> None:
        alive.pop(birth.key, None)

    tracker = StorageTracker(
        on_create=lambda birth: alive.update({birth.key: birth}),
        on_free=on_free,
        where=ModuleFrames(modules),
    )
    with CallThreads(lambda: tracker), tracker:
        call()
    gc.collect()
    return list(alive.values())


def named(births: Sequence[Creation], *, most: int = 3) -> str:
    """Return in words what `kept` found: bytes a step by operator, module and line.

    Of fewer storages than there were steps, each took the place of the one before: a cache that is
    joined anew, say. What is left of it is no part that a step adds.
    """
    totals: dict[str, int] = {}
    storages = Counter[str]()
    for birth in births:
        place = f" in {birth.module}" if birth.module else ""
        line = f" ({birth.line})" if birth.line else ""
        name = f"{birth.op}{place}{line}"
        totals[name] = totals.get(name, 0) + birth.nbytes
        storages[name] += 1
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    words = [
        f"{nbytes // STEPS:,} B a step made by {name}"
        if storages[name] >= STEPS
        else f"{nbytes:,} B that each step makes anew by {name}"
        for name, nbytes in ranked[:most]
    ]
    more = [f"and {counted(len(ranked) - most, 'more place')}"] if len(ranked) > most else []
    return "; ".join([*words, *more])
