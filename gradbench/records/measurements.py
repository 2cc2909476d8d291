"""What a run consists of: plain records that measuring writes and analysis reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource

Unit = Literal["ns", "bytes", "uJ", "instructions", "ppt"]
Fact = str | int | float | bool
Cause = Literal[
    "cannot_train",  # torch refused to train where a mode records nothing, or after it
    "impossible",  # the axis values contradict one another
    "unavailable",  # the device, or cores enough, are not here
    "unreadable",  # the meter has nothing to read on this device
    "not_applicable",  # a cell of these values has no such figure: nothing of it is compiled, say
    "out_of_memory",
    "crashed",  # the process died
    "timed_out",  # the process was killed at its time limit
    "failed",  # any other exception, in the step's own words
]
NOTHING_TO_READ: Final[tuple[Cause, ...]] = ("unreadable", "not_applicable")
"""Causes that say nothing of the step: it may have run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """First record of a run: what it set out to do, so that it can be resumed."""

    protocol: int
    started_at: str  # UTC, ISO 8601
    command: tuple[str, ...]
    cells: tuple[Cell, ...]
    meters: tuple[str, ...]
    plan: Mapping[str, float]
    sources: Mapping[str, ModelSource] = field(default_factory=dict)  # of models not built in
    shard: str = ""  # "2/3": the part of a matrix that this run is, if it was split
    places: Mapping[str, str] = field(default_factory=dict)  # cell -> "file:line" of its test


BATCH_GIVEN: Final = "batch_given"
"""The note on how many samples a batch has that is the same whatever size is asked for."""

NOT_GUARANTEED: Final = "not guaranteed: "
"""How a fact's name begins that says what a system does not guarantee a measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The facts that decide whether two runs may be compared (`gradbench.store.comparability`).

    A fact that could not be read says ``unknown: ...``. Of a run on several machines each has one;
    outcomes name theirs by ``machine``, which is "" where the run has but one.
    """

    facts: Mapping[str, Fact]
    machine: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one meter read for one cell.

    ``values[i]`` is round ``i`` in ``unit``, as a total over ``iterations`` steps (one number for
    all rounds, or one each where the machine changed on the way); divide to get a step's. Cells
    of one block were visited once in every round, so equal indices are pairs.
    """

    cell: Cell
    meter: str
    unit: Unit
    values: tuple[int, ...]
    iterations: int | tuple[int, ...]
    exact: bool  # does it repeat to the byte? then one round is all there is to know
    notes: Mapping[str, Fact] = field(default_factory=dict)  # load, faults, why timing stopped
    machine: str = ""  # see `Environment`

    @property
    def samples(self) -> int:
        """What throughput counts of a step: those of the cell, or of the batch it was given."""
        given = self.notes.get(BATCH_GIVEN)
        if isinstance(given, int) and not isinstance(given, bool) and given > 0:
            return replace(self.cell, batch_size=given).samples
        return self.cell.samples

    def per_step(self) -> list[float]:
        """Return the rounds in ``unit`` per step."""
        if isinstance(self.iterations, int):
            return [value / self.iterations for value in self.values]
        return [value / count for value, count in zip(self.values, self.iterations, strict=True)]


PARTS: Final = (
    "parameters",
    "buffers",
    "inputs",
    "cache",  # keys and values of earlier tokens
    "gradients",
    "optimizer_state",
    "saved",  # for backward
    "casts",  # copies in another dtype that autocast made, saved or not
    "other",  # live activations that nobody saved, and temporaries
    "unknown",  # what no tensor accounts for: workspaces, an allocator's rounding
)
"""What live bytes are for, in the order in which they are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """What the peak of one cell's step is made of, and how the step gets there.

    ``parts`` sums to what ``peak_allocated`` reads: bytes at the moment of the peak by `PARTS`;
    ``first_parts`` is the same of the very first step. ``timeline[part][i]`` is the bytes of a
    part at moment ``i`` of the step, thinned, with every phase's highest moment kept;
    ``phases[i]`` is the phase of that moment: prepare, forward, loss, backward, optimizer; where
    tokens are made prefill, decode, or of a sequence ``token 2`` and so on.
    ``casts`` is the number of copies in another dtype that autocast made in the step.
    ``modules`` has the bytes saved for backward by the path of the module that had them saved,
    the ten largest, largest first; ``classes`` names the classes of these modules.
    """

    cell: Cell
    parts: Mapping[str, int]
    first_parts: Mapping[str, int]
    timeline: Mapping[str, tuple[int, ...]]
    phases: tuple[str, ...]
    modules: Mapping[str, int]
    rounding_bytes: int = 0  # of ``parts``, what the allocator added to round sizes up
    classes: Mapping[str, str] = field(default_factory=dict)  # by path; runs before it have none
    casts: int = 0
    machine: str = ""  # see `Environment`
    meter: str = "breakdown"

    def titled(self) -> dict[str, int]:
        """Return ``modules`` by path and class: ``5 Conv2d``."""
        return {
            f"{path} {self.classes[path]}" if path in self.classes else path: nbytes
            for path, nbytes in self.modules.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Why one meter has no number for one cell."""

    cell: Cell
    meter: str
    cause: Cause
    reason: str
    traceback: str = ""  # of the user's own frames, where their code raised
    machine: str = ""  # see `Environment`


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Last record of a run that came to its end: where its wall time went."""

    seconds: Mapping[str, float]
    load_after: float


Outcome = Measurement | Skipped
Reading = Measurement | Breakdown | Skipped
"""What a meter has to say of a cell: exactly one of these."""
Record = Started | Environment | Measurement | Breakdown | Skipped | Ended
