"""What a bisection can do next: count a commit, or take a figure of two commits side by side."""

from dataclasses import dataclass

from ..experiment.matrix import Cell
from .commit_graph import Search


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Count every cell at a commit."""

    commit: str
    search: Search | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """Measure these cells at a commit beside a base; what is measured, the kind of job says."""

    base: str
    commit: str
    cells: tuple[Cell, ...]
    search: Search | None = None


class Instructions(SideBySide):
    """Count the host's instructions of both, once."""

    __slots__ = ()


class Time(SideBySide):
    """Take another replicate of their times, while nothing else is measured on the host."""

    __slots__ = ()


Job = Count | Instructions | Time
