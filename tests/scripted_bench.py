"""A bench that measures nothing: it says of every cell what its script says."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import pytest
from builders import counted, ended, environment, timed

from gradbench.experiment.matrix import Cell
from gradbench.records.measurements import Outcome

VALUES = (4_000_000, 1_000_000, 2_000_000, 3_000_000)
ITERATIONS = 10


def succeed(member: Cell) -> list[Outcome]:
    return [timed(member, VALUES, iterations=ITERATIONS), counted(member, 4096)]


class ScriptedBench:
    """Says of every cell what its script says, and remembers what it was asked."""

    script: ClassVar[Callable[[Cell], list[Outcome]]]
    asked: ClassVar[list[list[Cell]]]
    made: ClassVar[int]

    def __init__(
        self,
        *,
        plan: object,
        models: object = None,
        meters: Sequence[str] = (),
        memory_profile: object = None,
    ) -> None:
        type(self).made += 1
        self.meters = meters

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None: ...

    def environment(self, _names: Iterable[str]):
        return environment()

    def measure(
        self, cells: Sequence[Cell], *, done: object = (), passes: object = (), say: object = None
    ) -> Iterator[list[Outcome]]:
        self.asked.append(list(cells))
        outcomes = [outcome for member in cells for outcome in type(self).script(member)]
        yield outcomes[:1] if len(self.meters) == 1 else outcomes  # pytest --benchmark-disable

    def ended(self):
        return ended()


def scripted_bench(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedBench]:
    """Put the scripted bench in the place of the real one; every cell succeeds."""
    for name, value in (("script", staticmethod(succeed)), ("asked", []), ("made", 0)):
        monkeypatch.setattr(ScriptedBench, name, value, raising=False)
    monkeypatch.setattr("gradbench.runner.bench.Bench", ScriptedBench)
    return ScriptedBench
