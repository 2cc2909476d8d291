"""Why two modes differ on one model: what each module does under each mode, counted and timed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

OUTSIDE = ""
"""The path under which stands what no module of the model did: the loop around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCounts:
    """What one module's own forward did in one call, that of the modules inside it left out."""

    operators: Mapping[str, int] = field(default_factory=dict)  # dispatched, by name
    nodes: Mapping[str, int] = field(default_factory=dict)  # of the graph, by name
    saved_bytes: int = 0  # for backward
    tracked_views: int = 0  # views that know their base
    version_counters: int = 0  # tensors that were made with one


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Counts by mode and module, which repeat, and host times by mode, module and round.

    ``host_ns[mode][path]`` has the nanoseconds a call of the module's own forward took, one a
    round; those of all paths add up to the call. Rounds of the modes with equal numbers are pairs.
    """

    classes: Mapping[str, str]  # of modules, by path, in the order in which they first ran
    counts: Mapping[str, Mapping[str, ModuleCounts]]
    host_ns: Mapping[str, Mapping[str, tuple[float, ...]]]
