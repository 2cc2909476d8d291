"""Bytes of two sides held together: what is worse, what varies, what was not read."""

import pytest
from builders import MACHINE, cell, counted, run_at

from gradbench.analysis.operation_changes import in_words
from gradbench.comparison.byte_readings import (
    METERS,
    READINGS,
    is_to_be_read_again,
    without_varying,
)
from gradbench.comparison.byte_verdicts import outcomes
from gradbench.gate.decide import decide
from gradbench.gate.result import NotCompared
from gradbench.gate.rules import Override, Rules
from gradbench.stats.verdicts import Verdict

IT = cell()


def side(saved=256, peak=4096, **more):
    return {"saved_bytes": saved, "peak_bytes": peak, **more}


def read(*pairs, rules=None):
    """Return what becomes of saved bytes and of the peak, by meter."""
    found = outcomes(IT, pairs, rules=rules or Rules(), unread="the budget ended")
    return {one.meter: one for one in found}


@pytest.mark.parametrize("meter", METERS.values())
@pytest.mark.parametrize("difference", [-1024, -1, 0, 1, 2**20])
def test_bytes_are_judged_by_compare_as_gate_judges_those_of_two_runs(meter, difference):
    count = next(name for name, known in METERS.items() if known == meter)
    base, candidate = side(), side()
    candidate[count] += difference
    here = read(*[(base, candidate)] * READINGS)[meter]
    runs = [
        run_at(number, [counted(IT, one[count], meter=meter)], **MACHINE)
        for number, one in enumerate((base, candidate))
    ]
    (there,) = decide(runs[:1], runs[1:]).figure_verdicts
    assert here == there
    wanted = Verdict.SAME if not difference else Verdict.WORSE if difference > 0 else Verdict.BETTER
    assert here.verdict is wanted
    assert here.reason == (f"{difference:+,} B, 0 allowed" if difference else "equal")


def test_the_peak_is_a_row_beside_the_saved_bytes_also_where_one_of_them_differs():
    found = read(*[(side(), side(peak=4096 + 2**20))] * READINGS)
    assert found["saved_for_backward"].verdict is Verdict.SAME
    assert found["peak_transient"].verdict is Verdict.WORSE
    assert (found["peak_transient"].baseline, found["peak_transient"].candidate) == (
        4096,
        4096 + 2**20,
    )


def test_a_rule_of_the_gate_says_what_may_differ_and_what_is_not_judged():
    readings = [(side(), side(saved=300, peak=5000))] * READINGS
    allowed = Override(meters=("peak_transient",), changes={"tolerance_bytes": 1000})
    unjudged = Override(meters=("saved_for_backward",), changes={"judge": False})
    found = read(*readings, rules=Rules(overrides=(allowed, unjudged)))
    assert {meter: one.verdict for meter, one in found.items()} == {"peak_transient": Verdict.SAME}
    assert found["peak_transient"].reason == "+904 B, 1,000 allowed"


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (
            [(side(), side(peak=8192)), (side(), side(peak=4096))],
            "base 4,096 B, candidate 4,096 to 8,192 B",
        ),
        (
            [(side(peak=1), side()), (side(peak=2), side()), (side(peak=3), side())],
            "base 1 to 3 B, candidate 4,096 B",
        ),
    ],
)
def test_what_varies_from_process_to_process_is_no_alarm_and_says_so(pairs, words):
    found = read(*pairs)["peak_transient"]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.change is None
    assert found.reason == f"varies from process to process: {words}"


@pytest.mark.parametrize("made", range(1, READINGS + 1))
def test_a_difference_is_believed_when_enough_processes_of_each_side_agree(made):
    found = read(*[(side(), side(peak=8192))] * made)["peak_transient"]
    assert (found.verdict is Verdict.WORSE) is (made == READINGS)
    if made < READINGS:
        assert found.verdict is Verdict.INCONCLUSIVE
        of = "1 process" if made == 1 else f"{made} processes"
        why = f"the budget ended after {of} of each side, and it takes {READINGS}"
        assert found.reason == f"+4,096 B, 0 allowed; not confirmed: {why}"


def test_a_difference_that_too_few_processes_could_read_says_what_they_said():
    """The budget did not end: four processes of each side were asked."""
    one = (side(), side(peak=8192))
    unread = {"peak_bytes": "a thread was there before the step"}
    found = read(one, one, (side(), side(peak=None, unread=unread)), one)["peak_transient"]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason == (
        "+4,096 B, 0 allowed; not confirmed: 3 of 4 processes of the candidate read it: "
        "a thread was there before the step"
    )


def test_one_process_of_each_side_is_enough_where_they_are_equal():
    assert {one.verdict for one in read((side(), side())).values()} == {Verdict.SAME}
    assert not is_to_be_read_again([(side(), side())])


def test_bytes_are_read_again_where_they_differ_and_did_not_vary():
    assert not is_to_be_read_again([])
    assert is_to_be_read_again([(side(), side(saved=0))])
    assert is_to_be_read_again([(side(), side(peak=1))] * 3)
    assert not is_to_be_read_again([(side(), side(peak=1)), (side(), side(peak=2))])
    assert not is_to_be_read_again([(side(), side(peak=None))])


WHY = {"peak_bytes": "torch 9: no memory events"}


@pytest.mark.parametrize(
    ("base", "candidate", "why", "reason"),
    [
        (side(peak=None, unread=WHY), side(peak=None, unread=WHY), "no number", WHY["peak_bytes"]),
        (
            side(peak=None, unread=WHY),
            side(),
            "not comparable",
            f"the base: {WHY['peak_bytes']}",
        ),
        (side(), side(peak=None), "not comparable", "the candidate: it was not counted"),
    ],
)
def test_bytes_that_a_side_cannot_read_have_a_reason_and_no_number(base, candidate, why, reason):
    found = read((base, candidate))
    assert found["peak_transient"] == NotCompared(
        cell=IT, meter="peak_transient", why=why, reason=reason
    )
    assert found["saved_for_backward"].verdict is Verdict.SAME


def test_bytes_that_no_process_has_read_have_a_reason():
    assert {one.reason for one in read().values()} == {"the budget ended"}
    assert {one.why for one in read().values()} == {"no number"}


def test_bytes_of_0_are_a_number():
    found = read((side(saved=0), side(saved=0)))["saved_for_backward"]
    assert (found.verdict, found.baseline, found.candidate) == (Verdict.SAME, 0, 0)
    found = read(*[(side(saved=0), side(saved=4096))] * READINGS)["saved_for_backward"]
    assert (found.verdict, found.change) == (Verdict.WORSE, None)


def test_bytes_that_vary_are_no_change_beside_a_time():
    counts = side(operators={}, nodes=0), side(peak=8192, operators={}, nodes=0)
    assert in_words(*without_varying(counts, [counts] * 2)) == "peak +4,096 B"
    varied = [counts, (side(), side(peak=5000))]
    assert in_words(*without_varying(counts, varied)) == "no change in operations"
