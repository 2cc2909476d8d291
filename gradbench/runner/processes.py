"""The processes that measure: forks of a loaded parent, or fresh ones where none can be forked."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from . import host_system
from .fork_server import ForkServer, MallocProfile
from .spawn_server import SpawnServer

T = TypeVar("T")


class Processes(Protocol):
    """Runs jobs, each in a process of its own, started with the settings of one kind."""

    def run(
        self, function: Callable[..., Iterator[T]], *arguments: object, limit_s: float
    ) -> Iterator[T]:
        """Yield what the generator yields in its own process; raise `WorkerDied` or `JobError`."""

    def preload(self, modules: Sequence[str]) -> None:
        """Import modules before the jobs that need them, where jobs have a parent."""

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""

    def end(self) -> None:
        """End whatever runs; a thread that waits for what it says hears so."""

    def close(self) -> None:
        """End whatever runs, and let go of it: no thread may wait for it any more."""


def start(kind: MallocProfile) -> Processes:
    """Return what runs jobs of a kind on this system."""
    return ForkServer(kind) if host_system.here().forks else SpawnServer(kind)
