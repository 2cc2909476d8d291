"""Where the difference between two modes comes from: counts that repeat, then host times."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from ..records.explanation import OUTSIDE, Explanation, ModuleCounts
from ..stats import estimates
from ..stats.estimates import Estimate

MODES: Final = ("global_on", "no_grad", "inference_mode")
EXPLAINED: Final = (("global_on", "no_grad"), ("no_grad", "inference_mode"))
"""The pairs of modes whose difference is explained: with a graph or not, with versions or not."""
OUTSIDE_WORDS: Final = "(outside of the model)"
NO_OPERATOR: Final = "(outside of operators)"

Rounds = tuple[float, ...]


class Counts(NamedTuple):
    """What repeats: of a call, of a part of it, or of the difference of two modes."""

    operators: int  # calls of them
    nodes: int
    saved_bytes: int | None  # None: not known
    tracked_views: int
    version_counters: int


NOTHING: Final = Counts(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Totals:
    """What one call does under one mode, all modules together."""

    mode: str
    counts: Counts
    host_ns: Estimate


@dataclass(frozen=True, slots=True)
class Part:
    """What a module or operator adds to a difference: the first mode's less the second's."""

    name: str  # path and class, or the operator's
    counts: Counts
    host_ns: Estimate  # of the paired differences; negative where the second mode takes longer

    @property
    def sure(self) -> bool:
        """Whether the whole interval of its time lies on one side of 0."""
        return self.host_ns.low > 0 or self.host_ns.high < 0


@dataclass(frozen=True, slots=True)
class Difference:
    """Two modes of one model, and what their difference is made of, the largest part first."""

    first: str
    second: str
    whole_ns: Estimate
    parts: Sequence[Part]
    unexplained_ns: float  # the whole less the sum of the parts


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator or kind of node, and how often it is in a call under each mode."""

    name: str
    calls: Sequence[int]  # in the order of `MODES`


def totals(explanation: Explanation) -> list[Totals]:
    """Return a row a mode."""
    return [
        Totals(
            mode,
            _summed([_counts(one) for one in explanation.counts[mode].values()]),
            estimates.median(_whole(explanation.host_ns[mode])),
        )
        for mode in MODES
    ]


def differences(explanation: Explanation) -> list[Difference]:
    """Return what each pair of `EXPLAINED` modes differs by, module by module."""
    counts = {
        mode: {path: _counts(one) for path, one in explanation.counts[mode].items()}
        for mode in MODES
    }

    def name(path: str) -> str:
        whole = f"{path} {explanation.classes.get(path, '')}".rstrip()
        return OUTSIDE_WORDS if path == OUTSIDE else whole

    return [_difference(counts, explanation.host_ns, name, *pair) for pair in EXPLAINED]


def operator_differences(explanation: Explanation) -> list[Difference]:
    """Return the same operator by operator, of rounds of their own."""
    counts = {
        mode: {
            name: Counts(one.calls, one.nodes, one.saved_bytes, 0, 0)
            for name, one in explanation.operators[mode].items()
        }
        for mode in MODES
    }

    def name(operator: str) -> str:
        return operator or NO_OPERATOR

    return [_difference(counts, explanation.operator_ns, name, *pair) for pair in EXPLAINED]


def operators(explanation: Explanation) -> list[Operator]:
    """Return the operators and nodes that some mode has more of than another."""
    by_mode = []
    for mode in MODES:
        calls: Counter[str] = Counter()
        for counts in explanation.counts[mode].values():
            calls.update(counts.operators)
            calls.update(counts.nodes)
        by_mode.append(calls)
    names = dict.fromkeys(name for calls in by_mode for name in calls)
    rows = [Operator(name, [calls[name] for calls in by_mode]) for name in names]
    differing = [row for row in rows if len(set(row.calls)) > 1]
    return sorted(differing, key=lambda row: min(row.calls) - max(row.calls))


def _difference(
    counts: Mapping[str, Mapping[str, Counts]],
    host_ns: Mapping[str, Mapping[str, Rounds]],
    name: Callable[[str], str],
    first: str,
    second: str,
) -> Difference:
    keys = dict.fromkeys(key for mode in (first, second) for key in (*host_ns[mode], *counts[mode]))
    parts = []
    for key in keys:
        before, after = (counts[mode].get(key, NOTHING) for mode in (first, second))
        times = [_rounds(host_ns[mode], key) for mode in (first, second)]
        part = Part(
            name(key),
            _less(before, after),
            estimates.median(times[0] - times[1]),
        )
        if part.host_ns.point or any(part.counts):
            parts.append(part)
    whole = estimates.median(_whole(host_ns[first]) - _whole(host_ns[second]))
    return Difference(
        first,
        second,
        whole,
        sorted(parts, key=lambda part: -abs(part.host_ns.point)),
        whole.point - sum(part.host_ns.point for part in parts),
    )


def together(parts: Sequence[Part]) -> Counts:
    """Return what several parts count together."""
    return _summed([part.counts for part in parts])


def _summed(rows: Sequence[Counts]) -> Counts:
    saved = [row.saved_bytes for row in rows if row.saved_bytes is not None]
    return Counts(
        operators=sum(row.operators for row in rows),
        nodes=sum(row.nodes for row in rows),
        saved_bytes=sum(saved) if len(saved) == len(rows) else None,
        tracked_views=sum(row.tracked_views for row in rows),
        version_counters=sum(row.version_counters for row in rows),
    )


def _less(before: Counts, after: Counts) -> Counts:
    """Return the first counts less the second."""
    saved_bytes = None
    if before.saved_bytes is not None and after.saved_bytes is not None:
        saved_bytes = before.saved_bytes - after.saved_bytes
    return Counts(
        operators=before.operators - after.operators,
        nodes=before.nodes - after.nodes,
        saved_bytes=saved_bytes,
        tracked_views=before.tracked_views - after.tracked_views,
        version_counters=before.version_counters - after.version_counters,
    )


def _counts(counts: ModuleCounts) -> Counts:
    return Counts(
        sum(counts.operators.values()),
        sum(counts.nodes.values()),
        counts.saved_bytes,
        counts.tracked_views,
        counts.version_counters,
    )


def _rounds(own: Mapping[str, Rounds], key: str) -> estimates.Floats:
    length = len(next(iter(own.values())))
    return np.asarray(own.get(key, (0.0,) * length), dtype=np.float64)


def _whole(own: Mapping[str, Rounds]) -> estimates.Floats:
    return np.asarray(
        np.sum([np.asarray(rounds) for rounds in own.values()], axis=0), dtype=np.float64
    )
