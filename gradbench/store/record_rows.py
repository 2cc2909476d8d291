"""A record as a line of JSON and back: what is read is checked here, once, for all behind."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any, Final

from ..errors import GradbenchError
from ..experiment import shards
from ..experiment.model_source import BATCH
from ..records.measurements import (
    PARTS,
    Breakdown,
    Ended,
    Environment,
    Fact,
    Measurement,
    Record,
    Skipped,
    Started,
)
from ..records.validation import LONGEST_TEXT, Misfit, fill, misfit, parse, reader

SCHEMA: Final = 1

_KINDS: Final[Mapping[str, type[Record]]] = {
    "started": Started,
    "environment": Environment,
    "measurement": Measurement,
    "breakdown": Breakdown,
    "skipped": Skipped,
    "ended": Ended,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def row_of(record: Record) -> dict[str, Any]:
    """Return a record as JSON takes it: a number that JSON has not is a word."""
    row: dict[str, Any] = {"kind": _NAMES[type(record)]}
    if isinstance(record, Started):
        row["schema"] = SCHEMA
    row |= asdict(record)
    if row.get("machine") == "":  # as of every run on one machine
        del row["machine"]
    for name in ("facts", "notes"):
        if name in row:
            row[name] = {key: _finite(fact) for key, fact in row[name].items()}
    return {name: _held(value) for name, value in row.items()}


def _held(value: Any) -> Any:
    """Return a value of which every text is one that is read back: not longer than any may be."""
    match value:
        case str():
            return value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT]
        case dict():
            return {_held(name): _held(one) for name, one in value.items()}
        case list() | tuple() if value and not isinstance(value[0], int):  # rounds are many
            return [_held(one) for one in value]
        case _:
            return value


def record_of(line: bytes) -> Record:
    """Return the record of a line; raise `Misfit` for a field that no record can have."""
    row = parse(line)
    if not isinstance(row, dict):
        raise misfit("", "an object", row)
    schema = row.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise Misfit(f"it has schema {schema!r:.40}, this gradbench reads {SCHEMA}: upgrade")
    kind = row.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise misfit("kind", f"one of {', '.join(_KINDS)}, or this gradbench newer", kind)
    if kind == "started" and "started" in row:  # as runs up to 2026-11-26 call it
        row["started_at"] = row.pop("started")
    if kind == "started" and "inputs" in row:  # the same
        row["sources"] = {**_sources(row["inputs"]), **row.get("sources", {})}
    record = fill(_KINDS[kind], row)
    return _CHECKS[type(record)](record)


def _sources(inputs: Any) -> dict[str, Any]:
    """Return the sources of models that were said by import path and the shape of a sample."""
    shapes = reader(Mapping[str, tuple[int, ...]])(inputs, "inputs")
    return {
        build: {"build": build, "input": [",".join(map(str, (BATCH, *shape)))]}
        for build, shape in shapes.items()
    }


def _finite(fact: Fact) -> Fact:
    return str(fact) if isinstance(fact, float) and not math.isfinite(fact) else fact


def _environment(record: Environment) -> Environment:
    _check_names(record.facts, "facts")
    return record


def _check_names(facts: Mapping[str, Fact], where: str) -> None:
    if not all(name.strip() for name in facts):
        raise Misfit(f"{where} has a fact without a name")


def _started(record: Started) -> Started:
    try:
        offset = datetime.fromisoformat(record.started_at).utcoffset()
    except ValueError:
        offset = None
    if offset != timedelta(0):  # runs are in order by this text
        raise misfit("started_at", "a time in UTC as 2026-01-02T03:04:05+00:00", record.started_at)
    for field, check in (("shard", _check_shard), ("sources", _check_inputs)):
        try:
            check(record)
        except GradbenchError as error:
            raise Misfit(f"{field}: {error}") from None
    return record


def _check_shard(record: Started) -> None:
    if record.shard:
        shards.parse(record.shard)


def _check_inputs(record: Started) -> None:
    for source in record.sources.values():
        _ = source.inputs  # each is parsed, or raises


def _measurement(record: Measurement) -> Measurement:
    _check_names(record.notes, "notes")
    least = 1 if record.meter == "step_time" else 0
    if not record.values:
        raise misfit("values", "one number at least", [])
    if record.unit != "bytes" and min(record.values) < least:  # a step may give bytes back
        raise misfit("values", f"{least} {record.unit} or more each", min(record.values))
    counts = record.iterations
    if isinstance(counts, int):
        counts = (counts,)
    elif len(counts) != len(record.values):
        raise Misfit(f"iterations has {len(counts)} numbers for {len(record.values)} values")
    if min(counts) < 1:
        raise misfit("iterations", "1 or more", min(counts))
    return record


def _breakdown(record: Breakdown) -> Breakdown:
    for field in ("parts", "first_parts", "timeline"):
        unknown = sorted(getattr(record, field).keys() - set(PARTS))
        if unknown:
            raise Misfit(f"{field} has {unknown[0]!r:.40}, unknown to this gradbench: upgrade")
    moments = len(record.phases)
    for part, sizes in record.timeline.items():
        if len(sizes) != moments:
            raise Misfit(f"timeline[{part!r}] has {len(sizes)} moments for {moments} phases")
    none, flat = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, (0,) * moments)
    return replace(
        record,
        parts=none | dict(record.parts),
        first_parts=none | dict(record.first_parts),
        timeline=flat | dict(record.timeline),
    )


def _as_it_is(record: Record) -> Record:
    return record


_CHECKS: Final[Mapping[type[Record], Callable[[Any], Record]]] = {
    Started: _started,
    Environment: _environment,
    Measurement: _measurement,
    Breakdown: _breakdown,
    Skipped: _as_it_is,
    Ended: _as_it_is,
}
