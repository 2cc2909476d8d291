"""What a step makes torch do on the two sides, held together: evidence beside every time."""

from collections.abc import Mapping
from typing import Any, Final

NAMED: Final = 3
"""Operators that are named at most."""

Operations = Mapping[str, Any]
"""A side's counts, by the names of `StepOperations`."""


def in_words(base: Operations, candidate: Operations) -> str:
    """Return what changed in a step's operators, graph nodes and peak, or that nothing did."""
    before, now = base.get("operators"), candidate.get("operators")
    if before is None or now is None:
        return "operations not counted"
    parts = [*_operators(before, now), *_numbers(base, candidate)]
    return "; ".join(parts) if parts else "no change in operations"


def _operators(before: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    changes = {
        name: now.get(name, 0) - before.get(name, 0)
        for name in sorted({*before, *now})
        if now.get(name, 0) != before.get(name, 0)
    }
    ordered = sorted(changes, key=lambda name: -abs(changes[name]))
    if not ordered:
        return []
    named = ", ".join(f"{changes[name]:+,} {name}" for name in ordered[:NAMED])
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return [f"operators: {named}{more}"]


def _numbers(base: Operations, candidate: Operations) -> list[str]:
    words = []
    for name, what, unit in (
        ("nodes", "graph nodes", ""),
        ("saved_bytes", "saved", " B"),
        ("peak_bytes", "peak", " B"),
    ):
        before, now = base.get(name), candidate.get(name)
        if before is not None and now is not None and before != now:
            words.append(f"{what} {now - before:+,}{unit}")
    return words
