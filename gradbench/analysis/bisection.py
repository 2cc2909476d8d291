"""What a bisection's record comes to so far: which commits changed what, what is next. Pure.

It is worked out anew from what was measured, so a bisection that goes on needs no other state.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Final

from ..exit_status import ExitStatus
from ..experiment.matrix import Cell
from ..records.bisection import Bisection, CellCounts, CountedCommit
from ..stats.half_way import HalfWayRule, planned_tests
from ..stats.table_rule import CellVerdict, TableRule
from ..stats.verdicts import Verdict
from . import format_units, operation_changes
from .commit_graph import Graph, Search, Side

COUNTS: Final[Mapping[str, str]] = {
    "operators": "operators",
    "nodes": "graph nodes",
    "saved_bytes": "saved for backward",
    "peak_bytes": "peak of the step's tensors",
}
"""The figures that are counted, and what they are called."""
STEPS: Final = "steps"
TIME: Final = "step_time"
NAMES: Final[Mapping[str, str]] = {**COUNTS, STEPS: "can be stepped", TIME: "step time"}

EXPLAINS: Final = 0.7
"""The share of a whole change, on a scale of logarithms, from which one commit explains it."""

Value = int | bool | tuple[tuple[str, int], ...]
"""A count; of operators how many there are of each; whether a cell can be stepped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A figure of a cell."""

    cell: Cell
    figure: str

    def __str__(self) -> str:
        return f"{NAMES[self.figure]} of {self.cell}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of a figure: the commits that one of made it, oldest first, and from what to what.

    ``before`` is the commit that it is held against. ``verdict`` is better, worse, or changed where
    neither can be said.
    """

    key: Key
    suspects: tuple[str, ...]
    before: str
    verdict: str
    old: str
    new: str
    words: str
    inherited: bool = False  # a merge brings it in, from a line that was so before the range


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """One commit, or some of which it is one, with all that changed there."""

    suspects: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def verdict(self) -> str:
        """``worse`` where any figure is, else ``better`` where any is, else ``changed``."""
        found = {change.verdict for change in self.changes}
        return next((one for one in ("worse", "better") if one in found), "changed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What to do next: count every cell at a commit."""

    commit: str
    search: Search | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """What to do next: another replicate of these cells, commit against base."""

    base: str
    commit: str
    cells: tuple[Cell, ...]
    search: Search | None = None


class Findings:
    """What a record says; built anew when the record has grown."""

    def __init__(self, record: Bisection, graph: Graph) -> None:
        self.record, self.graph = record, graph
        self.counted: dict[str, CountedCommit] = {}
        for one in record.counted:
            self.counted.setdefault(one.commit, one)
        self._timed = {(one.base, one.commit, one.cell): one for one in record.timed}

    # What was counted

    @cached_property
    def values(self) -> Mapping[Key, Mapping[str, Value]]:
        """What is known of each figure, by commit."""
        found: dict[Key, dict[str, Value]] = {}
        for commit, one in self.counted.items():
            for key, value in _values(one):
                found.setdefault(key, {})[commit] = value
        return found

    @cached_property
    def unsteady(self) -> tuple[Key, ...]:
        """The figures that differ between two counts of the good commit."""
        first, *others = [one for one in self.record.counted if one.commit == self.record.good] or [
            CountedCommit(commit=self.record.good)
        ]
        known = dict(_values(first))
        return tuple(
            dict.fromkeys(
                key for other in others for key, value in _values(other) if known.get(key) != value
            )
        )

    @cached_property
    def differing(self) -> tuple[Key, ...]:
        """The figures that are counted and differ between the good commit and the bad one."""
        unsteady = set(self.unsteady)
        ends = (self.record.good, self.record.bad)
        return tuple(
            key
            for key, values in self.values.items()
            if key not in unsteady
            and all(end in values for end in ends)
            and values[ends[0]] != values[ends[1]]
        )

    @property
    def unmeasurable_end(self) -> tuple[str, str] | None:
        """The end of the range that cannot be measured, and why; None where both can."""
        for end in (self.record.good, self.record.bad):
            counted = self.counted.get(end)
            if counted is not None and counted.skipped:
                return end, counted.skipped
        return None

    @cached_property
    def unstepped(self) -> Mapping[Cell, str]:
        """The cells that can be stepped at neither end, or of which that is not known, and why."""
        found = {}
        for cell in self.record.cells:
            ends = [self._counts(end, cell) for end in (self.record.good, self.record.bad)]
            if any(one is not None and one.skipped for one in ends):
                found[cell] = next(one.skipped for one in ends if one is not None and one.skipped)
            elif all(one is not None and one.failure for one in ends):
                found[cell] = next(one.failure for one in ends if one is not None)
        return found

    def _counts(self, commit: str, cell: Cell) -> CellCounts | None:
        counted = self.counted.get(commit)
        cells = counted.cells if counted is not None else ()
        return next((one for one in cells if one.cell == cell), None)

    # Which commits changed what is counted

    @cached_property
    def _count_traces(self) -> Mapping[Key, "_Trace"]:
        return {key: self._traced(key) for key in self.differing}

    def _traced(self, key: Key) -> "_Trace":
        """Follow a figure down from the bad commit, change by change, to the good one's value."""
        values = self.values[key]
        trace, targets, seen = _Trace([], []), [self.record.bad], set[str]()
        while targets:
            target = targets.pop()
            seen.add(target)
            found = self.graph.first_bad(target, self._sides(values, values[target]))
            if found.next is not None:
                trace.searches.append(found)
                continue
            before = self._before(found)
            trace.changes.append(self._change(key, found, [one for one in before if one in values]))
            targets += [
                one
                for one in before
                if one in self.graph
                and one not in seen
                and values.get(one, values[self.record.good]) != values[self.record.good]
                and not found.inherited
            ]
        return trace

    def _sides(self, values: Mapping[str, Value], target: Value) -> Mapping[str, Side]:
        return {
            commit: Side.UNKNOWN
            if commit not in values
            else Side.BAD
            if values[commit] == target
            else Side.GOOD
            for commit in self.counted
        }

    def _before(self, found: Search) -> list[str]:
        """Return the parents of what was found that are not suspects themselves."""
        parents = [parent for one in found.suspects for parent in self.graph.parents(one)]
        return [one for one in dict.fromkeys(parents) if one not in found.suspects]

    def _change(self, key: Key, found: Search, before: Sequence[str]) -> Change:
        start = before[0] if before else self.record.good
        old, new = self.values[key][start], self.values[key][found.bad]
        return Change(
            key=key,
            suspects=found.suspects,
            before=start,
            verdict=_verdict(old, new),
            old=in_words(key.figure, old),
            new=in_words(key.figure, new),
            words=self._words(key, start, found.bad),
            inherited=found.inherited,
        )

    def _words(self, key: Key, before: str, after: str) -> str:
        """Return what the values alone do not say: which operators, or the step's own words."""
        sides = self._counts(before, key.cell), self._counts(after, key.cell)
        assert sides[0] is not None
        assert sides[1] is not None
        if key.figure == STEPS:
            return sides[1].failure or f"before: {sides[0].failure}"
        if key.figure != "operators":
            return ""
        before_and_after = ({"operators": side.operators} for side in sides if side is not None)
        return operation_changes.in_words(*before_and_after).removeprefix("operators: ")

    # Which commits changed a time

    @cached_property
    def rule(self) -> TableRule:
        """The rule by which the good and the bad commit are compared, and the culprit confirmed."""
        return TableRule(threshold=self.record.threshold, first=self.record.processes)

    @cached_property
    def timed_cells(self) -> tuple[Cell, ...]:
        """The cells whose times are bisected, as far as they differ."""
        if self.record.times == "none":
            return ()
        loud = {key.cell for key in self.differing} if self.record.times == "silent" else set()
        steps = {
            key.cell
            for key in self.differing
            if key.figure == STEPS  # at one end it cannot be stepped
        }
        return tuple(
            cell for cell in self.record.cells if cell not in {*loud, *steps, *self.unstepped}
        )

    def _logs(self, base: str, commit: str, cell: Cell) -> tuple[float, ...]:
        timed = self._timed.get((base, commit, cell))
        return timed.logs if timed is not None else ()

    def _failed(self, base: str, commit: str, cell: Cell) -> str:
        timed = self._timed.get((base, commit, cell))
        return timed.failure if timed is not None else ""

    @cached_property
    def time_verdicts(self) -> Mapping[Cell, CellVerdict]:
        """How the bad commit's times are held against the good one's, of cells that have any."""
        ends = (self.record.good, self.record.bad)
        logs = {
            cell: self._logs(*ends, cell)
            for cell in self.timed_cells
            if not self._failed(*ends, cell)
        }
        suspects = self.rule.suspects(logs.values())
        return {
            cell: self.rule.verdict(own, suspects=suspects) for cell, own in logs.items() if own
        }

    @cached_property
    def _open_times(self) -> tuple[Cell, ...]:
        """The cells whose times at both ends are not settled."""
        ends = (self.record.good, self.record.bad)
        cells = [cell for cell in self.timed_cells if not self._failed(*ends, cell)]
        suspects = self.rule.suspects(self._logs(*ends, cell) for cell in cells)
        return tuple(
            cell for cell in cells if self.rule.more(self._logs(*ends, cell), suspects=suspects)
        )

    @cached_property
    def slower_or_faster(self) -> Mapping[Cell, CellVerdict]:
        """The cells whose time has changed beyond the threshold."""
        if self._open_times:
            return {}
        return {
            cell: found
            for cell, found in self.time_verdicts.items()
            if found.verdict in (Verdict.WORSE, Verdict.BETTER)
        }

    @cached_property
    def _time_traces(self) -> Mapping[Cell, "_TimeTrace"]:
        return {cell: self._timed_trace(cell) for cell in self.slower_or_faster}

    def half_way(self, cell: Cell) -> HalfWayRule:
        """Return the rule by which commits between are sorted."""
        asked = len({one.commit for one in self.record.timed if one.base == self.record.good})
        cells = len(self.slower_or_faster)
        return HalfWayRule(
            change_log=math.log(self.slower_or_faster[cell].change.point),
            tests=max(planned_tests(len(self.graph.ids), cells), asked * cells),
            first=self.record.processes,
        )

    def _timed_trace(self, cell: Cell) -> "_TimeTrace":
        good, bad, half = self.record.good, self.record.bad, self.half_way(cell)
        sides: dict[str, Side] = {
            commit: Side.UNKNOWN for commit in self.counted if not self._steps(commit, cell)
        }
        for (base, commit, timed), one in self._timed.items():
            if base != good or timed != cell or commit == bad:
                continue
            if not one.failure and half.more(one.logs):
                search = Search(bad=bad, suspects=(), next=commit, untested=1)
                return _TimeTrace(search=search, base=good)
            beyond = None if one.failure else half.is_beyond(one.logs)
            sides[commit] = Side.UNKNOWN if beyond is None else Side.BAD if beyond else Side.GOOD
        sides |= {good: Side.GOOD, bad: Side.BAD}
        found = self.graph.first_bad(bad, sides)
        if found.next is not None:
            return _TimeTrace(search=found, base=good)
        before = next(iter(self._before(found)), good)
        return self._confirmed(cell, found, before)

    def _confirmed(self, cell: Cell, found: Search, before: str) -> "_TimeTrace":
        """Hold the one commit that is found against its parent, by the rule of the table."""
        exact = len(found.suspects) == 1 and not found.inherited
        base = before if exact else self.record.good
        logs, last = self._logs(base, found.bad, cell), found.bad
        failed = self._failed(base, last, cell)
        if exact and not failed and self.rule.more(logs, suspects=len(self.slower_or_faster)):
            return _TimeTrace(search=replace(found, next=last, untested=1), base=base)
        whole = self.slower_or_faster[cell]
        own = self.rule.verdict(logs, suspects=len(self.slower_or_faster)) if logs else whole
        return _TimeTrace(change=self._time_change(cell, found, base, own, whole))

    def _time_change(
        self, cell: Cell, found: Search, base: str, own: CellVerdict, whole: CellVerdict
    ) -> Change:
        words = own.reason
        if own.verdict in (Verdict.SAME, Verdict.INCONCLUSIVE):
            words = f"held against its parent it is not confirmed: {words}"
        alike = self._same_counts(base, found.bad, cell)
        if alike:
            words += f"; {alike}"
        share = math.log(own.change.point) / math.log(whole.change.point)
        if share < EXPLAINS:
            words += (
                f"; this is a part of the whole, {percent(whole.change.point)}: "
                "the rest came in steps that are smaller, or with others"
            )
        return Change(
            key=Key(cell=cell, figure=TIME),
            suspects=found.suspects,
            before=base,
            verdict=str(whole.verdict),
            old="1",
            new=f"{percent(own.change.point)} "
            f"[{percent(own.change.low)}, {percent(own.change.high)}]",
            words=words,
            inherited=found.inherited,
        )

    def _same_counts(self, before: str, after: str, cell: Cell) -> str:
        sides = self._counts(before, cell), self._counts(after, cell)
        if sides[0] is None or sides[1] is None:
            return ""
        return operation_changes.in_words(asdict(sides[0]), asdict(sides[1]))

    def _steps(self, commit: str, cell: Cell) -> bool:
        counts = self._counts(commit, cell)
        return counts is not None and not counts.failure and not counts.skipped

    # What comes next

    def next_job(self) -> Count | Time | None:
        """Return what to measure next, or None when there is nothing left to be learnt."""
        good, bad = self.record.good, self.record.bad
        if self.unmeasurable_end is not None:
            return None
        if sum(one.commit == good for one in self.record.counted) < 2:
            return Count(commit=good)
        if bad not in self.counted:
            return Count(commit=bad)
        searches = [one for trace in self._count_traces.values() for one in trace.searches]
        if searches:
            ((commit, _),) = Counter(one.next for one in searches).most_common(1)
            assert commit is not None
            largest = max(searches, key=lambda one: one.untested)
            return Count(commit=commit, search=largest)
        return self._next_time()

    def _next_time(self) -> Count | Time | None:
        good, bad = self.record.good, self.record.bad
        if self._open_times:
            return Time(base=good, commit=bad, cells=self._open_times)
        waiting = {
            cell: trace for cell, trace in self._time_traces.items() if trace.search is not None
        }
        if not waiting:
            return None
        asked = Counter((one.base, one.search.next) for one in waiting.values() if one.search)
        (((base, commit), _),) = asked.most_common(1)
        assert commit is not None
        cells = [
            cell
            for cell, one in waiting.items()
            if one.search and (one.base, one.search.next) == (base, commit)
        ]
        search = waiting[cells[0]].search
        if commit not in self.counted:  # it may be impossible to import
            return Count(commit=commit, search=search)
        return Time(base=base, commit=commit, cells=tuple(cells), search=search)

    # What came of it

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Every change that was found so far."""
        counts = [change for trace in self._count_traces.values() for change in trace.changes]
        times = [one.change for one in self._time_traces.values() if one.change is not None]
        return (*counts, *times)

    @cached_property
    def culprits(self) -> tuple[Culprit, ...]:
        """The commits that changed something, in the order of the history."""
        place = {one: number for number, one in enumerate(self.graph.ids)}
        grouped: dict[tuple[str, ...], list[Change]] = {}
        for change in self.changes:
            grouped.setdefault(change.suspects, []).append(change)
        ordered = sorted(grouped.items(), key=lambda item: [place[one] for one in item[0]][::-1])
        return tuple(
            Culprit(suspects=suspects, changes=tuple(changes)) for suspects, changes in ordered
        )

    @cached_property
    def whole_verdicts(self) -> Mapping[Key, str]:
        """How the bad commit differs from the good one: better, worse or changed, by figure."""
        good, bad = self.record.good, self.record.bad
        counts = {
            key: _verdict(self.values[key][good], self.values[key][bad]) for key in self.differing
        }
        times = {
            Key(cell=cell, figure=TIME): str(found.verdict)
            for cell, found in self.slower_or_faster.items()
        }
        return counts | times

    @cached_property
    def detours(self) -> Mapping[Key, str]:
        """The figures that went up and came down, or the other way, in words. Of a line only."""
        if not self.graph.is_linear:
            return {}
        unsteady = set(self.unsteady)
        order = [self.record.good, *self.graph.ids]
        found = {}
        for key, values in self.values.items():
            known = [(commit, values[commit]) for commit in order if commit in values]
            steps = [
                one for one, (_, before) in zip(known[1:], known, strict=False) if one[1] != before
            ]
            if key in unsteady or not _turns([known[0][1], *(value for _, value in steps)]):
                continue
            words = [in_words(key.figure, known[0][1])]
            words += [f"{in_words(key.figure, value)} ({commit[:10]})" for commit, value in steps]
            found[key] = " → ".join(words)
        return found

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to be measured."""
        return self.next_job() is None

    def status(self, *, strict: bool = False) -> ExitStatus:
        """Return the exit status: 1 where the bad commit is worse in any figure."""
        if "worse" in self.whole_verdicts.values():
            return ExitStatus.REGRESSION
        if len(self.unstepped) == len(self.record.cells):
            return ExitStatus.NOTHING_MEASURED
        if not self.is_finished or (strict and self.unclear):
            return ExitStatus.INCONCLUSIVE
        return ExitStatus.OK

    @cached_property
    def unclear(self) -> tuple[str, ...]:
        """What could not be decided, in words."""
        return (
            *(
                f"{Key(cell=cell, figure=TIME)}: {found.reason}"
                for cell, found in self.time_verdicts.items()
                if found.verdict is Verdict.INCONCLUSIVE and not self._open_times
            ),
            *(
                f"{key}: two counts of the good commit differ, so it is left out"
                for key in self.unsteady
            ),
        )


@dataclass(slots=True)
class _Trace:
    """The changes of a figure that are found, and the searches that go on."""

    changes: list[Change]
    searches: list[Search]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TimeTrace:
    """The change of a time that is found, or the search that goes on, and against which commit."""

    change: Change | None = None
    search: Search | None = None
    base: str = ""


def in_words(figure: str, value: Value) -> str:
    """Return a figure's value as people read it."""
    if figure == STEPS:
        return "yes" if value else "no"
    number = total(value)
    return f"{number:,} B" if figure.endswith("_bytes") else f"{number:,}"


def total(value: Value) -> int:
    """Return a value as one number."""
    return sum(number for _, number in value) if isinstance(value, tuple) else int(value)


def percent(ratio: float) -> str:
    """Return a ratio as a change: ``+5.1%``, and from 2 up as a factor."""
    return f"×{format_units.digits(ratio)}" if ratio >= 2 else f"{ratio - 1:+.1%}"


def _values(counted: CountedCommit) -> Iterator[tuple[Key, Value]]:
    """Yield the figures that are known of a commit."""
    for counts in counted.cells:
        if counts.skipped:
            continue
        yield Key(cell=counts.cell, figure=STEPS), not counts.failure
        if counts.failure:
            continue
        if counts.operators is not None:
            yield Key(cell=counts.cell, figure="operators"), tuple(sorted(counts.operators.items()))
        for figure in ("nodes", "saved_bytes", "peak_bytes"):
            value: int | None = getattr(counts, figure)
            if value is not None:
                yield Key(cell=counts.cell, figure=figure), value


def _verdict(old: Value, new: Value) -> str:
    if isinstance(old, bool):
        return "better" if new else "worse"
    difference = total(new) - total(old)
    return "worse" if difference > 0 else "better" if difference < 0 else "changed"


def _turns(values: Sequence[Value]) -> bool:
    """Return whether a figure goes both up and down, or leaves a value and comes back to it."""
    moves = {
        total(after) > total(before)
        for before, after in pairwise(values)
        if total(after) != total(before)
    }
    return len(moves) == 2 or len(set(values)) < len(values)
