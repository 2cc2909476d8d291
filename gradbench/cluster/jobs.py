"""What travels between the command and the machines of a cluster: a setup, jobs, and answers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ..comparison.replicate_effort import Replication
from ..comparison.replicate_results import Results
from ..experiment.matrix import Block, Cell
from ..experiment.model_source import ModelSource
from ..experiment.plan import Plan
from ..records.measurements import Environment, Fact, Reading

Trouble = Literal["", "busy", "lost"]
"""Why nothing was measured: what it needs was held by others, or its process is gone."""


class HasVariables(Protocol):
    """What is equal for all jobs, as far as whoever starts the measuring process asks."""

    @property
    def variables(self) -> Mapping[str, str]:
        """Variables of the user's environment that change what torch does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is equal for all blocks of a run."""

    plan: Plan
    meters: tuple[str, ...]
    models: Mapping[str, bytes]  # pickled, by name
    devices: tuple[str, ...]  # that the run has cells on
    commit: Mapping[str, Fact]  # the facts of the code's commit: machines have no repository
    variables: Mapping[str, str]  # of the user's environment, that change what torch does
    wait_s: float  # for cores and devices that others hold


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicateSetup:
    """What is equal for all replicates of a comparison, whose trees are on every machine."""

    trees: Mapping[str, str]  # the folder of each side below the one that was sent
    inside: str  # where in a tree the user stands
    itself: bool  # whether the trees are gradbench's own
    base_python: str | None
    sources: Mapping[str, ModelSource]
    replication: Replication
    seed: int
    variables: Mapping[str, str]
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockJob:
    """One block to measure: its cells, in which passes, and what of them has been read before."""

    cells: tuple[Cell, ...]
    done: Collection[tuple[Cell, str]] = frozenset()
    passes: Collection[str] = frozenset()

    @property
    def block(self) -> Block:
        """Which block it is."""
        return self.cells[0].block

    @property
    def device(self) -> str:
        """What it runs on."""
        return self.cells[0].device


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicateJob:
    """One replicate to make of each of the cells, on one machine wholly."""

    number: int  # of the comparison: no two have the same layouts
    cells: tuple[Cell, ...]
    apart: Mapping[Cell, str]  # the sides of these are known to take two processes


Job = BlockJob | ReplicateJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a job on one machine; with ``trouble`` nothing did, and ``why`` says it."""

    host: str
    trouble: Trouble = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockResult(Answer):
    """What came of a block."""

    environment: Environment | None = None
    readings: tuple[Reading, ...] = ()
    began_at_s: float = 0.0  # since the epoch, when all that it needs was held alone
    ended_at_s: float = 0.0
    held: tuple[str, ...] = ()  # the locks
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase
    load_after: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicateResult(Answer):
    """What came of a replicate: results of this one alone, or why none could ever be made."""

    results: Results = field(default_factory=Results)
    sides: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # their torch and Python
    looked: bool = False  # at cells that were new to the machine
    refused: str = ""
