"""What a call of each of two functions does to memory, held together: bytes, judged as they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..devices import Unreadable
from ..errors import GradbenchError
from ..memory.usage import Usage
from ..stats import verdicts
from ..stats.verdicts import Verdict

READINGS: Final = 2
"""Of each function, where the two differ: so it shows what varies from call to call."""
CALLS: Final = 2 * READINGS
"""That each takes at most: of a reading, one as it is and one with hooks."""
SHARE: Final = 0.2
"""Of the budget, for these calls, at most."""
LEAST_BUDGET_S: Final = 1.0
"""A budget of which that share holds the start of a profiler."""
FIGURES: Final[Mapping[str, Callable[[Usage], int]]] = {
    "peak": lambda usage: usage.peak_bytes,
    "saved": lambda usage: usage.saved_bytes,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesChange:
    """Bytes of a call of each function; more of the candidate's is worse.

    Inconclusive are those that vary from call to call.
    """

    base_bytes: int
    candidate_bytes: int
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.base_bytes:,} -> {self.candidate_bytes:,} B ({self.verdict})"


def changes(
    usages: Sequence[Callable[[], Usage]], *, budget_s: float, first_s: float
) -> tuple[dict[str, BytesChange], dict[str, str]]:
    """Return what calls of base and candidate take, by figure, and as notes what was not read.

    ``usages`` read a call of each; ``first_s`` is what a call of both took.
    """
    needed_s = max(LEAST_BUDGET_S, CALLS * first_s / SHARE)
    if budget_s < needed_s:
        return {}, {"memory": f"not read: a budget_s of {needed_s:.3g} has time for it"}
    try:
        readings = [[usage() for usage in usages]]
        if len({_figures(usage) for usage in readings[0]}) > 1:
            readings += [[usage() for usage in usages] for _ in range(READINGS - 1)]
    except (Unreadable, GradbenchError) as why:
        return {}, {"memory": f"not read: {why}"}
    found: dict[str, BytesChange] = {}
    unread: dict[str, str] = {}
    for name, figure in FIGURES.items():
        try:
            found[name] = _change([[figure(usage) for usage in both] for both in readings])
        except Unreadable as why:
            unread[name] = f"not read: {why}"
    return found, unread


def _figures(usage: Usage) -> tuple[int, int | None]:
    return usage.peak_bytes, None if isinstance(usage.seen, Unreadable) else usage.saved_bytes


def _change(readings: Sequence[Sequence[int]]) -> BytesChange:
    base, candidate = readings[0]
    vary = any(len({*side}) > 1 for side in zip(*readings, strict=True))
    verdict = Verdict.INCONCLUSIVE if vary else verdicts.of_exact(base, candidate)
    return BytesChange(base_bytes=base, candidate_bytes=candidate, verdict=verdict)
