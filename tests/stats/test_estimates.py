"""Estimators held against distributions whose truth is known."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from gradbench.stats.estimates import (
    MIN_DETECTABLE_EFFECT,
    Estimate,
    benjamini_hochberg,
    exact,
    hodges_lehmann,
    holm,
    median,
    noise_floor,
    paired_ratio,
    quantile,
)

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


@settings(max_examples=60)
@given(times, st.randoms(use_true_random=False))
def test_order_does_not_matter_to_a_median(values, random):
    shuffled = values.tolist()
    random.shuffle(shuffled)
    assert median(np.array(shuffled)) == median(values)


@settings(max_examples=60)
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


@settings(max_examples=60)
@given(times, positive)
def test_a_median_scales_with_its_values(values, scale):
    whole, scaled = median(values), median(values * scale)
    assert (scaled.point, scaled.low, scaled.high) == pytest.approx(
        (whole.point * scale, whole.low * scale, whole.high * scale)
    )


@settings(max_examples=60)
@given(pairs, positive)
def test_a_ratio_has_no_unit(sides, scale):
    assert astuple(paired_ratio(*(sides * scale))) == approx(paired_ratio(*sides))


@settings(max_examples=60)
@given(pairs)
def test_sides_swapped_give_the_reciprocal(sides):
    one, other = sides
    there, back = paired_ratio(one, other), paired_ratio(other, one)
    assert (back.point, back.low, back.high) == pytest.approx(
        (1 / there.point, 1 / there.high, 1 / there.low), rel=1e-9
    )


@settings(max_examples=60)
@given(pairs, st.data())
def test_drift_that_both_sides_share_cancels(sides, data):
    count = sides.shape[1]
    drift = data.draw(st.lists(st.floats(0.01, 100), min_size=count, max_size=count))
    assert astuple(paired_ratio(*(sides * drift))) == approx(paired_ratio(*sides))


@settings(max_examples=60)
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
        (lambda: quantile(NONE), "no rounds"),
        (lambda: quantile(np.ones(3), 1.0), r"between 0 and 1, not at 1\.0"),
        (lambda: holm(np.array([0.1, 1.5])), r"between 0 and 1: 1\.5 does not"),
        (lambda: holm(np.array([math.nan])), "between 0 and 1: nan does not"),
        (lambda: benjamini_hochberg(np.array([-0.1])), r"between 0 and 1: -0\.1 does not"),
        (lambda: paired_ratio(np.ones(2), np.array([1.0, -1.0])), "must be positive"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_cannot_be_estimated_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def estimate(low, high, point=1.0, confidence=0.95):
    return Estimate(point=point, low=low, high=high, confidence=confidence, rounds=12)


def test_a_figure_equal_to_the_byte_in_all_rounds_has_no_width_and_hides_nothing():
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
        ((0.99, 1.02), 0.02),
        ((0.95, 1.02), 1 / 0.95 - 1),
        ((1.01, 1.04), 0.04),  # 1 lies further outside than it is wide: that is noise too
        ((1.024, 1.552), 0.552),  # not its logarithm
        ((0.999, 1.001), MIN_DETECTABLE_EFFECT),
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
    assert estimate(0.9999, 1.0001).detectable == MIN_DETECTABLE_EFFECT


def test_an_interval_that_carries_less_is_not_taken_for_one_of_95():
    """Half a width at 50% is 0.674 standard errors, not 1.96."""
    sure, unsure = (estimate(0.9, 1.1, confidence=level).detectable for level in (0.95, 0.5))
    assert unsure / sure == pytest.approx(1.959964 / 0.6744898)


def test_one_round_hides_any_change():
    assert median(np.array([5.0])).detectable == math.inf


@over_distributions
@pytest.mark.parametrize("n", [36, 50, 200])
@pytest.mark.parametrize("q", [0.1, 0.25])
def test_the_interval_of_a_quantile_holds_the_truth_as_often_as_it_says(name, n, q):
    draw, _ = DISTRIBUTIONS[name]
    rng = np.random.default_rng([n, len(name), 2])
    truth = float(np.quantile(draw(rng, 4_000_000), q))
    assert_covers([quantile(row, q) for row in draw(rng, (SIMULATIONS, n))], truth)


def below(n, q, k):
    """Return the chance that a binomial(n, q) is at most k."""
    return sum(math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(k + 1))


@pytest.mark.parametrize("q", [0.1, 0.3])
@pytest.mark.parametrize("n", [1, 2, 5, 20, 35, 36, 101])
def test_the_order_statistics_of_a_quantile_are_the_binomial_s(n, q):
    lower = max([k for k in range(1, n + 1) if below(n, q, k - 1) <= 0.025], default=1)
    upper = min([k for k in range(1, n + 1) if 1 - below(n, q, k - 1) <= 0.025], default=n)
    found = quantile(np.arange(1.0, n + 1), q)
    assert (found.low, found.high) == (lower, upper)
    assert found.confidence == pytest.approx(
        below(n, q, upper - 1) - below(n, q, lower - 1), abs=1e-12
    )


def test_a_quantile_by_hand():
    """Of 1 to 41 it lies at 5; a binomial(41, 0.1) is at most 0 or at least 9 rarely enough."""
    found = quantile(np.arange(41.0, 0, -1))
    assert (found.point, found.low, found.high, found.rounds) == (5, 1, 9, 41)


@pytest.mark.parametrize(("n", "confidence"), [(1, 0.0), (5, 0.40095)])
def test_a_quantile_says_what_few_rounds_are_worth(n, confidence):
    """Of five, 1 or 2 lie below it: 5 * 0.1 * 0.9**4 + 10 * 0.1**2 * 0.9**3."""
    found = quantile(np.arange(1.0, n + 1))
    assert found.low == 1
    assert found.confidence == pytest.approx(confidence, abs=1e-6)


@settings(max_examples=60)
@given(times, positive, st.randoms(use_true_random=False))
def test_a_quantile_scales_has_no_order_and_lies_in_its_interval(values, scale, random):
    whole, scaled = quantile(values), quantile(values * scale)
    assert whole.low <= whole.point <= whole.high
    assert (scaled.point, scaled.low, scaled.high) == pytest.approx(
        (whole.point * scale, whole.low * scale, whole.high * scale)
    )
    shuffled = values.tolist()
    random.shuffle(shuffled)
    assert quantile(np.array(shuffled)) == whole


def test_processes_decide_however_many_rounds_each_of_them_had():
    """Pooled rounds of processes that differ by luck exclude the truth; processes do not."""
    rng = np.random.default_rng(4)
    randomized_layout = rng.normal(0, 0.02, (SIMULATIONS, 8, 1))
    rounds = np.exp(
        randomized_layout + rng.normal(0, 0.005, (SIMULATIONS, 8, 100))
    )  # (runs, processes, rounds)
    by_process = np.median(rounds, axis=2)
    assert_covers([hodges_lehmann(np.log(row)) for row in by_process], 0.0)
    pooled = [median(row.ravel()) for row in rounds]
    assert sum(one.low <= 1 <= one.high for one in pooled) / SIMULATIONS < 0.5


def test_the_centre_by_hand():
    """Means of two of 1, 2, 6: 1, 1.5, 2, 3.5, 4, 6."""
    found = hodges_lehmann(np.array([6.0, 1.0, 2.0]))
    assert astuple(found)[:3] == (2.75, 1, 6)
    assert found.confidence == 1 - 2 / 2**3  # all three on one side, either way
    with pytest.raises(ValueError, match="nothing to estimate"):
        hodges_lehmann(np.array([]))


@pytest.mark.parametrize("n", [6, 9, 12, 20])
def test_the_centres_interval_is_where_the_signed_rank_test_would_not_reject(n):
    values = np.random.default_rng(n).normal(size=n)
    found = hodges_lehmann(values)

    def p(centre: float) -> float:
        return float(stats.wilcoxon(values - centre, method="exact").pvalue)

    for edge, outwards in ((found.low, -1e-9), (found.high, 1e-9)):
        assert p(edge + outwards) <= 0.05 < p(edge - outwards)
    assert found.confidence == pytest.approx(1 - p(found.low - 1e-9), rel=1e-12)


@pytest.mark.parametrize("n", [6, 12, 25])
def test_the_centres_interval_holds_the_truth_of_symmetric_noise(n):
    rng = np.random.default_rng([n, 7])
    for draws in (rng.normal(10, 1, (SIMULATIONS, n)), rng.standard_t(3, (SIMULATIONS, n)) + 10):
        assert_covers([hodges_lehmann(row) for row in draws], 10)


def test_the_centre_wants_fewer_values_than_the_median_and_bears_a_wild_one():
    draws = np.random.default_rng(0).normal(size=(4 * SIMULATIONS, 12))
    spread = np.std([hodges_lehmann(row).point for row in draws])
    assert spread < 0.9 * np.std(np.median(draws, axis=1))
    assert spread < 1.05 * np.std(draws.mean(axis=1))
    calm = [0.0, 0.1, -0.1, 0.2, -0.2]
    assert abs(hodges_lehmann(np.array([*calm, 1e6])).point) <= 0.2


@pytest.mark.parametrize(
    ("correct", "p", "adjusted"),
    [
        (holm, [0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        (holm, [0.02, 0.02, 0.9], [0.06, 0.06, 0.9]),
        (holm, [0.5, 0.6], [1.0, 1.0]),
        (benjamini_hochberg, [0.01, 0.04, 0.03], [0.03, 0.04, 0.04]),
        (benjamini_hochberg, [0.01, 0.02, 0.9], [0.03, 0.03, 0.9]),
        *[(correct, [0.03], [0.03]) for correct in (holm, benjamini_hochberg)],
        *[(correct, [], []) for correct in (holm, benjamini_hochberg)],
    ],
)
def test_corrections_by_hand(correct, p, adjusted):
    assert correct(np.array(p)).tolist() == pytest.approx(adjusted)


def test_corrections_of_the_example_in_benjamini_and_hochberg_s_paper():
    """Section 4: of its 15 comparisons theirs finds four at 0.05, one more than Holm's."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240]
    p = np.array([*p, 0.4262, 0.5719, 0.6528, 0.7590, 1.0])
    assert (benjamini_hochberg(p) <= 0.05).tolist() == [True] * 4 + [False] * 11
    assert (holm(p) <= 0.05).tolist() == [True] * 3 + [False] * 12


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@settings(max_examples=100)
@given(p_values, st.randoms(use_true_random=False))
def test_corrections_keep_order_and_place_and_only_raise(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    p = np.array(p)
    strict, lenient = holm(p), benjamini_hochberg(p)
    for correct, adjusted in ((holm, strict), (benjamini_hochberg, lenient)):
        assert (adjusted >= p).all()
        assert (adjusted <= 1).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
        assert correct(p[order]).tolist() == adjusted[order].tolist()
    assert (lenient <= strict + 1e-15).all()


def simulated_p_values(rng, *, tests, shared, changed):
    """Return one-sided normal p-values (runs, tests); the first ``changed`` have an effect."""
    common = rng.normal(0, 1, (20 * SIMULATIONS, 1))
    own = rng.normal(0, 1, (20 * SIMULATIONS, tests))
    z = math.sqrt(shared) * common + math.sqrt(1 - shared) * own
    z[:, :changed] += 3.0
    return np.vectorize(math.erfc)(z / math.sqrt(2)) / 2


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_holm_holds_the_family_s_error_under_nulls_and_beside_changes(shared):
    rng = np.random.default_rng([int(shared * 10), 8])
    for changed in (0, 3):
        p = simulated_p_values(rng, tests=9, shared=shared, changed=changed)
        false = np.mean([(holm(row)[changed:] <= 0.05).any() for row in p])
        assert false <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(p))
        uncorrected = (p[:, changed:] <= 0.05).any(axis=1).mean()
        assert uncorrected > 0.1


@pytest.mark.parametrize("changed", [0, 10])
def test_benjamini_hochberg_holds_the_share_of_false_alarms(changed):
    """Where all are null it is the chance of any alarm; else alpha times the share of nulls."""
    rng = np.random.default_rng([changed, 9])
    p = simulated_p_values(rng, tests=20, shared=0.0, changed=changed)[: 4 * SIMULATIONS]
    alarms = np.array([benjamini_hochberg(row) <= 0.05 for row in p])
    shares = alarms[:, changed:].sum(axis=1) / np.maximum(alarms.sum(axis=1), 1)
    truth = 0.05 * (20 - changed) / 20
    assert shares.mean() == pytest.approx(truth, abs=3 * shares.std() / math.sqrt(len(shares)))
    if changed:
        found = alarms[:, :changed].mean()
        strict = np.mean([(holm(row) <= 0.05)[:changed] for row in p])
        assert found > strict + 0.1
