"""What was counted in a bisection: the figures that differ, and the commits that changed them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import pairwise

from ..experiment.matrix import Cell
from ..records.bisection import Bisection, CellCounts, CountedCommit
from . import operation_changes
from .bisection_changes import STEPS, Change, Key, Value, total, values_of, verdict_of
from .commit_graph import Graph, Search
from .followed_figures import Followed, followed


class CountFindings:
    """What the counts of a record say so far."""

    def __init__(self, record: Bisection, graph: Graph) -> None:
        self.record, self.graph = record, graph
        self.ends = (record.good, record.bad)
        self.commits: dict[str, CountedCommit] = {}
        for one in record.counted:
            self.commits.setdefault(one.commit, one)

    def of(self, commit: str, cell: Cell) -> CellCounts | None:
        """Return a cell's counts at a commit, if it was looked at and could be measured."""
        counted = self.commits.get(commit)
        cells = counted.cells if counted is not None else ()
        return next((one for one in cells if one.cell == cell), None)

    def can_be_stepped(self, commit: str, cell: Cell) -> bool:
        """Return whether a cell is known to be stepped at a commit."""
        counts = self.of(commit, cell)
        return counts is not None and not counts.failure and not counts.skipped

    @cached_property
    def values(self) -> Mapping[Key, Mapping[str, Value]]:
        """What is known of each figure, by commit."""
        found: dict[Key, dict[str, Value]] = {}
        for commit, one in self.commits.items():
            for key, value in values_of(one):
                found.setdefault(key, {})[commit] = value
        return found

    @cached_property
    def unsteady(self) -> tuple[Key, ...]:
        """The figures that differ between two counts of an end of the range."""
        differ: dict[Key, None] = {}
        for end in self.ends:
            counts = [dict(values_of(one)) for one in self.record.counted if one.commit == end]
            for one, other in pairwise(counts):
                differ |= dict.fromkeys(key for key in one if one[key] != other.get(key))
        return tuple(differ)

    @cached_property
    def differing(self) -> tuple[Key, ...]:
        """The figures that differ between the good commit and the bad one."""
        left_out, (good, bad) = {*self.unsteady, *self.in_doubt}, self.ends
        return tuple(
            key
            for key, values in self.values.items()
            if key not in left_out and {good, bad} <= values.keys() and values[good] != values[bad]
        )

    @cached_property
    def in_doubt(self) -> Mapping[Key, str]:
        """Whether cells can be stepped that an end of the range may be able to step, and why.

        The good commit was killed there, perhaps by others or too soon: that makes no later commit
        better. Others may have ended the bad one: that makes it no worse.
        """
        good, bad = (self.commits.get(end) for end in self.ends)
        doubts = [("good", one) for one in (good.cells if good is not None else ()) if one.doubt]
        doubts += [("bad", one) for one in (bad.cells if bad is not None else ()) if one.by_others]
        return {
            Key(cell=one.cell, figure=STEPS): f"the {name} commit {one.doubt}"
            for name, one in doubts
        }

    @property
    def unmeasurable_end(self) -> tuple[str, str] | None:
        """The end of the range that cannot be measured, and why; None where both can."""
        for end in self.ends:
            counted = self.commits.get(end)
            if counted is not None and counted.skipped:
                return end, counted.skipped
        return None

    @cached_property
    def unstepped(self) -> Mapping[Cell, str]:
        """The cells that can be stepped at neither end, or of which that is not known, and why."""
        found = {}
        for cell in self.record.cells:
            ends = [one for end in self.ends if (one := self.of(end, cell)) is not None]
            skipped = [one.skipped for one in ends if one.skipped]
            failures = [one.failure for one in ends if one.failure]
            doubt = self.in_doubt.get(Key(cell=cell, figure=STEPS))
            if skipped or len(failures) == len(self.ends):
                found[cell] = (skipped or failures)[0]
            elif doubt is not None:
                found[cell] = doubt
        return found

    @cached_property
    def traces(self) -> Mapping[Key, Followed]:
        """How far each figure that differs was followed, from the bad commit to the good one."""
        good, bad = self.ends
        return {
            key: followed(self.graph, self.values[key], good=good, bad=bad, unmeasured=self.commits)
            for key in self.differing
        }

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Every change that is found."""
        return tuple(
            self._change(key, search, before)
            for key, trace in self.traces.items()
            for search, before in trace.found
        )

    @cached_property
    def searches(self) -> tuple[Search, ...]:
        """Every search that goes on."""
        return tuple(search for trace in self.traces.values() for search in trace.searches)

    def in_operations(self, before: str, after: str, cell: Cell) -> str:
        """Return in words what changed between two commits, or that nothing did."""
        sides = self.of(before, cell), self.of(after, cell)
        if sides[0] is None or sides[1] is None:
            return ""
        return operation_changes.in_words(asdict(sides[0]), asdict(sides[1]))

    def _change(self, key: Key, found: Search, before: Sequence[str]) -> Change:
        values = self.values[key]
        new = values[found.bad]
        start = next((one for one in before if values[one] != new), self.record.good)
        old = values[start]
        return Change(
            key=key,
            suspects=found.suspects,
            before=start,
            verdict=verdict_of(old, new),
            old=total(old),
            new=total(new),
            words=self._words(key, start, found.bad),
            inherited=found.inherited,
        )

    def _words(self, key: Key, before: str, after: str) -> str:
        """Return what the values alone do not say: which operators, or the step's own words."""
        sides = self.of(before, key.cell), self.of(after, key.cell)
        assert sides[0] is not None
        assert sides[1] is not None
        if key.figure == STEPS:
            return sides[1].failure or f"before: {sides[0].failure}"
        if key.figure != "operators":
            return ""
        operators = ({"operators": side.operators} for side in sides if side is not None)
        return operation_changes.in_words(*operators).removeprefix("operators: ")

    @cached_property
    def detours(self) -> Mapping[Key, Sequence[tuple[str, Value]]]:
        """The figures that go up and come down, or leave a value and come back: value by commit.

        Of a history with branches, in which commits have no order, as far as changes were found.
        """
        unsteady, found = set(self.unsteady), {}
        for key, values in self.values.items():
            steps = self._steps(key, values)
            if key not in unsteady and _turns([value for _, value in steps]):
                found[key] = steps
        return found

    def _steps(self, key: Key, values: Mapping[str, Value]) -> list[tuple[str, Value]]:
        """Return the commits at which a figure was seen to have another value than before."""
        order = [self.record.good, *self.graph.ids]
        if not self.graph.is_linear:
            own = {c.suspects[-1] for c in self.changes if c.key == key}
            order = [self.record.good, *(one for one in self.graph.ids if one in own)]
        known = [(commit, values[commit]) for commit in order if commit in values]
        return known[:1] + [one for before, one in pairwise(known) if one[1] != before[1]]


def _turns(values: Sequence[Value]) -> bool:
    """Return whether a figure goes both up and down, or leaves a value and comes back to it."""
    totals = list(map(total, values))
    up = {after > before for before, after in pairwise(totals) if after != before}
    return len(up) == 2 or len(set(values)) < len(values)
