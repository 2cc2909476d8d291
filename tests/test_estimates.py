"""Estimators held against distributions whose truth is known."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gradbench.estimates import SYSTEMATIC, Estimate, exact, median, noise_floor, paired_ratio

SIMULATIONS = 700
DISTRIBUTIONS = {  # draws, all positive, and their median
    "normal": (lambda rng, shape: rng.normal(10, 1, shape), 10.0),
    "lognormal": (lambda rng, shape: rng.lognormal(2, 1, shape), math.exp(2)),
    "exponential": (lambda rng, shape: rng.exponential(3, shape), 3 * math.log(2)),
}
over_distributions = pytest.mark.parametrize("name", DISTRIBUTIONS)
over_sizes = pytest.mark.parametrize("n", [6, 12, 25, 101])

positive = st.floats(1e-3, 1e12, allow_nan=False)
times = st.lists(positive, min_size=1, max_size=60).map(np.array)
pairs = st.lists(st.tuples(positive, positive), min_size=1, max_size=60).map(
    lambda sides: np.array(sides).T
)


def approx(estimate):
    return pytest.approx(astuple(estimate), rel=1e-9)


def assert_covers(estimates, truth):
    """Fail unless the intervals hold the truth as often as they say, and as was asked."""
    stated = estimates[0].confidence
    held = sum(one.low <= truth <= one.high for one in estimates) / len(estimates)
    error = math.sqrt(stated * (1 - stated) / len(estimates))
    assert stated >= 0.95
    assert abs(held - stated) <= 3 * error, f"held {held:.3f} of the time, said {stated:.3f}"


@over_distributions
@over_sizes
def test_the_interval_of_a_median_holds_the_truth_as_often_as_it_says(name, n):
    draw, truth = DISTRIBUTIONS[name]
    rng = np.random.default_rng([n, len(name)])
    assert_covers([median(row) for row in draw(rng, (SIMULATIONS, n))], truth)


@over_distributions
@over_sizes
def test_the_interval_of_a_paired_ratio_holds_the_truth_under_drift(name, n):
    draw, _ = DISTRIBUTIONS[name]
    rng = np.random.default_rng([n, len(name), 1])
    drift = np.exp(np.cumsum(rng.normal(0, 0.5, (SIMULATIONS, n)), axis=1))  # (runs, rounds)
    candidate, reference = (drift * draw(rng, (SIMULATIONS, n)) for _ in range(2))
    assert_covers(
        [paired_ratio(1.3 * c, r) for c, r in zip(candidate, reference, strict=True)], 1.3
    )


@over_distributions
def test_the_point_comes_to_the_truth_as_rounds_grow(name):
    draw, truth = DISTRIBUTIONS[name]
    rng = np.random.default_rng(5)
    assert median(draw(rng, 100_000)).point == pytest.approx(truth, rel=0.02)
    ratio = paired_ratio(0.7 * draw(rng, 100_000), draw(rng, 100_000))
    assert ratio.point == pytest.approx(0.7, rel=0.02)
    assert ratio.half_width < 0.02


def tail(n, k):
    """Return the chance that at most k of n fair coins show heads."""
    return sum(math.comb(n, i) for i in range(k + 1)) / 2**n


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [*range(1, 31), 101])
def test_the_order_statistics_and_the_confidence_are_the_binomial_s(n, confidence):
    fitting = [k for k in range(1, n) if 2 * tail(n, k - 1) <= 1 - confidence]
    k = max(fitting, default=1)
    found = median(np.arange(1.0, n + 1), confidence=confidence)
    assert (found.low, found.high) == (k, n + 1 - k)
    assert found.confidence == pytest.approx(1 - 2 * tail(n, k - 1), abs=1e-12)
    assert (found.confidence >= confidence) == bool(fitting)
    assert found.rounds == n


@pytest.mark.parametrize(
    ("n", "confidence"), [(1, 0.0), (2, 1 / 2), (3, 3 / 4), (5, 15 / 16), (6, 31 / 32)]
)
def test_few_rounds_are_spanned_and_say_what_that_is_worth(n, confidence):
    found = median(np.arange(1.0, n + 1))
    assert (found.low, found.high) == (1, n)
    assert found.confidence == pytest.approx(confidence, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(times, st.randoms(use_true_random=False))
def test_order_does_not_matter_to_a_median(values, random):
    shuffled = values.tolist()
    random.shuffle(shuffled)
    assert median(np.array(shuffled)) == median(values)


@settings(max_examples=60, deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_order_does_not_matter_to_a_ratio_while_pairs_stay_pairs(sides, random):
    order = list(range(sides.shape[1]))
    random.shuffle(order)
    assert paired_ratio(*sides[:, order]) == paired_ratio(*sides)


def test_what_pairs_with_what_does_matter_to_a_ratio():
    one, other = np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0])
    paired = paired_ratio(one, other)
    assert (paired.low, paired.high) == pytest.approx((0.5, 0.5))
    assert paired_ratio(one, other[::-1]).high > 1


@settings(max_examples=60, deadline=None)
@given(times, positive)
def test_a_median_scales_with_its_values(values, scale):
    whole, scaled = median(values), median(values * scale)
    assert (scaled.point, scaled.low, scaled.high) == pytest.approx(
        (whole.point * scale, whole.low * scale, whole.high * scale)
    )


@settings(max_examples=60, deadline=None)
@given(pairs, positive)
def test_a_ratio_has_no_unit(sides, scale):
    assert astuple(paired_ratio(*(sides * scale))) == approx(paired_ratio(*sides))


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_sides_swapped_give_the_reciprocal(sides):
    one, other = sides
    there, back = paired_ratio(one, other), paired_ratio(other, one)
    assert (back.point, back.low, back.high) == pytest.approx(
        (1 / there.point, 1 / there.high, 1 / there.low), rel=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(pairs, st.data())
def test_drift_that_both_sides_share_cancels(sides, data):
    count = sides.shape[1]
    drift = data.draw(st.lists(st.floats(0.01, 100), min_size=count, max_size=count))
    assert astuple(paired_ratio(*(sides * drift))) == approx(paired_ratio(*sides))


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_the_point_lies_in_its_interval(sides):
    for found in (median(sides[0]), paired_ratio(*sides)):
        assert found.low <= found.point <= found.high


def test_a_side_against_itself_is_one_without_width():
    values = np.array([3.0, 1.0, 7.0, 2.0])
    found = paired_ratio(values, values)
    assert (found.point, found.low, found.high) == (1, 1, 1)


def test_values_are_left_as_they_were():
    values = np.array([3.0, 1.0, 2.0])
    median(values)
    paired_ratio(values, values)
    assert values.tolist() == [3, 1, 2]


NONE = np.array([])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: median(NONE), "no rounds"),
        (lambda: paired_ratio(NONE, NONE), "no rounds"),
        (lambda: paired_ratio(np.ones(3), np.ones(4)), "do not pair: 3 against 4"),
        (lambda: paired_ratio(np.array([1.0, 0.0]), np.ones(2)), "must be positive"),
        (lambda: paired_ratio(np.ones(2), np.array([1.0, -1.0])), "must be positive"),
    ],
    ids=["median-none", "ratio-none", "unpaired", "zero", "negative"],
)
def test_what_cannot_be_estimated_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def estimate(low, high, point=1.0):
    return Estimate(point=point, low=low, high=high, confidence=0.95, rounds=12)


def test_a_figure_that_repeats_to_the_byte_has_no_width_and_hides_nothing():
    figure = exact(4096.0)
    assert (figure.point, figure.low, figure.high) == (4096, 4096, 4096)
    assert (figure.confidence, figure.rounds, figure.exact) == (1, 1, True)
    assert figure.half_width == figure.detectable == 0


def test_half_width_is_relative_to_the_point():
    assert estimate(9, 11, point=10).half_width == pytest.approx(0.1)
    assert exact(0.0).half_width == 0


@pytest.mark.parametrize(
    ("control", "floor"),
    [
        ((0.99, 1.02), math.log(1.02)),
        ((0.95, 1.02), -math.log(0.95)),
        ((1.01, 1.04), math.log(1.04)),  # off by more than its width: that is noise too
        ((0.999, 1.001), SYSTEMATIC),
    ],
)
def test_the_noise_floor_is_the_most_that_the_control_allows_and_at_least_the_systematic(
    control, floor
):
    assert noise_floor(estimate(*control)) == pytest.approx(floor)


def test_the_noise_floor_is_the_same_with_the_control_s_sides_swapped():
    assert noise_floor(estimate(0.9, 1.05)) == pytest.approx(
        noise_floor(estimate(1 / 1.05, 1 / 0.9))
    )


def test_a_detectable_change_is_seen_four_times_in_five():
    """Over normal estimators of that half-width, the share of intervals that exclude 0."""
    deviation = 0.01
    half = 1.959964 * deviation
    change = estimate(1 - half, 1 + half).detectable
    seen = np.random.default_rng(0).normal(change, deviation, 200_000) - half > 0
    assert seen.mean() == pytest.approx(0.8, abs=0.005)


def test_no_change_below_the_systematic_is_called_detectable():
    assert estimate(0.9999, 1.0001).detectable == SYSTEMATIC
