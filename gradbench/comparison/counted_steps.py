"""Counts instructions of the steps of one side, or of both in turns, in a process under callgrind.

A worker loads this by its file, as gradbench itself may be what the sides hold: it uses the
standard library alone, and of gradbench what ``comparison.entry`` names.
"""

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Build = Callable[[Any, int, Mapping[str, Any]], tuple[Any, Any, Any]]


def counted(sides: Any, asked: Mapping[str, Any], build: Build, both: Any) -> dict[str, Any]:
    """Step each side some times, then count single steps; return whose dumps have the counts.

    The sides step in the same order always and draw the same numbers: what is random moves counts.
    ``both`` is the module of two sides in one process, ``comparison.interleaved_sides``.
    """
    entry = sides.entries[-1]  # the candidate's, which has the names
    if not hasattr(entry, "Counter"):  # an older gradbench
        raise RuntimeError("this version of gradbench cannot count a comparison's instructions")
    arms: list[Any] = []
    subjects: list[Any] = []
    for index in range(len(sides.trees)):
        arm, subject, _ = build(sides, index, asked)
        arms.append(arm)
        subjects.append(subject)
    numbers = both.Numbers()
    numbers.mark()

    def each_in_turn(visits: list[Callable[[], object]]) -> Iterator[int]:
        for index, visit in enumerate(visits):
            sides.turns.give(index)
            numbers.put_back()
            visit()
            subjects[index].clear_gradients()
            yield index

    def in_turns(visits: list[Callable[[], object]]) -> None:
        for _ in each_in_turn(visits):
            pass

    steps = [_stepping(arm) for arm in arms]
    if len(subjects) == 2 and asked["share"]:
        both.share(*subjects, steps=each_in_turn(steps), optimizes=both.optimized(arms))
    for _ in range(entry.WARM_UP_STEPS):
        in_turns(steps)
    gc.collect()
    gc.disable()
    ask = entry.Requests()
    counters = [entry.Counter.of(arm, index, ask) for index, arm in enumerate(arms)]
    ask.start()
    for _ in range(entry.ROUNDS):
        in_turns([counter.visit for counter in counters])
    return {"dumps_of": os.getpid()}


def _stepping(arm: Any) -> Callable[[], object]:
    def visit() -> None:
        with arm.held():
            arm.step()

    return visit
