"""What the ranks of a distributed workload agree on, so that all take the same way through a pass.

A rank whose clock, or whose memory, would send it another way than the others makes a step that
they do not make, and all of them wait for ever. So each such question is asked of all: they meet at
their leader, the process that started them, which hears at once of one that raised or died.
A process that is alone meets nobody, and its own answer counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, Literal, TypeVar

from ..errors import GradbenchError

T = TypeVar("T")
Number = TypeVar("Number", int, float)

LAUNCHED: Final = "TORCHELASTIC_RUN_ID"
"""The variable by which torchrun names the job that a process belongs to."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """What a rank says to its leader when it waits for the others."""

    at: str  # where in the pass: ranks that meet elsewhere have gone different ways
    value: Any  # what this rank has to say there
    refused: str = ""  # why it cannot go on, in words; the others may hang in the step by now


FromRank = tuple[Literal["meeting", "message"], Any]
"""What a rank sends to its leader: a `Meeting`, or a message of its job."""


@dataclass(frozen=True, slots=True)
class Rank:
    """This process's place among those that step together."""

    number: int
    world_size: int
    leader: Connection

    def meet(self, at: str, value: T, *, refused: str = "") -> list[T]:
        """Wait for all ranks; return what each has to say, by rank."""
        self.leader.send(("meeting", Meeting(at, value, refused)))
        said: list[T] = self.leader.recv()
        return said

    def own_share(self, cores: Sequence[int]) -> list[int]:
        """Return the cores of this rank alone; all of them where there are fewer than ranks."""
        each = len(cores) // self.world_size
        return list(cores[self.number * each :][:each] or cores)


_here: Rank | None = None


def join(rank: Rank) -> None:
    """Be a rank from here on."""
    global _here  # noqa: PLW0603 # a process is one rank, as torch.distributed has one default group
    _here = rank


def here() -> Rank | None:
    """Return which rank this process is; None where it is alone."""
    return _here


def largest(at: str, number: Number) -> Number:
    """Return the largest number that a rank has."""
    return number if _here is None else max(_here.meet(at, number))


def any_of(at: str, holds: bool) -> bool:
    """Return whether something holds in any rank."""
    return holds if _here is None else any(_here.meet(at, holds))


def agree(at: str, *, refused: str = "") -> None:
    """Return when every rank can go on, or none can.

    Where one cannot and others can, the leader ends them all.
    """
    if _here is not None:
        _here.meet(at, bool(refused), refused=refused)


def hold_that_nobody_started_ranks(environment: Mapping[str, str]) -> None:
    """Raise `GradbenchError` where this process is one of several that torchrun has started.

    Each would measure everything, all at once.
    """
    world_size = environment.get("WORLD_SIZE", "1")
    if LAUNCHED in environment and world_size != "1":
        raise GradbenchError(
            f"torchrun started {world_size} copies of this command, each of which would measure "
            f"all: run it without torchrun; --world-size {world_size} starts the ranks"
        )
