"""What the modes were seen to do: truth table, claims, pitfalls and listings as plain data."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from .. import output_files
from ..errors import StoreError
from .validation import Misfit, fill, parse, read_json

FILE: Final = "semantics.json"
"""Where a results folder keeps what `gradbench semantics` last saw."""
WHAT: Final = "record of what the modes do"
_OPENING: Final = re.compile(rb'\s*\{\s*"torch"')

VERDICTS: Final = ("holds", "holds with a qualification", "fails", "not testable")
NOT_RUN: Final = "not run"
RAISED: Final = "raised"
"""Instead of a verdict: the proof needs what is absent here, or it raised what it should not."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one operation gave: a tensor's facts, or the error that was raised."""

    error: str = ""  # the first sentence of the message; then nothing else here means anything
    requires_grad: bool = False
    is_leaf: bool = True
    grad_fn: str = ""  # "" where there is none
    inference: bool = False  # is the result an inference tensor?
    saved: int = 0  # storages that autograd saved for backward
    saved_bytes: int = 0
    version: int | None = 0  # None: inference tensors have no version counter

    @property
    def words(self) -> str:
        """The facts that matter, in a few words."""
        if self.error:
            return f"raises: {self.error}"
        first = self.grad_fn or ("requires grad, no history" if self.requires_grad else "no graph")
        parts = [
            first,
            f"saves {self.saved_bytes} B" if self.saved else "",
            "inference tensor" if self.inference else "",
            f"version {self.version}" if self.version else "",
        ]
        return ", ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class Row:
    """One combination of the truth table, and what was seen in it."""

    ambient: bool  # of ``set_grad_enabled`` called as a function
    outer: str
    inner: str
    input: str
    grad: bool  # is_grad_enabled() inside
    inference: bool  # is_inference_mode_enabled() inside
    restored: bool  # after leaving both blocks, step by step
    restored_after_error: bool
    outcomes: Mapping[str, Outcome]  # by operation


@dataclass(frozen=True, slots=True)
class Transition:
    """Where entering a construct leads from a state; a state is (grad, inference)."""

    before: tuple[bool, bool]
    construct: str
    after: tuple[bool, bool]


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A claim of the article and what its proof came to."""

    id: str
    place: str
    says: str
    truth: str
    about: str  # "memory", "speed": what measured cells bear on it; or ""
    verdict: str  # of `VERDICTS`, or `NOT_RUN`, `RAISED`
    seen: str


@dataclass(frozen=True, slots=True)
class PitfallResult:
    """A pitfall, whether it is one here, and whether its cure cures."""

    id: str
    title: str
    happens: str
    why: str
    cure: str
    link: str
    silent: bool
    shown: str  # "yes", "no", or `NOT_RUN`, `RAISED`
    shown_seen: str
    cured: str
    cured_seen: str
    versions: tuple[str, ...]  # of torch, where it is on record


@dataclass(frozen=True, slots=True)
class ListingResult:
    """A listing that was run, and how far it came."""

    id: str
    wanted: str
    source: str
    repaired: bool
    printed: str
    stopped_at: str  # the source line that raised, "" where it ran to its end
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Everything that `gradbench semantics` saw of one torch."""

    torch: str
    python: str
    when: str  # UTC, ISO 8601
    seconds: Mapping[str, float]  # by part
    recorded: str  # the torch version whose record it was held against, "" without any
    differences: tuple[str, ...]  # from that record
    transitions: tuple[Transition, ...]
    table: tuple[Row, ...]
    claims: tuple[ClaimResult, ...]
    pitfalls: tuple[PitfallResult, ...]
    listings: tuple[ListingResult, ...]


def check_place(path: Path) -> None:
    """Raise `StoreError` where something else is than what was saved so."""
    output_files.check(path, like=_OPENING, what=WHAT)


def save(behaviour: Behaviour, path: Path) -> None:
    """Write as JSON; raise `StoreError` where that cannot be."""
    content = to_json(behaviour).encode("utf-8")
    output_files.write(path, content, like=_OPENING, what=WHAT)


def load(path: Path) -> Behaviour | None:
    """Return what was saved, or None where there is nothing that can be read."""
    with suppress(StoreError, Misfit):
        return _behaviour(read_json(path))
    return None


def load_of(path: Path, *, torch: object) -> Behaviour | None:
    """Return what was saved of this version of torch, or None: another's says nothing of it."""
    behaviour = load(path)
    return behaviour if behaviour is not None and behaviour.torch == torch else None


