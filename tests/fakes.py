"""Devices, clocks and arms that are scripts: everything they do is known in advance."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class FakeClock:
    """Time passes only when something says so."""

    now_ns: int = 0

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class FakeArm:
    """An arm whose steps take programmed time; it logs what happens to it."""

    name: str
    clock: FakeClock
    cost_ns: Callable[[int], int]  # of the nth step of all arms
    log: list[str] = field(default_factory=list)
    held_now: bool = False

    def step(self) -> None:
        self.log.append(f"{self.name}{'' if self.held_now else ' outside its mode'}")
        self.clock.now_ns += self.cost_ns(len(self.log))

    @contextmanager
    def held(self) -> Iterator[None]:
        self.log.append(f"enter {self.name}")
        self.held_now = True
        yield
        self.held_now = False
        self.log.append(f"leave {self.name}")


def arms(clock: FakeClock, costs_ns: Sequence[int], log: list[str]) -> list[FakeArm]:
    return [
        FakeArm(f"arm{index}", clock, lambda _, cost=cost: cost, log)
        for index, cost in enumerate(costs_ns)
    ]
