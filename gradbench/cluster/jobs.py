"""What travels between the command and the machines of a cluster: a setup, blocks, and results."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..experiment.matrix import Block, Cell
from ..experiment.plan import Plan
from ..records.measurements import Environment, Fact, Reading

Trouble = Literal["", "busy", "lost"]
"""Why a block was not measured: what it needs was held by others, or its process is gone."""


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
class BlockResult:
    """What came of a block on one machine; with ``trouble`` nothing did, and ``why`` says it."""

    host: str
    environment: Environment | None = None
    readings: tuple[Reading, ...] = ()
    began_at_s: float = 0.0  # since the epoch, when all that it needs was held alone
    ended_at_s: float = 0.0
    held: tuple[str, ...] = ()  # the locks
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase
    load_after: float = 0.0
    trouble: Trouble = ""
    why: str = ""
