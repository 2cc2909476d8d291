"""The verdicts on record for each torch version, and how what is seen now differs from them."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ..records.semantics import NOT_RUN, Behaviour, PitfallResult
from .state import RULES, State, disagreements, enter

FILE: Final = Path(__file__).with_name("recorded.json")
"""Written by ``tools/record_semantics.py``; read again by the tests, line by line."""

Record = Mapping[str, Mapping[str, Any]]


def recorded() -> dict[str, Record]:
    """Return version ("2.13") -> claims by id -> verdict, and pitfalls by id -> [shown, cured]."""
    content: dict[str, Record] = json.loads(FILE.read_text("utf-8"))
    return content


def version_of(torch: str) -> str:
    """Return major.minor of a version: builds and patches of one are held to the same record."""
    match = re.match(r"\d+\.\d+", torch)
    return match[0] if match else torch


def against(torch: str) -> str:
    """Return the version whose record a torch is held against: its own, or else the nearest.

    Of the others, the newest that is older; a torch older than all is held against the oldest.
    """
    have = sorted(recorded(), key=_order)
    older = [version for version in have if _order(version) <= _order(version_of(torch))]
    return (older or have[:1])[-1]


def differences(behaviour: Behaviour, version: str, record: Record | None = None) -> Iterator[str]:
    """Yield in words how what was seen differs from the record of a version.

    A proof that was not run says nothing, and a verdict that was not run when it was recorded is
    held against nothing. The truth table is held against the two-bit machine, and repaired
    listings against running to their end, whatever the version.
    """
    record = recorded()[version] if record is None else record
    for claim in behaviour.claims:
        was = record["claims"].get(claim.id, "not on record")
        if NOT_RUN not in (was, claim.verdict) and was != claim.verdict:
            yield f"claim {claim.id}: {was} -> {claim.verdict} ({claim.seen})"
    for pitfall in behaviour.pitfalls:
        now = (pitfall.shown, pitfall.cured)
        words = (pitfall.shown_seen, pitfall.cured_seen)
        was_both = record["pitfalls"].get(pitfall.id, ("not on record",) * 2)
        for part, before, after, word in zip(("shown", "cured"), was_both, now, words, strict=True):
            if NOT_RUN not in (before, after) and before != after:
                yield f"pitfall {pitfall.id}: {part} {before} -> {after} ({word})"
    for step in behaviour.transitions:
        expected = enter(State(*step.before), step.construct, RULES)
        if (expected.grad, expected.inference) != step.after:
            yield f"state: {step.construct} leads from {step.before} to {step.after}"
    yield from (f"table: {words}" for words in disagreements(behaviour.table))
    for listing in behaviour.listings:
        if listing.repaired and listing.error:
            yield f"listing {listing.id}, repaired: stops at {listing.stopped_at}: {listing.error}"


def record_of(behaviour: Behaviour) -> Record:
    """Return what is kept of a torch's behaviour."""
    return {
        "claims": {claim.id: claim.verdict for claim in behaviour.claims},
        "pitfalls": {pitfall.id: [pitfall.shown, pitfall.cured] for pitfall in behaviour.pitfalls},
    }


def versions_where_shown(pitfall: PitfallResult, torch: str) -> tuple[str, ...]:
    """Return the versions that showed a pitfall, by the records and by what was seen now."""
    shown = {
        version
        for version, record in recorded().items()
        if record["pitfalls"].get(pitfall.id, ["no"])[0] == "yes"
    }
    shown.discard(version_of(torch))
    if pitfall.shown == "yes":
        shown.add(version_of(torch))
    return tuple(sorted(shown, key=_order))


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
