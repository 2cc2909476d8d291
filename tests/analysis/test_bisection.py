"""What a record of a bisection comes to: each change is found, from few measurements, or said."""

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from histories import commit, grown

from gradbench.analysis.bisection import Findings
from gradbench.analysis.bisection_changes import INSTRUCTIONS, TIME
from gradbench.analysis.bisection_jobs import Count, Instructions, Time
from gradbench.analysis.bisection_text import answer, columns, notes, rows, title
from gradbench.analysis.commit_graph import Graph
from gradbench.exit_status import ExitStatus
from gradbench.experiment.matrix import Cell
from gradbench.records.bisection import (
    Bisection,
    CellCounts,
    CountedCommit,
    CountedInstructions,
    TimedCell,
)

CELL = Cell(model="net", workload="inference", grad_mode="global_on", batch_size=4)
OTHER = replace(CELL, grad_mode="no_grad")


def record(*names: str, cells=(CELL,), times="none", instructions=False) -> Bisection:
    """Return a bisection of a line of commits, of which nothing is measured."""
    return Bisection(
        started_at="2026-01-02T03:04:05+00:00",
        asked="a..b",
        good=names[0],
        bad=names[-1],
        first_parent=False,
        paths=(),
        cells=cells,
        sources={},
        times=times,
        threshold=0.03,
        processes=5,
        seed=0,
        commits=tuple(commit(one, before) for before, one in pairwise(names)),
        border=(commit(names[0]),),
        instructions=instructions,
    )


LINE = ("good", *(f"c{number}" for number in range(1, 16)))


def counts(cell: Cell = CELL, *, saved: int = 256, sines: int = 0, **more) -> CellCounts:
    operators = {"aten.mm": 2} | ({"aten.sin": sines} if sines else {})
    return CellCounts(cell=cell, operators=operators, saved_bytes=saved, **more)


def followed(
    start: Bisection, counted, logs=None, *, executed=None, most: int = 200
) -> tuple[Findings, list]:
    """Do what is to be done next until nothing is; return what is found, and the jobs.

    ``counted`` says a commit's cells, or why it cannot be measured; ``logs`` a replicate's ratio of
    the fastest, which is that of the means, too, unless there are two; ``executed`` a commit's
    instructions, or why there are none.
    """
    graph, jobs, now = Graph(start.commits, start.border), [], start
    while (job := Findings(now, graph).next_job) is not None:
        jobs.append(job)
        assert len(jobs) < most, jobs
        if isinstance(job, Count):
            said = counted(job.commit)
            one = (
                CountedCommit(commit=job.commit, skipped=said)
                if isinstance(said, str)
                else CountedCommit(commit=job.commit, cells=tuple(said))
            )
            now = replace(now, counted=(*now.counted, one))
        elif isinstance(job, Instructions):
            assert job.cells
            counts = (counted_beside(job, cell, executed) for cell in job.cells)
            now = replace(now, instruction_counts=(*now.instruction_counts, *counts))
        else:
            now = replace(now, timed=timed(now.timed, job, logs))
    return Findings(now, graph), jobs


def timed(known, job: Time, logs) -> tuple[TimedCell, ...]:
    by_place = {(one.base, one.commit, one.cell): one for one in known}
    for cell in job.cells:
        place = (job.base, job.commit, cell)
        before = by_place.get(place, TimedCell(base=job.base, commit=job.commit, cell=cell))
        made = logs(*place)
        fastest, mean = made if isinstance(made, tuple) else (made, made)
        by_place[place] = replace(before, logs=(*before.logs, fastest), means=(*before.means, mean))
    return tuple(by_place.values())


def counted_beside(job: Instructions, cell: Cell, executed) -> CountedInstructions:
    own = executed(job.commit, cell)
    if isinstance(own, str):
        return CountedInstructions(commit=job.commit, cell=cell, why=own)
    counts = executed(job.base, cell), own
    return CountedInstructions(commit=job.commit, cell=cell, counts=counts)


def since(commit: str, name: str) -> bool:
    """Return whether a commit of `LINE` is another or comes after it."""
    return LINE.index(commit) >= LINE.index(name)


