"""Change points against series whose truth is known; seeds are fixed, no output is stored."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gradbench.stats.changepoints import (
    RULE,
    clip_spikes,
    noise,
    partition,
    rank_test,
    shifts,
)


def white(seed, points=200, sd=0.02):
    return np.exp(np.random.default_rng(seed).normal(0, sd, points))


def autoregressive(seed, points, *, r, sd=1.0):
    rng = np.random.default_rng(seed)
    fresh = rng.normal(0, sd * math.sqrt(1 - r * r), points + 100)
    values = np.zeros(points + 100)
    for at in range(1, points + 100):
        values[at] = r * values[at - 1] + fresh[at]
    return values[100:]


def stepped(seed, *, step, at=150, points=200, sd=0.02):
    values = white(seed, points, sd)
    values[at:] *= 1 + step
    return values


def indices(values, **options):
    return [shift.index for shift in shifts(values, **options)]


# --- shifts


@pytest.mark.parametrize("sd", [0.02, 0.05])
def test_of_series_without_a_change_at_most_one_in_twenty_has_one(sd):
    assert sum(bool(indices(white(seed, sd=sd))) for seed in range(200)) <= 10


def test_of_spiky_series_without_a_change_at_most_one_in_ten_has_one():
    def spiky(seed):
        rng = np.random.default_rng(seed)
        values = np.exp(rng.normal(0, 0.03, 200))
        values[rng.random(200) < 0.05] *= 1.4
        return values

    assert sum(bool(indices(spiky(seed))) for seed in range(100)) <= 10


@pytest.mark.parametrize("step", [0.1, -0.1])
def test_a_step_of_a_tenth_is_found_where_it_is(step):
    found = [indices(stepped(seed, step=step)) for seed in range(100)]
    assert sum(len(cuts) == 1 and abs(cuts[0] - 150) <= 2 for cuts in found) >= 98


def test_a_step_of_a_tenth_is_found_within_eight_points_after_it():
    found = [indices(stepped(seed, step=0.1, points=158)) for seed in range(100)]
    assert sum(any(abs(cut - 150) <= 8 for cut in cuts) for cuts in found) >= 98


def test_a_shift_tells_its_sides():
    (shift,) = shifts(stepped(3, step=0.1, at=60, points=100))
    assert (shift.before_points, shift.after_points) == (60, 40)
    assert shift.before == pytest.approx(1, abs=0.01)
    assert shift.after == pytest.approx(1.1, abs=0.01)
    assert shift.ratio == shift.after / shift.before
    assert 0 < shift.p < RULE.alpha


def test_up_and_down_are_the_same_to_it():
    values = stepped(5, step=0.1)
    assert indices(values) == indices(1 / values) == [150]


def test_the_unit_is_all_the_same_to_it():
    values = stepped(5, step=0.1)
    assert indices(values * 1e6) == indices(values)


def test_a_burst_of_three_points_is_no_change():
    values = white(1)
    values[100:103] *= 1.5
    assert indices(values) == []


def test_a_plateau_is_two_changes():
    values = white(1)
    values[100:120] *= 1.2
    assert indices(values) == [100, 120]


def test_a_change_smaller_than_the_least_effect_is_none_however_sure():
    values = stepped(1, step=0.015, sd=0.001)
    assert indices(values) == []
    assert len(indices(stepped(1, step=0.025, sd=0.001))) == 1


def test_a_series_without_noise_changes_where_it_changes():
    assert indices(np.array([1.0] * 30 + [1.1] * 10)) == [30]
    assert indices(np.array([1.0] * 40)) == []


@pytest.mark.parametrize("points", range(10))
def test_too_few_points_have_no_change(points):
    assert indices(np.linspace(1, 2, points)) == []


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_a_value_that_has_no_logarithm_is_refused(wrong):
    with pytest.raises(ValueError, match="above 0"):
        shifts(np.array([1.0] * 12 + [wrong]))


# --- the optimal partition


def cost(values, cuts, penalty):
    edges = [0, *cuts, len(values)]
    parts = [values[a:b] for a, b in pairwise(edges)]
    return sum(float(((p - p.mean()) ** 2).sum()) for p in parts) + penalty * len(cuts)


@settings(max_examples=60)
@given(st.lists(st.integers(-4, 4), min_size=4, max_size=12), st.floats(0.1, 30))
def test_no_other_partition_is_cheaper(values, penalty):
    series, least = np.array(values, dtype=np.float64), 2
    best = min(
        cost(series, cuts, penalty)
        for count in range(len(series) // least)
        for cuts in combinations(range(1, len(series)), count)
        if all(b - a >= least for a, b in zip([0, *cuts], [*cuts, len(series)], strict=True))
    )
    ours = partition(series, penalty=penalty, least=least)
    assert cost(series, ours, penalty) == pytest.approx(best)


def test_the_cuts_are_those_of_another_implementation():
    ruptures = pytest.importorskip("ruptures")
    rng = np.random.default_rng(11)
    for _ in range(50):
        values = rng.normal(0, 1, int(rng.integers(12, 150)))
        values[len(values) // 2 :] += rng.uniform(0, 2)
        penalty = float(rng.uniform(2, 20))
        theirs = ruptures.KernelCPD(kernel="linear", min_size=5).fit(values).predict(pen=penalty)
        assert partition(values, penalty=penalty, least=5) == theirs[:-1]


# --- noise and its inflation


@pytest.mark.parametrize("r", [0.0, 0.3, 0.6, 0.8])
def test_noise_and_inflation_are_those_of_the_process(r):
    found = [noise(autoregressive(seed, 2000, r=r)) for seed in range(20)]
    deviations, inflations = zip(*found, strict=True)
    assert np.median(deviations) == pytest.approx(1, rel=0.12)
    assert np.median(inflations) == pytest.approx((1 + r) / (1 - r), rel=0.25)


def test_changes_of_level_do_not_pass_for_noise():
    values = autoregressive(1, 2000, r=0)
    calm = noise(values)
    values += np.repeat(np.arange(10) * 5.0, 200)
    assert noise(values) == pytest.approx(calm, rel=0.05)


def test_dependence_lowers_the_number_of_false_alarms():
    series = [np.exp(autoregressive(seed, 200, r=0.6, sd=0.03)) for seed in range(60)]
    false = sum(bool(indices(values)) for values in series)
    naive = sum(
        bool(partition(np.log(v), penalty=3 * math.log(200) * 0.03**2, least=5)) for v in series
    )
    assert naive >= 20
    assert false * 3 <= naive


# --- spikes, ranks


def test_a_spike_is_drawn_to_its_neighbours_and_nothing_else_moves():
    logs = np.log(white(2))
    spiked = logs.copy()
    spiked[50] += 1
    clipped = clip_spikes(spiked)
    assert clipped[50] < 0.2
    others = np.arange(len(logs)) != 50
    assert np.mean(clipped[others] == logs[others]) > 0.9


def test_a_lasting_change_is_no_spike():
    logs = np.log(stepped(2, step=0.5, at=196))
    assert clip_spikes(logs)[196:].min() > 0.3


def test_p_values_of_equal_sides_are_uniform():
    rng = np.random.default_rng(3)
    p = np.array([rank_test(rng.normal(size=12), rng.normal(size=30)) for _ in range(400)])
    for alpha in (0.05, 0.2, 0.5):
        assert np.mean(p <= alpha) == pytest.approx(alpha, abs=3 * math.sqrt(alpha / 400))


def test_inflation_makes_a_p_value_larger_and_never_smaller():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=20), rng.normal(1, size=20)
    p = rank_test(first, second)
    assert rank_test(first, second, inflation=1.0) == p
    assert p < rank_test(first, second, inflation=2.0) < rank_test(first, second, inflation=4.0) < 1
