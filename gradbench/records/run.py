"""A run as it was loaded: its records, and what they say of it as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..experiment.matrix import Block, Cell, by_block
from ..plurals import counted
from .machines import joined
from .measurements import (
    Breakdown,
    Ended,
    Environment,
    Fact,
    Measurement,
    Outcome,
    Reading,
    Record,
    Skipped,
    Started,
)


@dataclass(frozen=True, repr=False)
class Run:
    """One run as loaded; ``dropped`` says in words what could not be read, if anything."""

    name: str
    records: tuple[Record, ...]
    sealed: bool
    dropped: str = ""

    def __repr__(self) -> str:
        """Return it in a line: its records are thousands, which `gradbench.summary` shows."""
        state = "complete" if self.sealed else "not sealed"
        return f"<Run {self.name}: {counted(len(self.records), 'record')}, {state}>"

    @cached_property
    def header(self) -> Started:
        """What the run set out to do."""
        return next(record for record in self.records if isinstance(record, Started))

    @cached_property
    def environments(self) -> Mapping[str, Environment]:
        """Where it was measured, by machine: one without a name unless there are several."""
        by_machine: dict[str, Environment] = {}
        for record in self.records:
            if isinstance(record, Environment):  # a resumed run has a second one
                by_machine.setdefault(record.machine, record)
        return by_machine

    @cached_property
    def environment(self) -> Environment:
        """What holds for all of its machines; no facts if it ended before they were captured."""
        return joined([*self.environments.values()] or [Environment(facts={})])

    def facts_of(self, outcome: Reading) -> Mapping[str, Fact]:
        """Return the facts of the machine that an outcome is from."""
        return self.environments.get(outcome.machine, self.environment).facts

    @cached_property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Numbers and reasons, in the order they came."""
        return tuple(r for r in self.records if isinstance(r, Measurement | Skipped))

    @cached_property
    def breakdowns(self) -> Mapping[Cell, Breakdown]:
        """What each cell's peak is made of, where that was read."""
        return {r.cell: r for r in self.records if isinstance(r, Breakdown)}

    @property
    def measured(self) -> bool:
        """Whether any meter has a number of any cell."""
        return bool(self.breakdowns) or any(isinstance(o, Measurement) for o in self.outcomes)

    @cached_property
    def ended(self) -> Ended | None:
        """Where the wall time went, if the run came to its end."""
        return next((r for r in reversed(self.records) if isinstance(r, Ended)), None)

    @cached_property
    def done(self) -> frozenset[tuple[Cell, str]]:
        """The (cell, meter) pairs read for every cell of their block."""
        have = {(r.cell, r.meter) for r in (*self.outcomes, *self.breakdowns.values())}
        return frozenset(
            (cell, meter)
            for members in by_block(self.header.cells).values()
            for meter in self.header.meters
            if all((cell, meter) in have for cell in members)
            for cell in members
        )

    def unfinished(self) -> list[Block]:
        """Return the blocks that still miss an outcome."""
        return [
            block
            for block, members in by_block(self.header.cells).items()
            if any((c, m) not in self.done for c in members for m in self.header.meters)
        ]