def test_where_nothing_differs_three_counts_are_made_and_the_status_is_0():
    found, jobs = followed(record(*LINE), lambda _: [counts()])
    assert [job.commit for job in jobs] == ["good", "good", "c15"]
    assert found.status() is ExitStatus.OK
    assert answer(found) == (
        "no difference between good and c15: 3 counts of 1 cell are equal; times were not compared"
    )


@pytest.mark.parametrize("name", ["c1", "c2", "c8", "c14", "c15"])
def test_a_change_is_found_in_a_logarithm_of_counts(name):
    found, jobs = followed(
        record(*LINE), lambda one: [counts(saved=512 if since(one, name) else 256)]
    )
    (culprit,) = found.culprits
    assert (culprit.suspects, culprit.verdict) == ((name,), "worse")
    (change,) = culprit.changes
    assert (change.old, change.new) == (256, 512)
    assert len(jobs) <= 4 + 4
    assert found.status() is ExitStatus.REGRESSION
    assert answer(found).startswith("1 commit changed 1 figure of 1 cell (1 worse) between")


def test_changes_at_two_commits_are_both_found_and_share_their_counts():
    found, jobs = followed(
        record(*LINE, cells=(CELL, OTHER)),
        lambda one: [
            counts(saved=512 if since(one, "c4") else 256, sines=3 if since(one, "c11") else 0),
            counts(OTHER, sines=3 if since(one, "c11") else 0),
        ],
    )
    assert [(one.suspects, len(one.changes)) for one in found.culprits] == [
        (("c4",), 1),
        (("c11",), 2),
    ]
    assert [one.words for one in found.culprits[1].changes] == ["+3 aten.sin"] * 2
    assert len({job.commit for job in jobs}) == len(jobs) - 2  # both ends are counted twice
    assert len(jobs) <= 4 + 4 + 4
    titles = [(one.title, len(one.cells)) for one in columns(found)]
    assert titles == [("operators", 2), ("saved for backward", 1)]


def test_a_figure_that_changes_in_steps_has_a_culprit_for_each():
    levels = {"good": 1, "c3": 2, "c9": 3, "c13": 7}

    def level(one: str) -> int:
        return max(value for name, value in levels.items() if since(one, name))

    found, _ = followed(record(*LINE), lambda one: [counts(saved=level(one))])
    assert [one.suspects for one in found.culprits] == [("c3",), ("c9",), ("c13",)]
    assert [(c.old, c.new) for one in found.culprits for c in one.changes] == [
        (1, 2),
        (2, 3),
        (3, 7),
    ]


def test_what_goes_up_and_comes_down_is_said_to():
    def level(one: str) -> int:
        return (
            900 if since(one, "c5") and not since(one, "c10") else 500 if since(one, "c10") else 1
        )

    found, _ = followed(record(*LINE), lambda one: [counts(saved=level(one))])
    assert {one.suspects for one in found.culprits} == {("c5",), ("c10",)}
    assert {one.verdict for one in found.culprits} == {"worse", "better"}
    (said,) = [note for note in notes(found) if "goes up and comes down" in note]
    assert "1 B → 900 B (c" in said
    assert said.endswith("→ 500 B (c10)") or "→ 500 B (c1" in said
    assert found.status() is ExitStatus.REGRESSION


def test_a_better_end_is_found_too_and_exits_0():
    found, _ = followed(record(*LINE), lambda one: [counts(saved=1 if since(one, "c6") else 9)])
    assert [(one.suspects, one.verdict) for one in found.culprits] == [(("c6",), "better")]
    assert found.status() is ExitStatus.OK


def test_other_operators_of_the_same_number_are_neither_better_nor_worse():
    def operators(one: str) -> list[CellCounts]:
        name = "aten.sin" if since(one, "c6") else "aten.cos"
        return [CellCounts(cell=CELL, operators={name: 2})]

    found, _ = followed(record(*LINE), operators)
    (culprit,) = found.culprits
    assert (culprit.suspects, culprit.verdict) == (("c6",), "changed")
    assert culprit.changes[0].words == "-2 aten.cos, +2 aten.sin"
    assert found.status() is ExitStatus.OK


