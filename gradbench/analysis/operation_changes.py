"""What a step makes torch do on the two sides, held together: evidence beside every time."""

from collections.abc import Mapping
from typing import Any, Final

NAMED: Final = 3
"""Operators that are named at most."""

LEAST: Final = 0.01
"""The smallest change of instructions that is one.

Equal sides differ by up to 0.8%, by where things lie (docs/gate-quality.md).
"""

Operations = Mapping[str, Any]
"""A side's counts, by the names of `StepOperations`, and its ``instructions`` if counted."""


def in_words(base: Operations, candidate: Operations) -> str:
    """Return what changed in a step's operators, nodes, bytes, instructions, or that none did."""
    instructions = _instructions(base, candidate)
    before, now = base.get("operators"), candidate.get("operators")
    if before is None or now is None:
        return "; ".join(["operations not counted", *instructions])
    parts = [*_operators(before, now), *_numbers(base, candidate)]
    return "; ".join([*(parts or ["no change in operations"]), *instructions])


def _instructions(base: Operations, candidate: Operations) -> list[str]:
    before, now = base.get("instructions"), candidate.get("instructions")
    if not before or now is None:
        return []
    change = now / before - 1
    words = f"instructions {change:+.1%}"
    return [words if abs(change) > LEAST else f"{words} (below {LEAST:.1%}: no change)"]


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
