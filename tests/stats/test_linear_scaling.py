"""Lines through peaks: found back from exact points, and none where two sizes differ."""

from dataclasses import replace

import numpy as np
import pytest
from builders import block, cell
from hypothesis import example, given, strategies as st

from gradbench.experiment.matrix import LENGTHS
from gradbench.memory.batch_fit import followed_to
from gradbench.stats.linear_scaling import (
    CURVED,
    VARIABLES,
    break_even,
    fit,
    largest_two,
    lines,
    value,
)

BATCHES = st.lists(st.integers(1, 10**4), min_size=2, max_size=6, unique=True)
PEAKS = st.dictionaries(st.integers(1, 10**4), st.integers(1, 10**12), min_size=2, max_size=6)


def through(variable, points, **axes):
    """Return the peaks of cells that differ in one size."""
    if variable == "batch_size":
        return {cell(batch_size=at, **axes): nbytes for at, nbytes in points.items()}
    if variable in LENGTHS:
        made = {"workload": "decode"} | axes
        return {cell(**made | {variable: at}): nbytes for at, nbytes in points.items()}
    sizes = {"depth": 2, "width": 16, "resolution": 8}
    return {
        cell(
            model="cnn_d{depth}_w{width}_r{resolution}".format(**sizes | {variable: at}), **axes
        ): n
        for at, n in points.items()
    }


def straight(slope, intercept, at):
    return {x: intercept + slope * x for x in at}


@given(BATCHES, st.integers(0, 10**9), st.integers(1, 10**9))
@example([1, 2], 0, 1)
def test_any_line_is_found_back_from_points_on_it(at, slope, intercept):
    points = straight(slope, intercept, at)
    line = fit(cell(), "batch_size", points)
    spread = max(at) - min(at)
    highest = max(points.values())
    assert line.slope == pytest.approx(slope, abs=1e-9 * highest / spread)
    assert line.intercept == pytest.approx(intercept, abs=1e-9 * highest * max(at) / spread)
    assert line.max_error < 1e-9
    assert not line.curved
    assert (line.at, line.peaks) == (tuple(sorted(at)), tuple(points[x] for x in sorted(at)))


@given(PEAKS, st.integers(2, 1000))
def test_a_line_in_other_units_is_the_same_line(points, scale):
    line = fit(cell(), "batch_size", points)
    scaled = fit(cell(), "batch_size", {x: scale * y for x, y in points.items()})
    largest = max(points.values())
    assert scaled.slope == pytest.approx(scale * line.slope, abs=1e-6 * scale * largest)
    assert scaled.intercept == pytest.approx(scale * line.intercept, abs=1e-6 * scale * largest)
    assert scaled.max_error == pytest.approx(line.max_error, rel=1e-6, abs=1e-4)
    assert scaled.exponent == pytest.approx(line.exponent, rel=1e-6, abs=1e-6)


@given(PEAKS, st.sampled_from([0.99, 1.01]), st.sampled_from(["slope", "intercept"]))
def test_no_line_nearby_has_smaller_relative_distances(points, factor, moved):
    line = fit(cell(), "batch_size", points)

    def distance(candidate):
        at, peaks = np.array(candidate.at), np.array(candidate.peaks)
        return float(np.sum(((candidate.slope * at + candidate.intercept - peaks) / peaks) ** 2))

    other = replace(line, **{moved: getattr(line, moved) * factor})
    assert distance(line) <= distance(other) + 1e-9


def test_a_small_peak_pulls_as_much_as_a_large_one():
    """100 bytes a sample, the largest peak 1% too high. By bytes alone the line would turn by
    about 1% around the middle of 1000 samples and miss the peak of one sample by its own size."""
    points = straight(100, 0, [1, 10, 100]) | {1000: 101_000}
    line = fit(cell(), "batch_size", points)
    assert line.max_error < 0.01
    assert line.slope + line.intercept == pytest.approx(100, rel=0.01)
    slope, intercept = np.polyfit(list(points), list(points.values()), 1)
    assert abs(slope + intercept - 100) > 0.1 * 100


@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_power_is_the_exponent_and_only_a_first_power_is_no_curve(power):
    line = fit(cell(), "batch_size", {x: 7 * x**power for x in (1, 2, 4, 8)})
    assert line.exponent == pytest.approx(power)
    assert line.curved == (power != 1)
    assert (line.max_error > CURVED) == (power != 1)


@pytest.mark.parametrize("variable", VARIABLES)
def test_width_and_resolution_are_taken_for_curved_however_straight_two_points_are(variable):
    (line,) = lines(through(variable, {2: 20, 4: 40}))
    assert line.max_error == pytest.approx(0, abs=1e-9)
    assert line.curved == (variable in ("width", "resolution"))


@pytest.mark.parametrize("points", [{}, {8: 100}])
def test_one_point_makes_no_line(points):
    with pytest.raises(ValueError, match="two points"):
        fit(cell(), "batch_size", points)
    assert lines(through("batch_size", points)) == []


def test_the_line_through_the_two_largest_leaves_out_what_small_sizes_need():
    points = {1: 5000, 10: 2000, 20: 3000}
    line = largest_two(cell(), "batch_size", points)
    assert (line.slope, line.intercept) == pytest.approx((100, 1000))
    assert line.peak(30) == 4000
    assert line.distance(points) == pytest.approx(abs(1100 - 5000) / 5000)


def test_a_level_line_has_no_slope_that_a_budget_could_be_divided_by():
    """As on a GPU, whose blocks of 512 bytes hold one sample or two."""
    level = through("batch_size", {1: 100, 2: 100}, grad_mode="no_grad")
    rising = through("batch_size", {1: 100, 2: 200})
    (line,) = lines(level)
    assert (line.slope, line.peak(10**9)) == (0, 100)
    allowed = break_even(lines(level | rising), reference="global_on")
    assert {c.grad_mode for c in allowed} == {"global_on"}


