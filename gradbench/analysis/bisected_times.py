"""What was timed in a bisection: the cells that are slower or faster, and the commits to blame.

The ends are compared by the rule of the table. Commits between are held against the good one, and
put on one side of half the change; the one that is found is held against its parent.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from ..experiment.matrix import Cell
from ..records.bisection import Bisection, TimedCell
from ..stats import uneven_steps
from ..stats.estimates import Estimate
from ..stats.half_way import HalfWayRule, planned_tests
from ..stats.table_rule import CellVerdict, TableRule, change
from ..stats.verdicts import Verdict, percent
from .bisected_counts import CountFindings
from .bisected_instructions import InstructionFindings
from .bisection_changes import STEPS, TIME, Change, Key
from .commit_graph import Graph, Search, Side

EXPLAINS: Final = 0.7
"""The share of a whole change, on a scale of logarithms, from which one commit explains it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeTrace:
    """The change of a time that is found, or the search that goes on, and against which commit."""

    change: Change | None = None
    search: Search | None = None
    base: str = ""


class TimeFindings:
    """What the times of a record say so far."""

    def __init__(
        self,
        record: Bisection,
        graph: Graph,
        counts: CountFindings,
        instructions: InstructionFindings,
    ) -> None:
        self.record, self.graph, self._counts = record, graph, counts
        self._instructions = instructions
        self.rule = TableRule(threshold=record.threshold, first=record.processes)
        self._timed = {(one.base, one.commit, one.cell): one for one in record.timed}

    def of(self, base: str, commit: str, cell: Cell) -> TimedCell:
        """Return what was timed of a cell at two commits."""
        nothing = TimedCell(base=base, commit=commit, cell=cell)
        return self._timed.get((base, commit, cell), nothing)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The cells whose times are asked for, and which both ends can step."""
        if self.record.times == "none":
            return ()
        return tuple(cell for cell in self._stepped if cell not in self.left_out)

    @cached_property
    def left_out(self) -> tuple[Cell, ...]:
        """The cells that both ends step and of which no time is taken, for their counts differ.

        What else became slower in them is then not known.
        """
        if self.record.times != "silent":
            return ()
        loud = {*(key.cell for key in self._counts.differing), *self._instructions.differing}
        return tuple(cell for cell in self._stepped if cell in loud)

    @cached_property
    def _stepped(self) -> tuple[Cell, ...]:
        without = {key.cell for key in self._counts.differing if key.figure == STEPS}
        without |= self._counts.unstepped.keys()
        return tuple(cell for cell in self.record.cells if cell not in without)

    @cached_property
    def _whole(self) -> Mapping[Cell, TimedCell]:
        """What was timed of the bad commit against the good one, of cells that both step."""
        whole = {cell: self.of(self.record.good, self.record.bad, cell) for cell in self.cells}
        return {cell: one for cell, one in whole.items() if not one.failure}

    @property
    def failures(self) -> Mapping[Cell, str]:
        """Why the ends could not be timed, of cells that have no time for that reason."""
        whole = {cell: self.of(self.record.good, self.record.bad, cell) for cell in self.cells}
        return {cell: one.failure for cell, one in whole.items() if one.failure}

    @cached_property
    def open(self) -> tuple[Cell, ...]:
        """The cells of which it is not settled whether the ends differ."""
        suspects = self._suspects
        return tuple(
            cell for cell, own in self._whole.items() if self.rule.more(own.logs, suspects=suspects)
        )

    @property
    def _suspects(self) -> int:
        return self.rule.suspects(own.logs for own in self._whole.values())

    def _verdict(self, one: TimedCell, *, suspects: int) -> CellVerdict:
        """Return how a commit's times are held against another's, by the mean, too."""
        return uneven_steps.judged(
            self.rule.verdict(one.logs, suspects=suspects),
            one.logs,
            one.means,
            threshold=self.rule.threshold,
            cells=len(self._whole),
        )

    @cached_property
    def verdicts(self) -> Mapping[Cell, CellVerdict]:
        """How the bad commit's times are held against the good one's, of cells that have any."""
        suspects = self._suspects
        return {
            cell: self._verdict(own, suspects=suspects)
            for cell, own in self._whole.items()
            if own.logs
        }

    @cached_property
    def differing(self) -> Mapping[Cell, CellVerdict]:
        """The cells that are slower or faster beyond the threshold; none before all is settled."""
        changed = (Verdict.WORSE, Verdict.BETTER)
        found = {cell: one for cell, one in self.verdicts.items() if one.verdict in changed}
        return {} if self.open else found

    def half_way(self, cell: Cell) -> HalfWayRule:
        """Return the rule by which commits between the ends are sorted."""
        cells = len(self.differing)
        looked_at = {one.commit for one in self.record.timed if one.base == self.record.good}
        return HalfWayRule(
            change_log=math.log(self._whole_change(cell).point),
            tests=max(planned_tests(len(self.graph.ids), cells), len(looked_at) * cells),
            first=self.record.processes,
        )

    def _whole_change(self, cell: Cell) -> Estimate:
        """Return the change between the ends: of the mean where that alone shows it."""
        whole = self.differing[cell]
        return whole.average or whole.change

    def _followed(self, one: TimedCell) -> tuple[float, ...]:
        """Return the log ratios of the figure that is followed from the bad commit down."""
        whole = self.differing.get(one.cell)
        return one.means if whole is not None and whole.average is not None else one.logs

    def change(self, one: TimedCell) -> Estimate:
        """Return the change of the figure that is followed, of a cell that has replicates."""
        return change(self._followed(one))

    @cached_property
    def traces(self) -> Mapping[Cell, TimeTrace]:
        """What is found of each cell that is slower or faster."""
        return {cell: self._traced(cell) for cell in self.differing}

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Every change that is found."""
        return tuple(one.change for one in self.traces.values() if one.change is not None)

    def _traced(self, cell: Cell) -> TimeTrace:
        good, bad, half = self.record.good, self.record.bad, self.half_way(cell)
        between = [one for one in self.record.timed if (one.base, one.cell) == (good, cell)]
        sides: dict[str, Side] = {
            commit: Side.UNKNOWN
            for commit in self._counts.commits
            if not self._counts.can_be_stepped(commit, cell)
        }
        for one in between:
            if one.commit == bad:
                continue
            if not one.failure and half.more(self._followed(one)):
                search = Search(bad=bad, suspects=(), next=one.commit, untested=1)
                return TimeTrace(search=search, base=good)
            sides[one.commit] = _side(None if one.failure else half.is_beyond(self._followed(one)))
        found = self.graph.first_bad(bad, sides | {good: Side.GOOD, bad: Side.BAD})
        if found.next is not None:
            return TimeTrace(search=found, base=good)
        return self._confirmed(cell, found)

    def _confirmed(self, cell: Cell, found: Search) -> TimeTrace:
        """Hold the one commit that is found against its parent, by the rule of the table."""
        whole, suspects = self.differing[cell], len(self.differing)
        exact = len(found.suspects) == 1 and not found.inherited
        base = next(iter(self.graph.before(found)), "") if exact else ""
        one = self.of(base or self.record.good, found.bad, cell)
        if exact and not one.failure and self.rule.more(one.logs, suspects=suspects):
            return TimeTrace(search=replace(found, next=found.bad, untested=1), base=one.base)
        held = bool(one.logs) and not one.failure
        own = self._verdict(one, suspects=suspects) if held else whole
        own = replace(own, change=self.change(one) if held else self._whole_change(cell))
        before = one.base if held else self.record.good
        return TimeTrace(
            change=Change(
                key=Key(cell=cell, figure=TIME),
                suspects=found.suspects,
                before=before,
                verdict=str(whole.verdict),
                old=1.0,
                new=own.change.point,
                words=self._words(cell, found, before, own, one.failure),
                estimate=own.change,
                inherited=found.inherited,
            )
        )

    def _words(self, cell: Cell, found: Search, base: str, own: CellVerdict, failure: str) -> str:
        words = own.reason
        of_mean = self.differing[cell].average is not None
        if failure:
            words = f"the whole range's change: it could not be timed by itself: {failure}"
        elif own.verdict in (Verdict.SAME, Verdict.INCONCLUSIVE) or (
            of_mean and own.verdict is not Verdict.WORSE
        ):
            words = f"held against {base[:10]} it is not confirmed: {words}"
        operations = self._counts.in_operations(base, found.bad, cell)
        words += f"; {operations}" if operations else ""
        whole = self._whole_change(cell).point
        if math.log(own.change.point) / math.log(whole) < EXPLAINS:
            words += (
                f"; this is a part of the whole, {percent(whole)}: "
                "the rest came in smaller steps, or at other commits"
            )
        return words


def _side(beyond: bool | None) -> Side:
    return Side.UNKNOWN if beyond is None else Side.BAD if beyond else Side.GOOD