def test_commits_that_cannot_be_measured_leave_a_range_with_their_reasons():
    broken = {"c6", "c7", "c8"}
    found, _ = followed(
        record(*LINE),
        lambda one: (
            "ImportError: no" if one in broken else [counts(saved=9 if since(one, "c7") else 1)]
        ),
    )
    (culprit,) = found.culprits
    assert culprit.suspects == ("c6", "c7", "c8", "c9")
    roles = {row.commit.id: (row.role, row.reason) for row in rows(found, columns(found))}
    assert roles["c7"] == ("perhaps here", "cannot be measured: ImportError: no")
    assert roles["c9"][0] == "worse, or before"
    assert "1 range of commits" in answer(found)
    assert found.status() is ExitStatus.REGRESSION


def test_a_step_that_raises_is_a_change_of_its_own():
    found, _ = followed(
        record(*LINE),
        lambda one: [
            CellCounts(cell=CELL, failure="ValueError: no") if since(one, "c3") else counts()
        ],
    )
    (culprit,) = found.culprits
    (change,) = culprit.changes
    assert (culprit.suspects, change.key.figure, change.words) == (
        ("c3",),
        "steps",
        "ValueError: no",
    )
    assert found.status() is ExitStatus.REGRESSION


def test_a_figure_that_two_counts_of_one_commit_do_not_agree_in_is_left_out():
    numbers = iter(range(100, 200))
    found, jobs = followed(record(*LINE), lambda _: [counts(saved=next(numbers))])
    assert len(jobs) == 3
    assert not found.culprits
    assert "two counts of one commit differ" in notes(found)[0]
    assert (found.status(), found.status(strict=True)) == (0, ExitStatus.INCONCLUSIVE)


def test_a_figure_that_varies_at_the_bad_commit_alone_is_left_out():
    numbers = iter(range(100, 200))
    found, jobs = followed(
        record(*LINE), lambda one: [counts(saved=next(numbers) if one == "c15" else 256)]
    )
    assert [job.commit for job in jobs] == ["good", "good", "c15", "c15"]
    assert not found.culprits
    assert "two counts of one commit differ" in notes(found)[0]


def test_cells_that_neither_end_can_step_are_not_compared():
    found, _ = followed(record(*LINE), lambda _: [CellCounts(cell=CELL, failure="no")])
    assert found.status() is ExitStatus.NOTHING_MEASURED
    assert notes(found) == [f"not compared: {CELL}: no"]
    assert answer(found) == "nothing measured between good and c15: no"


@pytest.mark.parametrize("doubt", ["was killed by SIGKILL, twice", "gave no answer in time"])
def test_a_cell_that_the_good_commit_was_killed_in_is_not_compared(doubt):
    killed = [CellCounts(cell=CELL, failure="it ended", doubt=doubt), counts(OTHER)]
    found, jobs = followed(
        record(*LINE, cells=(CELL, OTHER), times="all"),
        lambda one: killed if one == "good" else [counts(), counts(OTHER)],
        drawn("c9", 0.0),
    )
    assert found.status() is ExitStatus.OK and not found.culprits
    assert f"not compared: {CELL}: the good commit {doubt}" in notes(found)
    assert not any(CELL in job.cells for job in jobs if isinstance(job, Time))


def test_a_cell_that_a_later_commit_is_killed_in_is_followed_to_it():
    killed = [CellCounts(cell=CELL, failure="it ended", doubt="was killed")]
    found, _ = followed(record(*LINE), lambda one: killed if since(one, "c9") else [counts()])
    assert [one.suspects for one in found.culprits] == [("c9",)]
    assert found.status() is ExitStatus.REGRESSION


def test_a_bad_commit_that_others_may_have_killed_is_not_compared_and_is_no_worse():
    """As in a comparison: it may be able to step it."""
    killed = CellCounts(cell=CELL, failure="it ended", doubt="was killed, twice", by_others=True)
    found, _ = followed(
        record(*LINE, cells=(CELL, OTHER)),
        lambda one: [killed if one == "c15" else counts(), counts(OTHER)],
    )
    assert not found.culprits
    assert f"not compared: {CELL}: the bad commit was killed, twice" in notes(found)
    assert found.status() is ExitStatus.OK
    assert found.status(strict=True) is ExitStatus.INCONCLUSIVE


