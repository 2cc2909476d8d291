"""The rule by which commits' times are sorted: before the change or after it, how surely."""

import math

import numpy as np
import pytest
from scipy import stats

from gradbench.stats.half_way import HalfWayRule, planned_tests
from gradbench.stats.table_rule import ALPHA

SLOWER = math.log(1.10)


def rule(change_log: float = SLOWER, tests: int = 5) -> HalfWayRule:
    return HalfWayRule(change_log=change_log, tests=tests, first=5)


def sorted_by(one: HalfWayRule, effect: float, spread: float, rng) -> bool | None:
    logs: list[float] = []
    while one.more(logs):
        logs.append(float(rng.normal(effect, spread)))
    return one.is_beyond(logs)


def test_a_commit_is_on_the_side_of_half_the_change_that_its_replicates_are_on():
    calm = [0.001, -0.002, 0.0005]
    assert rule().is_beyond(calm) is False
    assert rule().is_beyond([SLOWER + one for one in calm]) is True
    assert rule(-SLOWER).is_beyond([-SLOWER + one for one in calm]) is True
    assert rule(-SLOWER).is_beyond([SLOWER + one for one in calm]) is False


def test_what_is_not_clear_takes_more_and_a_stated_number_at_most():
    one = rule()
    assert one.looks == (3, 5, 8, 12)
    logs = [0.3, -0.3]
    assert one.more(logs)
    while one.more(logs):
        logs.append(-logs[-1])
    assert len(logs) == 12
    assert one.is_beyond(logs) is None


def test_more_tests_ask_for_more():
    assert rule(tests=50).level == pytest.approx(rule(tests=5).level / 10)
    assert rule(tests=1).level == ALPHA / 4
    barely = [0.02, 0.0, -0.011]
    assert rule(tests=1).is_beyond(barely) is False or rule(tests=1).is_beyond(barely) is None
    assert rule(tests=10**6).is_beyond(barely) is None
    assert (planned_tests(1, 1), planned_tests(7, 2), planned_tests(1000, 1)) == (2, 8, 11)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.01, 0.03, 0.1])
def test_of_whole_bisections_one_in_a_hundred_at_most_puts_a_commit_on_the_wrong_side(spread):
    rng, bisections, tests = np.random.default_rng(0), 800, 5
    one = rule(tests=tests)
    wrong = 0
    for _ in range(bisections):
        after = [bool(rng.random() < 0.5) for _ in range(tests)]
        found = [sorted_by(one, SLOWER if side else 0.0, spread, rng) for side in after]
        wrong += any(f is not None and f is not side for f, side in zip(found, after, strict=True))
    assert wrong <= stats.binom.isf(0.001, bisections, ALPHA)


def test_a_change_that_is_large_beside_the_noise_is_sorted_at_once():
    rng = np.random.default_rng(1)
    calm = [sorted_by(rule(), effect, 0.004, rng) for effect in (0.0, SLOWER) * 100]
    assert calm == [False, True] * 100
