"""Runs as frames: what a row holds, and what has no row."""

import math

import pandas as pd
import pytest
from builders import (
    TORCH_SAYS,
    block,
    cell,
    counted,
    environment,
    measured_block,
    refused_block,
    run,
    run_of,
    skipped,
    started,
    timed,
)

from gradbench.estimates import SYSTEMATIC
from gradbench.matrix import AXES
from gradbench.records import Measurement
from gradbench.tables import changes, control, estimate, noise, per_step, ratio, rounds, summary

ON, OFF, NO_GRAD, INFERENCE = block()
SMALL = run(
    [
        timed(ON, [20, 24, 40], iterations=2),
        timed(NO_GRAD, [30, 36, 60], iterations=4),
        counted(ON, 400),
        counted(NO_GRAD, 100),
        skipped(INFERENCE, cause="crashed", reason="it died"),
    ]
)
LEADING = ["run", *AXES, "meter"]


def only(frame, **where):
    """Return the one row of a frame that has these values."""
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_rounds_are_a_row_each_and_divided_by_their_iterations():
    frame = rounds(SMALL)
    times = frame[(frame.meter == "step_time") & (frame.grad_mode == "no_grad")]
    assert times.value.tolist() == [7.5, 9, 15]
    assert times["round"].tolist() == [0, 1, 2]
    assert set(times.iterations) == {4}
    assert list(frame.columns) == [*LEADING, "unit", "round", "value", "iterations"]
    assert len(frame) == 3 + 3 + 1 + 1


def test_rounds_carry_every_axis_and_the_run_s_name():
    row = rounds(run([timed(cell(threads=2, dtype="float16"), [1])], name="r")).iloc[0]
    assert row["run"] == "r"
    assert {axis: row[axis] for axis in AXES} == cell(threads=2, dtype="float16").axes()


def test_rounds_leave_out_what_has_no_number():
    assert "inference_mode" not in set(rounds(SMALL).grad_mode)


def test_the_summary_has_a_row_an_outcome_with_its_interval_per_step():
    frame = summary(SMALL)
    assert len(frame) == len(SMALL.outcomes)
    row = only(frame, meter="step_time", grad_mode="no_grad")
    assert (row.value, row.low, row.high) == (9, 7.5, 15)
    assert (row["rounds"], row.unit, row.cause, row.reason) == (3, "ns", "", "")
    assert not row.exact
    assert row.samples_per_s == pytest.approx(8 / 9e-9)


def test_an_exact_figure_has_no_width_and_no_throughput():
    row = only(summary(SMALL), meter="peak_transient", grad_mode="global_on")
    assert row.value == row.low == row.high == 400
    assert row.exact
    assert row.unit == "bytes"
    assert math.isnan(row.samples_per_s)


def test_a_skipped_row_carries_its_reason_and_no_number():
    row = only(summary(SMALL), grad_mode="inference_mode")
    assert (row.cause, row.reason, row["rounds"]) == ("crashed", "it died", 0)
    assert row[["value", "low", "high", "samples_per_s"]].isna().all()


def test_in_the_summary_of_a_refused_block_every_row_says_why_in_torch_s_words():
    frame = summary(run(refused_block()))
    assert set(frame.reason) == {TORCH_SAYS}
    assert frame.value.isna().all()


def test_changes_hold_each_other_mode_against_the_reference():
    frame = changes(SMALL)
    row = only(frame, meter="step_time")
    assert (row.grad_mode, row.reference) == ("no_grad", "global_on")
    assert (row.ratio, row.low, row.high) == pytest.approx((0.75, 0.75, 0.75))
    assert row["rounds"] == 3
    assert row.detectable == SYSTEMATIC
    memory = only(frame, meter="peak_transient")
    assert (memory.ratio, memory.exact, memory.detectable) == (0.25, True, 0)


def test_changes_to_another_reference_are_the_reciprocal():
    assert only(changes(SMALL, reference="no_grad"), meter="step_time").ratio == pytest.approx(
        4 / 3
    )


def test_changes_of_chosen_meters_leave_out_the_others():
    assert set(changes(SMALL, meters=["peak_transient"]).meter) == {"peak_transient"}


