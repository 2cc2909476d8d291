"""Where the difference between two modes comes from: counts that repeat, then host times."""

from collections import Counter
from collections.abc import Sequence
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


class Counts(NamedTuple):
    """What repeats: of a call, of a module's part in it, or of the difference of two modes."""

    operators: int
    nodes: int
    saved_bytes: int
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
    """What one module adds to the difference of two modes: the first's less the second's."""

    name: str  # path and class
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
            estimates.median(_whole(explanation, mode)),
        )
        for mode in MODES
    ]


def differences(explanation: Explanation) -> list[Difference]:
    """Return what each pair of `EXPLAINED` modes differs by, module by module."""
    return [_difference(explanation, *pair) for pair in EXPLAINED]


def operators(explanation: Explanation) -> list[Operator]:
    """Return the operators and nodes that some mode has more of than another."""
    by_mode = []
    for mode in MODES:
        found: Counter[str] = Counter()
        for counts in explanation.counts[mode].values():
            found.update(counts.operators)
            found.update(counts.nodes)
        by_mode.append(found)
    names = dict.fromkeys(name for found in by_mode for name in found)
    rows = [Operator(name, [found[name] for found in by_mode]) for name in names]
    differing = [row for row in rows if len(set(row.calls)) > 1]
    return sorted(differing, key=lambda row: min(row.calls) - max(row.calls))


def _difference(explanation: Explanation, first: str, second: str) -> Difference:
    paths = dict.fromkeys(path for mode in (first, second) for path in explanation.host_ns[mode])
    paths |= dict.fromkeys(path for mode in (first, second) for path in explanation.counts[mode])
    parts = [_part(explanation, path, first, second) for path in paths]
    whole = estimates.median(_whole(explanation, first) - _whole(explanation, second))
    parts = [part for part in parts if part.host_ns.point or any(part.counts)]
    return Difference(
        first,
        second,
        whole,
        sorted(parts, key=lambda part: -abs(part.host_ns.point)),
        whole.point - sum(part.host_ns.point for part in parts),
    )


def _part(explanation: Explanation, path: str, first: str, second: str) -> Part:
    before, after = (
        _counts(explanation.counts[mode].get(path, ModuleCounts())) for mode in (first, second)
    )
    times = [_rounds(explanation, mode, path) for mode in (first, second)]
    name = f"{path} {explanation.classes.get(path, '')}".rstrip()
    return Part(
        OUTSIDE_WORDS if path == OUTSIDE else name,
        Counts(*(one - other for one, other in zip(before, after, strict=True))),
        estimates.median(times[0] - times[1]),
    )


def together(parts: Sequence[Part]) -> Counts:
    """Return what several parts count together."""
    return _summed([part.counts for part in parts])


def _summed(rows: Sequence[Counts]) -> Counts:
    return Counts(*(sum(column) for column in zip(*rows, strict=True))) if rows else NOTHING


def _counts(counts: ModuleCounts) -> Counts:
    return Counts(
        sum(counts.operators.values()),
        sum(counts.nodes.values()),
        counts.saved_bytes,
        counts.tracked_views,
        counts.version_counters,
    )


def _rounds(explanation: Explanation, mode: str, path: str) -> estimates.Floats:
    own = explanation.host_ns[mode]
    length = len(next(iter(own.values())))
    return np.asarray(own.get(path, (0.0,) * length), dtype=np.float64)


def _whole(explanation: Explanation, mode: str) -> estimates.Floats:
    return np.asarray(
        np.sum([np.asarray(rounds) for rounds in explanation.host_ns[mode].values()], axis=0),
        dtype=np.float64,
    )
