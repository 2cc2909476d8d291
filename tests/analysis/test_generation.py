"""Making tokens, read from a run: settings by mode, and growth that ends or stays."""

from dataclasses import replace

import pytest
from builders import block, broken_down, measured_block, run, run_of, sequence

from gradbench.analysis.generation import by_token, growth, settings
from gradbench.analysis.run_view import View
from gradbench.experiment.matrix import GRAD_MODES, OF_TOKENS

(ONE, *_) = block(workload="generate", new_tokens=4)


def test_after_each_token_but_the_last_is_what_its_phase_ends_with():
    tokens = by_token(sequence(ONE, tokens=4, token=7))
    assert [parts["cache"] for parts in tokens] == [7, 14, 21]
    assert [parts["other"] for parts in tokens] == [5, 5, 5]


def test_growth_is_what_a_token_adds_by_what_it_is_for():
    found = growth(sequence(ONE, tokens=5, token=7, saved=30))
    assert (found.cache_bytes, found.saved_bytes, found.token_bytes) == (7, 30, 37)
    assert found.left_bytes == 0


def test_what_is_alive_after_the_sequence_is_left():
    assert growth(sequence(ONE, left=64)).left_bytes == 64


def test_of_a_sequence_of_three_tokens_no_growth_is_known():
    assert growth(sequence(ONE, tokens=3)) is None
    assert growth(broken_down(ONE)) is None


def test_a_cache_that_is_made_anew_with_each_token_lies_beside_the_old_one_at_the_peak():
    whole = sequence(ONE, tokens=6, token=10)
    twice = replace(whole, parts={**whole.parts, "cache": 110})
    ((_, [making]),) = settings(View(run([twice])))
    assert (making.cache_bytes, making.cache_at_peak_bytes) == (50, 110)


@pytest.mark.parametrize(
    ("cache", "adds"),
    [
        ((90, 91, 16, 16, 16, 0), 0),  # a prompt that was kept whole until the window slid
        ((90, 91, 16, 17, 18, 0), 1),
        ((3, 4, 2, 4, 2, 0), -1),  # it falls time and again: all of it counts
        ((90, 91, 92, 16, 0), -37.5),  # what follows the fall is not known
    ],
)
def test_what_a_token_adds_to_a_sliding_cache_is_read_after_it_let_go_of_the_prompt(cache, adds):
    whole = sequence(ONE, tokens=len(cache))
    timeline = {**whole.timeline, "cache": (0, *cache, 0)}
    assert growth(replace(whole, timeline=timeline)).cache_bytes == pytest.approx(adds, abs=0.5)


def test_a_setting_has_its_workloads_side_by_side_in_every_mode():
    timed = [o for w in OF_TOKENS for o in measured_block(workload=w, new_tokens=4)]
    others = measured_block(workload="inference")
    whole = run([*timed, *others])
    more = [sequence(c) for c in block(workload="generate", new_tokens=4)]
    found = dict(settings(View(run_of([*whole.records, *more]))))
    (makings,) = found.values()
    assert [making.mode for making in makings] == list(GRAD_MODES)
    assert {tuple(making.cells) for making in makings} == {OF_TOKENS}
    assert {making.cache_bytes for making in makings} == {30}  # the last decode finds three tokens
    assert {making.cache_at_peak_bytes for making in makings} == {None}  # one more is no surprise
    assert all(making.growth.cache_bytes == 10 for making in makings)


def test_a_run_without_tokens_has_no_settings():
    assert list(settings(View(run(measured_block())))) == []