def test_changes_never_leave_their_block():
    frame = changes(run([timed(ON, [1]), timed(cell("no_grad", batch_size=64), [1])]))
    assert frame.empty


def test_a_side_that_was_not_measured_makes_no_row():
    assert changes(run([timed(NO_GRAD, [1]), skipped(ON)])).empty
    assert changes(run([timed(ON, [1]), skipped(NO_GRAD)])).empty


def test_a_reference_of_0_bytes_makes_no_row_but_both_figures_are_in_the_summary():
    none = run([counted(ON, 0), counted(NO_GRAD, 0), counted(INFERENCE, 64)])
    assert changes(none).empty
    assert summary(none).value.tolist() == [0, 0, 64]


def test_a_candidate_of_0_bytes_is_a_ratio_of_0():
    assert changes(run([counted(ON, 64), counted(NO_GRAD, 0)])).ratio.tolist() == [0]


def inexact_bytes(cell, *values, iterations=1, exact=False):
    return Measurement(
        cell=cell,
        meter="peak_reserved",
        unit="bytes",
        values=values,
        iterations=iterations,
        exact=exact,
    )


def test_a_candidate_of_0_bytes_that_is_not_exact_is_no_error():
    changes(run([inexact_bytes(ON, 64), inexact_bytes(NO_GRAD, 0)]))


def test_exact_figures_too_are_divided_by_their_iterations():
    on, off = (
        inexact_bytes(ON, 64, iterations=2, exact=True),
        inexact_bytes(OFF, 64, iterations=4, exact=True),
    )
    assert estimate(on).point == per_step(on)[0] == 32
    assert ratio(off, on).point == 0.5


def test_the_median_is_of_steps_and_the_interval_of_their_order():
    figure = estimate(timed(ON, [*range(10, 130, 10)], iterations=10))
    assert (figure.point, figure.low, figure.high) == (6.5, 3, 10)


def test_a_ratio_pairs_rounds_by_index():
    change = ratio(timed(NO_GRAD, [10, 200, 3000]), timed(ON, [20, 400, 6000]))
    assert (change.low, change.high) == pytest.approx((0.5, 0.5))


def test_the_control_is_global_off_over_no_grad_whichever_cell_of_the_block_asks():
    found = run([timed(OFF, [102] * 12), timed(NO_GRAD, [100] * 12), timed(ON, [900] * 12)])
    for member in block():
        assert control(found, member).point == pytest.approx(1.02)
        assert noise(found, member) == pytest.approx(math.log(1.02))


@pytest.mark.parametrize(
    "outcomes",
    [
        [timed(OFF, [1, 1])],
        [timed(OFF, [1, 1]), skipped(NO_GRAD)],
        [timed(OFF, [1, 1]), timed(cell("no_grad", batch_size=64), [1, 1])],
        [counted(OFF, 5), counted(NO_GRAD, 5)],
    ],
    ids=["one-side", "skipped", "another-block", "no-times"],
)
def test_without_both_sides_there_is_no_control_and_the_floor_is_the_systematic(outcomes):
    assert control(run(outcomes), ON) is None
    assert noise(run(outcomes), ON) == SYSTEMATIC


@pytest.mark.parametrize("table", [rounds, summary, changes])
def test_several_runs_are_stacked_by_name(table):
    first, second = run(measured_block(), name="a"), run(measured_block(), name="b")
    frame = table([first, second])
    assert frame.groupby("run").size().to_dict() == {"a": len(frame) // 2, "b": len(frame) // 2}
    pd.testing.assert_frame_equal(frame[frame.run == "a"], table(first))


def test_ratios_are_never_taken_across_runs():
    assert changes([run([timed(ON, [1])], name="a"), run([timed(NO_GRAD, [1])], name="b")]).empty


@pytest.mark.parametrize("table", [rounds, summary, changes])
@pytest.mark.parametrize(
    "runs", [[], run_of([started([]), environment()]), run_of([started(block())])]
)
def test_without_outcomes_a_frame_is_empty_and_has_its_columns(table, runs):
    frame = table(runs)
    assert frame.empty
    assert list(frame.columns) == list(table(SMALL).columns)