def test_a_commit_between_that_others_may_have_killed_is_stepped_over():
    killed = CellCounts(cell=CELL, failure="it ended", doubt="was killed", by_others=True)
    found, _ = followed(
        record(*LINE),
        lambda one: [killed if one == "c8" else counts(saved=2 if since(one, "c9") else 1)],
    )
    assert {one.suspects for one in found.culprits} == {("c8", "c9")}


def test_an_end_that_cannot_be_measured_ends_the_search():
    found, jobs = followed(record(*LINE), lambda one: "no" if one == "c15" else [counts()])
    assert found.counts.unmeasurable_end == ("c15", "no")
    assert len(jobs) == 3


def test_a_bisection_that_is_cut_short_at_any_point_ends_as_one_that_is_not():
    def counted(one: str) -> list[CellCounts]:
        return [counts(saved=512 if since(one, "c4") else 256, sines=3 if since(one, "c11") else 0)]

    whole, jobs = followed(record(*LINE), counted)
    for cut in range(len(jobs)):
        start = replace(whole.record, counted=whole.record.counted[:cut])
        again, left = followed(start, counted)
        assert len(left) == len(jobs) - cut
        assert again.culprits == whole.culprits
        graph = Graph(start.commits, start.border)
        if cut > 3:
            assert "not finished" in answer(Findings(start, graph))
            assert Findings(start, graph).status() is ExitStatus.REGRESSION


def test_of_any_history_with_any_values_every_change_is_one_and_the_search_ends():
    """Values that come and go, branches that were as they are before the range, broken commits."""
    rng = random.Random(0)
    for _ in range(150):
        graph = grown(rng, rng.randrange(2, 25))
        sizes = {one: rng.choice((1, 2, 3, None)) for one in graph.ids[:-1]}
        sizes |= {"good": 1, graph.ids[-1]: 2}
        start = replace(
            record("good", "c0"),
            bad=graph.ids[-1],
            commits=tuple(graph.by_id[one] for one in graph.ids),
        )
        found, jobs = followed(
            start,
            lambda one, sizes=sizes: "no" if sizes[one] is None else [counts(saved=sizes[one])],
        )
        assert len(jobs) <= len(graph.ids) + 3
        assert found.status() is ExitStatus.REGRESSION
        assert found.culprits
        for change in found.changes:
            *others, last = change.suspects
            assert change.new == sizes[last] != sizes[change.before] == change.old
            assert all(sizes[one] is None for one in others)


def test_a_merge_that_brings_in_a_line_that_was_always_so_is_the_commit():
    start = replace(
        record("good", "m"),
        border=(commit("good", "old"), commit("old")),
        commits=(commit("s", "old"), commit("a", "good"), commit("m", "a", "s")),
    )
    sizes = {"good": 1, "old": 2, "s": 2, "a": 1, "m": 2}
    found, _ = followed(start, lambda one: [counts(saved=sizes[one])])
    (culprit,) = found.culprits
    assert culprit.suspects == ("m",)
    assert title(culprit, found) == "m, a merge with a line that was so already"
    assert not found.graph.is_linear


# Times


def drawn(name: str, size: float, *, spread: float = 0.004, seed: int = 0):
    """Return replicates of a line that is slower from a commit on."""
    rng = random.Random(seed)

    def log(base: str, commit: str, cell: Cell) -> float:
        change = (size if since(commit, name) else 0) - (size if since(base, name) else 0)
        return change + rng.gauss(0, spread)

    return log


@pytest.mark.parametrize("name", ["c1", "c7", "c15"])
def test_where_the_counts_are_silent_times_find_it_and_its_parent_confirms(name):
    start = record(*LINE, times="silent")
    found, jobs = followed(start, lambda _: [counts()], drawn(name, math.log(1.2)))
    (culprit,) = found.culprits
    (change,) = culprit.changes
    assert (culprit.suspects, culprit.verdict, change.key.figure) == ((name,), "worse", TIME)
    before = LINE[LINE.index(name) - 1]
    assert change.before == before
    assert "no change in operations" in change.words
    asked = {(job.base, job.commit) for job in jobs if isinstance(job, Time)}
    assert (before, name) in asked
    assert len(asked) <= 1 + 4 + 1
    assert found.status() is ExitStatus.REGRESSION


