"""Verdicts follow from where the whole interval lies."""

import numpy as np
import pytest

from gradbench.experiment.plan import FEWEST_ROUNDS
from gradbench.stats.estimates import Estimate, exact, paired_ratio
from gradbench.stats.verdicts import GRAVEST_FIRST, Verdict, classify, percent


def change(low: float, high: float, confidence: float = 0.95) -> Estimate:
    return Estimate(point=(low + high) / 2, low=low, high=high, confidence=confidence, rounds=30)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.90, 0.95, Verdict.BETTER),
        (1.05, 1.10, Verdict.WORSE),
        (0.995, 1.005, Verdict.SAME),
        (0.90, 1.10, Verdict.INCONCLUSIVE),
        (0.95, 1.005, Verdict.INCONCLUSIVE),
        (1.001, 1.004, Verdict.SAME),  # really there, and too small to matter
    ],
)
def test_the_interval_decides(low: float, high: float, verdict: Verdict) -> None:
    assert classify(change(low, high), floor=0.005) is verdict


def test_what_lies_beyond_the_floor_is_real_however_small() -> None:
    assert classify(change(1.004, 1.006), floor=0.003) is Verdict.WORSE
    assert classify(change(1.004, 1.006), floor=0.005) is Verdict.SAME


def test_a_high_floor_widens_what_counts_as_the_same() -> None:
    assert classify(change(0.97, 1.03), floor=0.04) is Verdict.SAME


def test_a_floor_that_would_hide_anything_makes_nothing_the_same() -> None:
    assert classify(change(0.97, 1.03), floor=40.0) is Verdict.SAME
    assert classify(change(0.9, 1.1), floor=0.2) is Verdict.INCONCLUSIVE
    assert classify(change(0.026, 37.0), floor=42.0) is Verdict.INCONCLUSIVE
    assert classify(change(1.1, 1.15), floor=0.2, tolerance=0.2) is Verdict.SAME


def test_an_interval_that_carries_less_than_95_decides_nothing() -> None:
    assert classify(change(1.05, 1.10, confidence=0.94)) is Verdict.INCONCLUSIVE
    assert classify(change(0.999, 1.001, confidence=0.94)) is Verdict.INCONCLUSIVE


def test_one_round_below_the_fewest_decides_nothing_however_far_apart_and_the_fewest_decide() -> (
    None
):
    for rounds, verdict in (
        (FEWEST_ROUNDS - 1, Verdict.INCONCLUSIVE),
        (FEWEST_ROUNDS, Verdict.WORSE),
    ):
        ratio = paired_ratio(np.full(rounds, 3.0), np.ones(rounds))
        assert classify(ratio, floor=0.01) is verdict


def test_one_byte_more_is_worse_and_equal_bytes_are_the_same() -> None:
    assert classify(exact(1_000_001 / 1_000_000)) is Verdict.WORSE
    assert classify(exact(1.0)) is Verdict.SAME


def test_every_verdict_has_its_place_in_the_order() -> None:
    assert sorted(GRAVEST_FIRST) == sorted(Verdict)


@pytest.mark.parametrize(
    ("ratio", "written"),
    [(1.032, "+3.2%"), (0.5, "-50.0%"), (2.034, "×2.03"), (99.6, "×99.6"), (1234.0, "×1,234")],
)
def test_a_change_is_written_as_a_share_and_from_twice_on_as_a_factor(ratio, written) -> None:
    assert percent(ratio) == written
