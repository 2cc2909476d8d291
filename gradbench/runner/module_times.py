"""A clock that splits a call's host time by module: which costs more where a graph is built.

A module's forward is wrapped on the instance, and no hook is set: torch leaves its fused paths
where it sees one. Two readings of the clock a module and call are in every mode's times alike.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..records.explanation import OUTSIDE
from ..workloads.steps import Step


class ModuleClock:
    """Splits a call's host time by module, that of modules inside one left out of its own."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._wrapped = [
            (module, self._timed(path, module.forward))
            for path, module in modules.items()
            if "forward" not in vars(module)  # what stands there already is its owner's
        ]
        self._own: dict[str, int] = defaultdict(int)
        self._inside = [0]  # ns that modules took, for each module that is running

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap the forward of each module, for one visit: a visit begins by putting state back."""
        self._own.clear()
        for module, timed in self._wrapped:
            object.__setattr__(module, "forward", timed)  # its author's own may refuse
        try:
            yield
        finally:
            for module, _ in self._wrapped:
                vars(module).pop("forward", None)

    def split(self, step: Step) -> Step:
        """Return the step; what no module took of it is on the account of `OUTSIDE`."""
        return self._timed(OUTSIDE, step)

    def taken(self) -> dict[str, int]:
        """Return the ns of the last visit, by module."""
        return dict(self._own)

    def _timed(self, path: str, function: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.perf_counter_ns

        def timed(*args: Any, **kwargs: Any) -> Any:
            inside = self._inside
            inside.append(0)
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = clock() - began
                self._own[path] += took - inside.pop()
                inside[-1] += took

        return timed
