"""Runs as frames: what a row holds, and what has no row."""

import math

import pandas as pd
import pytest
from builders import (
    TORCH_SAYS,
    block,
    broken_down,
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

from gradbench.analysis.dataframes import (
    breakdowns,
    changes,
    estimate,
    peaks,
    per_step,
    ratio,
    rounds,
    scaling,
    summary,
    throughput,
)
from gradbench.experiment.matrix import AXES
from gradbench.records.measurements import PARTS, Measurement
from gradbench.stats.estimates import MIN_DETECTABLE_EFFECT

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


@pytest.mark.parametrize(("given", "samples"), [(32, 32), ("32", 8), (True, 8), (0, 8)])
def test_throughput_counts_the_samples_that_a_batch_had_instead_of_those_asked_for(given, samples):
    one = timed(cell(), [80] * 3, iterations=1, batch_given=given)
    assert throughput(one).point == pytest.approx(samples / 80e-9)


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
    assert row.detectable == MIN_DETECTABLE_EFFECT
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


def test_a_breakdown_is_a_row_a_part_at_each_of_its_two_peaks():
    found = broken_down(ON, parameters=100, saved=40)
    frame = breakdowns(run_of([started([ON]), found], name="r"))
    assert list(frame.columns) == ["run", *AXES, "moment", "part", "bytes"]
    for moment in ("peak", "first peak"):
        rows = frame[frame.moment == moment]
        assert rows.part.tolist() == list(PARTS)
        assert rows.bytes.sum() == 140
        assert only(rows, part="saved").bytes == 40
    assert {axis: frame.iloc[0][axis] for axis in AXES} == ON.axes()
    assert set(frame.run) == {"r"}
    assert len(frame) == 2 * len(PARTS)


def peaks_at(slopes, *, meter="peak_allocated", **axes):
    """Return peaks of 1000 bytes and so many a sample, of batches of 1 and 9."""
    return [
        counted(cell(mode, batch_size=batch, **axes), 1000 + slope * batch, meter=meter)
        for mode, slope in slopes.items()
        for batch in (1, 9)
    ]


def test_scaling_is_a_row_a_line_with_the_cell_of_the_least():
    frame = scaling(run(peaks_at({"global_on": 300, "no_grad": 100}), name="r"))
    row = only(frame, grad_mode="no_grad")
    assert (row.run, row.variable, row.batch_size, row.points) == ("r", "batch_size", 1, 2)
    assert (row.slope, row.intercept, row.break_even) == pytest.approx((100, 1000, 3))
    assert row.max_error == pytest.approx(0, abs=1e-9)
    assert row.exponent == pytest.approx(math.log(1900 / 1100) / math.log(9))
    assert only(frame, grad_mode="global_on").break_even == pytest.approx(1)
    columns = ["variable", "slope", "intercept", "max_error", "exponent", "points", "break_even"]
    assert list(frame.columns) == ["run", *AXES, *columns]


def test_scaling_takes_another_reference_and_another_meter():
    outcomes = [
        *peaks_at({"global_on": 300, "no_grad": 100}),
        *peaks_at({"global_on": 80, "no_grad": 8}, meter="saved_for_backward"),
    ]
    to_no_grad = scaling(run(outcomes), reference="no_grad")
    assert only(to_no_grad, grad_mode="global_on").break_even == pytest.approx(1 / 3)
    saved = scaling(run(outcomes), meter="saved_for_backward")
    assert saved.slope.tolist() == pytest.approx([80, 8])


def test_break_even_is_asked_of_batches_only_and_of_nobody_without_the_reference():
    deep = [counted(cell(model=f"mlp_d{depth}_w8"), 10 * depth + 5) for depth in (1, 2)]
    deep = [counted(o.cell, o.values[0], meter="peak_allocated") for o in deep]
    frame = scaling(run([*deep, *peaks_at({"no_grad": 100})]))
    assert set(frame.variable) == {"depth", "batch_size"}
    assert frame.break_even.isna().all()


def test_peaks_are_what_was_read_and_is_not_nothing():
    found = run(
        [
            counted(ON, 5, meter="peak_allocated"),
            counted(OFF, 0, meter="peak_allocated"),
            counted(INFERENCE, 7),
            skipped(NO_GRAD, meter="peak_allocated"),
        ]
    )
    assert peaks(found) == {ON: 5}
    assert peaks(found, "peak_transient") == {INFERENCE: 7}


def test_breakdowns_and_lines_of_several_runs_are_stacked_by_name():
    both = [
        run([*peaks_at({"no_grad": 100}), broken_down(ON, inputs=8)], name=name) for name in "ab"
    ]
    for table, rows in ((breakdowns, 2 * len(PARTS)), (scaling, 1)):
        assert table(both).groupby("run").size().to_dict() == {"a": rows, "b": rows}


@pytest.mark.parametrize("table", [breakdowns, scaling])
@pytest.mark.parametrize("runs", [[], SMALL], ids=["no-run", "no-such-figures"])
def test_without_anything_to_tell_the_frame_is_empty_and_has_its_columns(table, runs):
    frame = table(runs)
    assert frame.empty
    assert list(frame.columns)[: len(AXES) + 1] == ["run", *AXES]


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