def in_some_steps(name: str, size: float, *, spread: float = 0.004):
    """Return replicates of a line whose mean alone is slower from a commit on."""
    fastest, mean = drawn("good", 0.0, spread=spread), drawn(name, size, spread=spread, seed=1)

    def logs(base: str, commit: str, cell: Cell) -> tuple[float, float]:
        log = fastest("good", commit, cell)
        return log, log + mean(base, commit, cell)

    return logs


@pytest.mark.parametrize("name", ["c1", "c7", "c15"])
def test_work_in_some_steps_alone_is_found_by_the_mean_of_all_batches(name):
    start = record(*LINE, times="silent")
    found, jobs = followed(start, lambda _: [counts()], in_some_steps(name, math.log(1.2)))
    (culprit,) = found.culprits
    (change,) = culprit.changes
    assert (culprit.suspects, culprit.verdict, change.key.figure) == ((name,), "worse", TIME)
    assert change.new == pytest.approx(1.2, rel=0.02)
    assert change.estimate.low > 1.1
    assert change.words.startswith("slower on average, by +")
    before = LINE[LINE.index(name) - 1]
    assert (before, name) in {(job.base, job.commit) for job in jobs if isinstance(job, Time)}
    (column,) = columns(found)
    assert column.values["c15"] == pytest.approx(1.2, rel=0.02)
    assert found.status() is ExitStatus.REGRESSION


def test_a_mean_that_is_slower_in_small_steps_is_part_of_the_whole_and_not_confirmed():
    rng = random.Random(0)

    def logs(base: str, commit: str, cell: Cell) -> tuple[float, float]:
        grown = 0.02 * (LINE.index(commit) - LINE.index(base))
        return rng.gauss(0, 0.002), grown + rng.gauss(0, 0.002)

    found, _ = followed(record(*LINE, times="silent"), lambda _: [counts()], logs)
    (culprit,) = found.culprits
    assert "it is not confirmed" in culprit.changes[0].words
    assert "this is a part of the whole" in culprit.changes[0].words


def test_equal_times_are_compared_once_and_called_the_same():
    start = record(*LINE, times="silent")
    found, jobs = followed(start, lambda _: [counts()], drawn("c7", 0.0))
    assert {(job.base, job.commit) for job in jobs if isinstance(job, Time)} == {("good", "c15")}
    assert answer(found).endswith("; time: 1 same")
    assert found.status() is ExitStatus.OK


def test_of_a_cell_with_other_counts_no_time_is_asked_unless_all_are():
    def counted(one: str) -> list[CellCounts]:
        return [counts(saved=2 if since(one, "c4") else 1)]

    found, jobs = followed(record(*LINE, times="silent"), counted, drawn("c9", 0.3))
    assert not [job for job in jobs if isinstance(job, Time)]
    (said,) = [note for note in notes(found) if "--times all" in note]
    assert said.startswith(f"step time not compared: {CELL}: other counts at the ends")
    assert answer(found).endswith("; step time of 1 cell not compared")
    found, _ = followed(record(*LINE, times="all"), counted, drawn("c9", 0.3))
    assert [one.suspects for one in found.culprits] == [("c4",), ("c9",)]
    assert not found.times.left_out
    assert "not compared" not in answer(found)


def test_a_time_that_grows_in_small_steps_is_said_to_be_part_of_the_whole():
    rng = random.Random(0)

    def log(base: str, commit: str, cell: Cell) -> float:
        return 0.02 * (LINE.index(commit) - LINE.index(base)) + rng.gauss(0, 0.002)

    found, _ = followed(record(*LINE, times="silent"), lambda _: [counts()], log)
    (culprit,) = found.culprits
    assert "this is a part of the whole" in culprit.changes[0].words


def test_a_commit_whose_time_is_not_clear_leaves_a_range():
    calm, wild = drawn("c7", math.log(1.2)), drawn("c7", 0.0, spread=2.0)

    def log(base: str, commit: str, cell: Cell) -> float:
        return (wild if commit in ("c6", "c7") else calm)(base, commit, cell)

    found, _ = followed(record(*LINE, times="silent"), lambda _: [counts()], log)
    (culprit,) = found.culprits
    assert culprit.suspects == ("c6", "c7", "c8")


