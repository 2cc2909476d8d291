"""What was counted under valgrind in a bisection: instructions, where the other counts are silent.

A commit is counted side by side with the good one, so its value is a ratio to the good one's. Equal
code differs a little, by where things lie: values within `LEAST` of one another are alike.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final

from ..experiment.matrix import Cell
from ..records.bisection import Bisection
from .bisected_counts import CountFindings
from .bisection_changes import INSTRUCTIONS, Change, Key, verdict_of
from .bisection_jobs import Instructions
from .commit_graph import Graph, Search
from .followed_figures import Followed, followed
from .operation_changes import LEAST

FOLLOWED: Final = 2 * LEAST
"""The smallest change whose commit is looked for: beyond it no commit is alike to both ends."""


class InstructionFindings:
    """What the instructions of a record say so far."""

    def __init__(self, record: Bisection, graph: Graph, counts: CountFindings) -> None:
        self.record, self.graph, self._counts = record, graph, counts
        self._counted: dict[Cell, dict[str, list[tuple[int, int]]]] = {}
        self._reasons: dict[Cell, dict[str, str]] = {}
        for row in record.instruction_counts:
            if row.counts is None:
                self._reasons.setdefault(row.cell, {})[row.commit] = row.why
            else:
                known = self._counted.setdefault(row.cell, {})
                known.setdefault(row.commit, []).append(row.counts)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that are counted: those that both ends step, with equal counts of all else."""
        if not self.record.instructions:
            return ()
        loud = {key.cell for key in self._counts.differing} | self._counts.unstepped.keys()
        return tuple(cell for cell in self.record.cells if cell not in loud)

    @property
    def of_ends(self) -> Instructions | None:
        """What is to be counted of the ends: the bad commit twice, where it differs."""
        wanted = tuple(cell for cell in self.cells if self._is_open(cell))
        good, bad = self.record.good, self.record.bad
        return Instructions(base=good, commit=bad, cells=wanted) if wanted else None

    @cached_property
    def uncounted(self) -> Mapping[Cell, str]:
        """Why the ends could not be counted, by cell."""
        bad = self.record.bad
        return {
            cell: self._reasons[cell][bad]
            for cell in self.cells
            if bad in self._reasons.get(cell, ())
        }

    @cached_property
    def ends(self) -> Mapping[Cell, float]:
        """The bad commit's instructions as a ratio to the good one's, of cells that have any."""
        return {
            cell: _ratio(self._of_bad(cell)[0])
            for cell in self.cells
            if self._of_bad(cell) and cell not in self.uncounted
        }

    @cached_property
    def unsteady(self) -> tuple[Cell, ...]:
        """The cells of which two counts of the ends do not agree."""
        return tuple(
            cell
            for cell, first in self.ends.items()
            if not all(_alike(first, _ratio(other)) for other in self._of_bad(cell))
        )

    @cached_property
    def differing(self) -> tuple[Cell, ...]:
        """The cells of which the ends differ by so much that the commit is looked for."""
        return tuple(
            cell
            for cell, ratio in self.ends.items()
            if _is_followed(ratio) and not self._is_open(cell) and cell not in self.unsteady
        )

    @property
    def verdicts(self) -> Mapping[Key, str]:
        """How the bad commit's instructions differ from the good one's: better or worse."""
        return {
            Key(cell=cell, figure=INSTRUCTIONS): "worse" if self.ends[cell] > 1 else "better"
            for cell in self.differing
        }

    def values(self, cell: Cell) -> Mapping[str, int]:
        """Return the instructions of a cell's step by commit, as far as they are known.

        Those of the good commit are its first count; others go by their ratio to it.
        """
        known = self._counted[cell]
        good = known[self.record.bad][0][0]
        others = {commit: round(good * _ratio(counts[0])) for commit, counts in known.items()}
        return {self.record.good: good} | others

    @cached_property
    def traces(self) -> Mapping[Cell, Followed]:
        """How far each cell that differs was followed, from the bad commit to the good one."""
        return {
            cell: followed(
                self.graph,
                self.values(cell),
                good=self.record.good,
                bad=self.record.bad,
                unmeasured=self._unmeasured(cell),
                alike=_alike,
            )
            for cell in self.differing
        }

    @cached_property
    def searches(self) -> tuple[Search, ...]:
        """Every search that goes on."""
        return tuple(search for trace in self.traces.values() for search in trace.searches)

    def at(self, commit: str, search: Search) -> Instructions:
        """Return the job that counts a commit, every cell of it, for all searches."""
        cells = tuple(
            cell
            for cell in self.differing
            if commit not in self._counted[cell] and commit not in self._unmeasured(cell)
        )
        return Instructions(base=self.record.good, commit=commit, cells=cells, search=search)

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Every change that is found."""
        return tuple(
            self._change(cell, search, before)
            for cell, trace in self.traces.items()
            for search, before in trace.found
        )

    def _of_bad(self, cell: Cell) -> Sequence[tuple[int, int]]:
        return self._counted.get(cell, {}).get(self.record.bad, ())

    def _is_open(self, cell: Cell) -> bool:
        """Return whether another count of the ends is needed."""
        if cell in self.uncounted:
            return False
        counts = self._of_bad(cell)
        return not counts or (len(counts) == 1 and _is_followed(_ratio(counts[0])))

    def _unmeasured(self, cell: Cell) -> list[str]:
        """Return the commits of which it is known that they have no value."""
        unstepped = (
            one for one in self._counts.commits if not self._counts.can_be_stepped(one, cell)
        )
        return [*unstepped, *self._reasons.get(cell, ())]

    def _change(self, cell: Cell, found: Search, before: Sequence[str]) -> Change:
        values = self.values(cell)
        new = values[found.bad]
        start = max(before, key=lambda one: abs(values[one] - new), default=self.record.good)
        old = values[start]
        words = [f"{new / old - 1:+.1%}", self._counts.in_operations(start, found.bad, cell)]
        if _alike(old, new):
            words[0] += f", one of several smaller than {LEAST:.1%}, which equal code may show"
        return Change(
            key=Key(cell=cell, figure=INSTRUCTIONS),
            suspects=found.suspects,
            before=start,
            verdict=verdict_of(old, new),
            old=old,
            new=new,
            words="; ".join(filter(None, words)),
            inherited=found.inherited,
        )


def _ratio(counts: tuple[int, int]) -> float:
    base, own = counts
    return own / base


def _alike(one: float, other: float) -> bool:
    """Return whether two values may be of equal code."""
    return abs(one - other) <= LEAST * min(one, other)


def _is_followed(ratio: float) -> bool:
    return max(ratio, 1 / ratio) - 1 > FOLLOWED
