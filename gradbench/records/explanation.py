"""Why two modes differ on one model: what its modules and operators do, counted and timed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

OUTSIDE = ""
"""The path under which stands what no module of the model did, or no operator: the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCounts:
    """What one module's own forward did in one call, that of the modules inside it left out."""

    operators: Mapping[str, int] = field(default_factory=dict)  # dispatched, by name
    nodes: Mapping[str, int] = field(default_factory=dict)  # of the graph, by name
    saved_bytes: int | None = 0  # for backward; None where the call fails with hooks on that
    tracked_views: int = 0  # views that know their base
    version_counters: int = 0  # tensors that were made with one


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCounts:
    """What the calls of one operator did in one call of the model."""

    calls: int = 0  # those that other operators made included
    nodes: int = 0  # of the graph
    saved_bytes: int | None = 0  # for backward, by these nodes; None as for modules


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Counts by mode and module or operator, which repeat, and host times by round beside them.

    ``host_ns[mode][path]`` has the nanoseconds a call of the module's own forward took, one a
    round; those of all paths add up to the call. Rounds of the modes with equal numbers are pairs.
    ``operator_ns[mode][name]`` has the same by operator, of rounds of their own.
    """

    classes: Mapping[str, str]  # of modules, by path, in the order in which they first ran
    counts: Mapping[str, Mapping[str, ModuleCounts]]
    host_ns: Mapping[str, Mapping[str, tuple[float, ...]]]
    operators: Mapping[str, Mapping[str, OperatorCounts]]
    operator_ns: Mapping[str, Mapping[str, tuple[float, ...]]]