def failing(found: Findings, base: str, commit: str, words: str) -> Findings:
    """Return findings as if the time of a commit against another had failed."""
    failed = TimedCell(base=base, commit=commit, cell=CELL, failure=words)
    others = (one for one in found.record.timed if (one.base, one.commit) != (base, commit))
    return Findings(replace(found.record, timed=(*others, failed)), found.graph)


def test_a_cell_whose_ends_cannot_be_timed_is_inconclusive_and_says_why():
    found, _ = followed(record(*LINE, times="silent"), lambda _: [counts()], drawn("c7", 0.0))
    found = failing(found, "good", "c15", "the candidate hangs")
    assert found.is_finished
    assert any("the candidate hangs" in note for note in notes(found))
    assert found.status(strict=True) is ExitStatus.INCONCLUSIVE


def test_a_commit_that_cannot_be_timed_against_its_parent_has_the_range_s_change():
    start = record(*LINE, times="silent")
    found, _ = followed(start, lambda _: [counts()], drawn("c7", math.log(1.2)))
    (change,) = failing(found, "c6", "c7", "the base hangs").changes
    assert (change.before, change.suspects) == ("good", ("c7",))
    assert change.estimate == found.times.verdicts[CELL].change
    assert "the base hangs" in change.words


# Instructions

MILLION = 1_000_000


def executing(name: str, more: float, *, spread: float = 0.0, seed: int = 0):
    """Return instructions that are more from a commit on, and differ by where things lie."""
    rng = random.Random(seed)

    def executed(commit: str, _: Cell) -> int:
        size = MILLION * (1 + more if since(commit, name) else 1)
        return round(size * (1 + rng.uniform(-spread, spread)))

    return executed


@pytest.mark.parametrize("name", ["c1", "c7", "c15"])
def test_where_the_counts_are_silent_instructions_find_the_commit_and_no_time_is_asked(name):
    start = record(*LINE, times="silent", instructions=True)
    found, jobs = followed(start, lambda _: [counts()], executed=executing(name, 0.03))
    (culprit,) = found.culprits
    (change,) = culprit.changes
    assert (culprit.suspects, culprit.verdict) == ((name,), "worse")
    assert change.key.figure == INSTRUCTIONS
    assert (change.old, change.new) == (MILLION, 1.03 * MILLION)
    assert change.words == "+3.0%; no change in operations"
    assert not [job for job in jobs if isinstance(job, Time)]
    asked = [job.commit for job in jobs if isinstance(job, Instructions)]
    assert asked[:2] == ["c15", "c15"]
    assert len(asked) <= 2 + 4
    assert found.status() is ExitStatus.REGRESSION
    assert [one.title for one in columns(found)] == ["instructions"]
    assert any("step time not compared" in note for note in notes(found))


def test_of_a_cell_whose_counts_differ_no_instructions_are_counted():
    start = record(*LINE, cells=(CELL, OTHER), instructions=True)
    found, jobs = followed(
        start,
        lambda one: [counts(saved=2 if since(one, "c4") else 1), counts(OTHER)],
        executed=executing("c9", 0.1),
    )
    assert [one.suspects for one in found.culprits] == [("c4",), ("c9",)]
    assert {job.cells for job in jobs if isinstance(job, Instructions)} == {(OTHER,)}


def test_equal_instructions_are_counted_once_and_times_decide():
    start = record(*LINE, times="silent", instructions=True)
    executed = executing("c15", 0.0, spread=0.002)
    found, jobs = followed(start, lambda _: [counts()], drawn("c7", 0.2), executed=executed)
    assert [job.commit for job in jobs if isinstance(job, Instructions)] == ["c15"]
    (culprit,) = found.culprits
    assert [one.key.figure for one in culprit.changes] == [TIME]
    assert any(note.startswith("instructions that differ by 2% at most") for note in notes(found))


def test_a_change_too_small_to_tell_commits_apart_is_said_and_followed_no_further():
    start = record(*LINE, instructions=True)
    found, jobs = followed(start, lambda _: [counts()], executed=executing("c7", 0.008))
    assert len([job for job in jobs if isinstance(job, Instructions)]) == 1
    assert not found.culprits
    assert any(f"{CELL} +0.8%" in note for note in notes(found))
    assert found.status(strict=True) is ExitStatus.OK


