"""Verdicts follow from where the whole interval lies."""

import pytest

from gradbench.stats.estimates import Estimate, exact
from gradbench.stats.verdicts import Verdict, classify


def change(low: float, high: float) -> Estimate:
    return Estimate(point=(low + high) / 2, low=low, high=high, confidence=0.95, rounds=30)


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


def test_more_throughput_is_better() -> None:
    assert classify(change(1.05, 1.10), higher_is_better=True) is Verdict.BETTER
    assert classify(change(0.90, 0.95), higher_is_better=True) is Verdict.WORSE


def test_one_byte_more_is_worse_and_equal_bytes_are_the_same() -> None:
    assert classify(exact(1_000_001 / 1_000_000)) is Verdict.WORSE
    assert classify(exact(1.0)) is Verdict.SAME