def to_json(behaviour: Behaviour) -> str:
    """Return one JSON object; rows of the table name their outcomes by number, each written once.

    The last element of a row has a number for each of ``operations``.
    """
    content = {field.name: getattr(behaviour, field.name) for field in fields(behaviour)}
    for name in ("claims", "pitfalls", "listings", "transitions"):
        content[name] = [asdict(one) for one in content[name]]
    numbers: dict[Outcome, int] = {}
    rows = [
        [*astuple(row)[:-1], [numbers.setdefault(o, len(numbers)) for o in row.outcomes.values()]]
        for row in behaviour.table
    ]
    content["operations"] = list(behaviour.table[0].outcomes) if behaviour.table else []
    content["outcomes"] = [asdict(outcome) for outcome in numbers]
    content["table"] = []
    table = ",\n  ".join(json.dumps(row) for row in rows)  # a line each
    return json.dumps(content, indent=1).replace('"table": []', f'"table": [\n  {table}\n ]', 1)


def from_json(text: str) -> Behaviour:
    """Return what `to_json` wrote; raise `Misfit` for anything else."""
    return _behaviour(parse(text))


@dataclass(frozen=True, slots=True)
class _Shared:
    """What a file holds instead of ``outcomes`` in each row: all of them once, by number."""

    operations: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    table: tuple[tuple[Any, ...], ...]


def _behaviour(content: Any) -> Behaviour:
    shared = fill(_Shared, content)
    names = [field.name for field in fields(Row)]
    table = []
    for number, row in enumerate(shared.table):
        if len(row) != len(names) or not isinstance(row[-1], list):
            raise Misfit(f"table[{number}] must have {len(names)} values, the last a list")
        if not all(type(n) is int and 0 <= n < len(shared.outcomes) for n in row[-1]):
            raise Misfit(f"table[{number}] names an outcome that is not there")
        if len(row[-1]) != len(shared.operations):
            raise Misfit(f"table[{number}] must have an outcome for each operation")
        known = dict(zip(shared.operations, (shared.outcomes[n] for n in row[-1]), strict=True))
        facts = fill(_Facts, dict(zip(names, row[:-1], strict=False)), f"table[{number}]")
        table.append(Row(**asdict(facts), outcomes=known))
    if not table:
        raise Misfit("the table is empty")
    behaviour = fill(Behaviour, content | {"table": []})
    unknown = {claim.verdict for claim in behaviour.claims} - {*VERDICTS, NOT_RUN, RAISED}
    if unknown:
        raise Misfit(f"a claim has the verdict {min(unknown)!r}")
    if not all(pitfall.link.startswith("https://") for pitfall in behaviour.pitfalls):
        raise Misfit("a pitfall has a link that is no page")
    return replace(behaviour, table=tuple(table))


@dataclass(frozen=True, slots=True)
class _Facts:
    """A `Row` without its outcomes."""

    ambient: bool
    outer: str
    inner: str
    input: str
    grad: bool
    inference: bool
    restored: bool
    restored_after_error: bool


def counted(behaviour: Behaviour) -> dict[str, int]:
    """Return how many claims came to each verdict, not run and raised included."""
    counts = dict.fromkeys((*VERDICTS, NOT_RUN, RAISED), 0)
    for claim in behaviour.claims:
        counts[claim.verdict] += 1
    return counts


@dataclass(frozen=True, slots=True)
class Sight:
    """Rows of the truth table that came out alike: the state inside, the input, what was seen."""

    grad: bool
    inference: bool
    input: str
    outcomes: tuple[tuple[str, Outcome], ...]  # by operation
    contexts: int  # how many combinations of ambient, outer and inner


def sights(rows: Sequence[Row]) -> list[Sight]:
    """Return what differs among the rows, each once, by state and input."""
    contexts: dict[tuple[bool, bool, str, tuple[tuple[str, Outcome], ...]], int] = {}
    for row in rows:
        key = (row.grad, row.inference, row.input, tuple(row.outcomes.items()))
        contexts[key] = contexts.get(key, 0) + 1
    inputs = list(dict.fromkeys(row.input for row in rows))

    def order(sight: Sight) -> tuple[bool, bool, int]:
        return sight.inference, not sight.grad, inputs.index(sight.input)

    return sorted((Sight(*key, contexts) for key, contexts in contexts.items()), key=order)


def state_words(state: tuple[bool, bool]) -> str:
    """Return a state (grad, inference) in words."""
    grad, inference = state
    return f"grad {'on' if grad else 'off'}{', inference' if inference else ''}"