def test_what_where_things_lie_adds_blames_no_commit_that_changed_nothing():
    for seed in range(50):
        start = record(*LINE, instructions=True)
        executed = executing("c7", 0.03, spread=0.0012, seed=seed)
        found, _ = followed(start, lambda _: [counts()], executed=executed)
        assert [one.suspects for one in found.culprits] == [("c7",)]


def test_instructions_that_grow_twice_have_a_commit_for_each():
    def executed(commit: str, _: Cell) -> int:
        return MILLION + 30_000 * since(commit, "c4") + 50_000 * since(commit, "c11")

    start = record(*LINE, instructions=True)
    found, _ = followed(start, lambda _: [counts()], executed=executed)
    assert [one.suspects for one in found.culprits] == [("c4",), ("c11",)]
    assert [one.changes[0].words[:5] for one in found.culprits] == ["+3.0%", "+4.9%"]


def test_instructions_that_creep_up_are_said_to_be_below_what_equal_code_may_show():
    def executed(commit: str, _: Cell) -> int:
        return MILLION + 2_000 * LINE.index(commit)

    start = record(*LINE, instructions=True)
    found, _ = followed(start, lambda _: [counts()], executed=executed)
    assert found.culprits
    for culprit in found.culprits:
        (change,) = culprit.changes
        assert "smaller than 1.0%, which equal code may show" in change.words


def test_two_counts_of_the_ends_that_do_not_agree_are_left_out_and_times_decide():
    numbers = iter(range(1, 100))

    def executed(commit: str, _: Cell) -> int:
        return MILLION + (100_000 * next(numbers) if commit == "c15" else 0)

    start = record(*LINE, times="silent", instructions=True)
    found, jobs = followed(start, lambda _: [counts()], drawn("c7", 0.0), executed=executed)
    assert len([job for job in jobs if isinstance(job, Instructions)]) == 2
    assert not found.culprits
    assert any("two counts of the ends differ" in note for note in notes(found))
    assert answer(found).endswith("; time: 1 same")
    assert found.status(strict=True) is ExitStatus.INCONCLUSIVE


def test_instructions_that_cannot_be_counted_are_a_reason_and_times_decide():
    start = record(*LINE, times="silent", instructions=True)
    found, jobs = followed(
        start, lambda _: [counts()], drawn("c7", 0.2), executed=lambda *_: "2 threads"
    )
    assert len([job for job in jobs if isinstance(job, Instructions)]) == 1
    assert [one.suspects for one in found.culprits] == [("c7",)]
    assert f"instructions not counted: {CELL}: 2 threads" in notes(found)


def test_a_commit_whose_instructions_cannot_be_counted_leaves_a_range():
    more = executing("c7", 0.1)

    def executed(commit: str, cell: Cell):
        return "killed by SIGSEGV" if commit in ("c6", "c7") else more(commit, cell)

    start = record(*LINE, instructions=True)
    found, _ = followed(start, lambda one: "no" if one == "c8" else [counts()], executed=executed)
    (culprit,) = found.culprits
    assert culprit.suspects == ("c6", "c7", "c8", "c9")


def test_instructions_of_any_history_end_in_a_commit_that_changed_them():
    rng = random.Random(1)
    for _ in range(100):
        graph = grown(rng, rng.randrange(2, 25))
        sizes = {one: rng.choice((100, 103, 110, "no")) for one in graph.ids[:-1]}
        sizes |= {"good": 100, graph.ids[-1]: 103}
        start = replace(
            record("good", "c0", instructions=True),
            bad=graph.ids[-1],
            commits=tuple(graph.by_id[one] for one in graph.ids),
        )
        found, jobs = followed(
            start, lambda _: [counts()], executed=lambda one, _, sizes=sizes: sizes[one]
        )
        assert len(jobs) <= 2 * len(graph.ids) + 6
        assert found.status() is ExitStatus.REGRESSION
        for change in found.changes:
            assert change.new == sizes[change.suspects[-1]] != sizes[change.before] == change.old