# Which cells make a line


@pytest.mark.parametrize("variable", VARIABLES)
def test_cells_that_differ_in_one_size_make_one_line_over_it(variable):
    points = straight(10, 5, [4, 1, 2])
    (line,) = lines(through(variable, points))
    assert (line.variable, line.at, line.peaks) == (variable, (1, 2, 4), (15, 25, 45))
    assert (line.slope, line.intercept) == pytest.approx((10, 5))
    assert line.cell == min(through(variable, points), key=lambda cell: value(cell, variable))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"model": "mlp_d2_w16"}, {"model": "mlp_d4_w32"}),
        ({"model": "mlp_d2_w16"}, {"model": "mlp_d4_w16", "batch_size": 16}),
        ({"model": "mlp_d2_w16"}, {"model": "cnn_d4_w16_r8"}),
        ({"model": "cnn_d2_w16_r8"}, {"model": "cnn_d2_w32_r16"}),
        ({"batch_size": 1}, {"batch_size": 2, "dtype": "bfloat16"}),
        ({"batch_size": 1}, {"batch_size": 2, "optimizer": "adamw"}),
        ({"batch_size": 1}, {"batch_size": 2, "grad_mode": "no_grad"}),
        ({"model": "mlp_tiny"}, {"model": "mlp_deep"}),
        ({"model": "mlp_tiny", "batch_size": 1}, {"model": "mlp_deep", "batch_size": 2}),
    ],
)
def test_cells_that_differ_in_more_make_none(one, other):
    axes = {"grad_mode": "global_on"}
    assert lines({cell(**axes | one): 10, cell(**axes | other): 20}) == []


def test_a_grid_of_two_sizes_makes_a_line_for_each_value_of_the_other():
    grid = {
        cell(model=f"mlp_d{depth}_w16", batch_size=batch): 100 * depth + 7 * depth * batch
        for depth in (1, 2, 3)
        for batch in (1, 8)
    }
    found = [
        (line.variable, value(line.cell, line.variable), round(line.slope)) for line in lines(grid)
    ]
    over_batch = [("batch_size", 1, 7 * depth) for depth in (1, 2, 3)]
    over_depth = [("depth", 1, 100 + 7 * batch) for batch in (1, 8)]
    assert found == over_batch + over_depth


def test_sizes_are_read_off_the_models_name():
    member = cell(model="cnn_d3_w16_r32", batch_size=5)
    assert {variable: value(member, variable) for variable in VARIABLES} == {
        "batch_size": 5,
        "depth": 3,
        "width": 16,
        "resolution": 32,
        "prompt": None,
        "new_tokens": None,
    }
    maker = cell(workload="generate", prompt=64, new_tokens=4)
    assert [value(maker, length) for length in LENGTHS] == [64, 4]
    assert value(cell(model="mlp_d3_w16"), "resolution") is None
    assert value(cell(model="mlp_deep"), "depth") is None


# What the modes allow


def over_batches(slopes, **axes):
    """Return the peaks of a block at two batch sizes, 1000 bytes beside so many a sample."""
    return {
        replace(member, batch_size=batch): 1000 + slopes[member.grad_mode] * batch
        for member in block(list(slopes), **axes)
        for batch in (1, 64)
    }


def test_break_even_is_the_ratio_of_slopes():
    found = lines(over_batches({"global_on": 300, "no_grad": 100, "inference_mode": 75}))
    for reference, of_reference in (("global_on", 300), ("no_grad", 100)):
        allowed = break_even(found, reference=reference)
        assert {c.grad_mode: times for c, times in allowed.items()} == pytest.approx(
            {
                "global_on": of_reference / 300,
                "no_grad": of_reference / 100,
                "inference_mode": of_reference / 75,
            }
        )


def test_break_even_is_taken_within_a_family_only():
    peaks = {
        **over_batches({"global_on": 300, "no_grad": 100}),
        **over_batches({"global_on": 800, "no_grad": 100}, model="mlp_deep"),
        **over_batches({"no_grad": 100}, model="mlp_wide"),
    }
    allowed = break_even(lines(peaks), reference="global_on")
    assert {(c.model, c.grad_mode): round(times, 6) for c, times in allowed.items()} == {
        ("mlp_tiny", "global_on"): 1,
        ("mlp_tiny", "no_grad"): 3,
        ("mlp_deep", "global_on"): 1,
        ("mlp_deep", "no_grad"): 8,
    }


def test_break_even_is_asked_of_batches_and_where_each_sample_costs_something():
    falling = over_batches({"global_on": 300, "no_grad": -10})
    allowed = break_even(lines(falling), reference="global_on")
    assert {c.grad_mode for c in allowed} == {"global_on"}
    assert break_even(lines(falling), reference="inference_mode") == {}
    assert break_even(lines(through("depth", {1: 10, 2: 20})), reference="global_on") == {}


def test_a_larger_budget_approaches_break_even():
    found = lines(over_batches({"global_on": 300, "no_grad": 100}))
    on, off = found
    for budget, within in ((10**4, 0.05), (10**9, 1e-5)):
        largest = [followed_to(line.peak, budget) for line in (off, on)]
        assert largest[0] / largest[1] == pytest.approx(3, rel=within)


@pytest.mark.parametrize("nbytes", [0, -5])
def test_a_peak_that_no_step_has_is_on_no_line(nbytes):
    peaks = {cell(batch_size=at): at * 8 for at in (1, 2, 3)}
    assert lines(peaks | {cell(batch_size=9): nbytes}) == lines(peaks)
