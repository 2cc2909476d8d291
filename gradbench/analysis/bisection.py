"""What a bisection's record comes to so far: which commits changed what, what is next. Pure.

It is worked out anew from what was measured, so a bisection that goes on needs no other state.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

from ..exit_status import ExitStatus
from ..records.bisection import Bisection
from ..stats.verdicts import Verdict
from .bisected_counts import CountFindings
from .bisected_instructions import InstructionFindings
from .bisected_times import TimeFindings
from .bisection_changes import TIME, Change, Culprit, Key, verdict_of
from .bisection_jobs import Count, Instructions, Job, Time
from .commit_graph import Graph, Search


class Findings:
    """What a record says; built anew when the record has grown."""

    def __init__(self, record: Bisection, graph: Graph) -> None:
        self.record, self.graph = record, graph
        self.counts = CountFindings(record, graph)
        self.instructions = InstructionFindings(record, graph, self.counts)
        self.times = TimeFindings(record, graph, self.counts, self.instructions)

    @cached_property
    def next_job(self) -> Job | None:
        """What to measure next, or None when there is nothing left to be learnt."""
        good, bad = self.record.good, self.record.bad
        if self.counts.unmeasurable_end is not None:
            return None
        if self._times_counted(good) < 2:
            return Count(commit=good)
        if self._times_counted(bad) < (2 if self.counts.differing else 1):
            return Count(commit=bad)
        if searches := self.counts.searches:
            return Count(commit=_most_asked(searches), search=_longest(searches))
        return self._next_instructions() or self._next_time()

    def _times_counted(self, commit: str) -> int:
        return sum(one.commit == commit for one in self.record.counted)

    def _next_instructions(self) -> Count | Instructions | None:
        """Return the commit whose instructions the most searches wait for."""
        searches = self.instructions.searches
        if self.instructions.of_ends is not None or not searches:
            return self.instructions.of_ends
        commit, search = _most_asked(searches), _longest(searches)
        if commit not in self.counts.commits:  # it may be impossible to import
            return Count(commit=commit, search=search)
        return self.instructions.at(commit, search)

    def _next_time(self) -> Count | Time | None:
        """Return the pair of commits that the most cells wait for, the ends first."""
        if self.times.open:
            return Time(base=self.record.good, commit=self.record.bad, cells=self.times.open)
        waiting = {
            cell: (one.base, one.search.next, one.search)
            for cell, one in self.times.traces.items()
            if one.search is not None and one.search.next is not None
        }
        if not waiting:
            return None
        (((base, commit), _),) = Counter(pair[:2] for pair in waiting.values()).most_common(1)
        cells = tuple(cell for cell, pair in waiting.items() if pair[:2] == (base, commit))
        search = waiting[cells[0]][2]
        if commit not in self.counts.commits:  # it may be impossible to import
            return Count(commit=commit, search=search)
        return Time(base=base, commit=commit, cells=cells, search=search)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to be measured."""
        return self.next_job is None

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Every change that was found so far."""
        return (*self.counts.changes, *self.instructions.changes, *self.times.changes)

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
    def verdicts(self) -> Mapping[Key, str]:
        """How the bad commit differs from the good one: better, worse or changed, by figure."""
        good, bad = self.record.good, self.record.bad
        counts = {
            key: verdict_of(self.counts.values[key][good], self.counts.values[key][bad])
            for key in self.counts.differing
        }
        times = {
            Key(cell=cell, figure=TIME): str(found.verdict)
            for cell, found in self.times.differing.items()
        }
        return counts | dict(self.instructions.verdicts) | times

    @cached_property
    def unclear(self) -> tuple[str, ...]:
        """What could not be decided, in words."""
        times = [] if self.times.open else list(self.times.verdicts.items())
        return (
            *(
                f"{Key(cell=cell, figure=TIME)}: {found.reason}"
                for cell, found in times
                if found.verdict is Verdict.INCONCLUSIVE
            ),
            *(
                f"{Key(cell=cell, figure=TIME)}: it could not be timed: {why}"
                for cell, why in self.times.failures.items()
            ),
            *(
                f"{key}: two counts of one commit differ, so it is left out"
                for key in self.counts.unsteady
            ),
            *(
                f"instructions of {cell}: two counts of the ends differ, so they are left out"
                for cell in self.instructions.unsteady
            ),
        )

    def status(self, *, strict: bool = False) -> ExitStatus:
        """Return the exit status: 1 where the bad commit is worse in any figure."""
        if "worse" in self.verdicts.values():
            return ExitStatus.REGRESSION
        if len(self.counts.unstepped) == len(self.record.cells):
            return ExitStatus.NOTHING_MEASURED
        if not self.is_finished or (strict and (self.unclear or self.counts.in_doubt)):
            return ExitStatus.INCONCLUSIVE
        return ExitStatus.OK


def _most_asked(searches: Sequence[Search]) -> str:
    """Return the commit that the most searches go on with."""
    ((commit, _),) = Counter(one.next for one in searches).most_common(1)
    assert commit is not None
    return commit


def _longest(searches: Sequence[Search]) -> Search:
    return max(searches, key=lambda one: one.untested)
