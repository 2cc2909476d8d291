"""The answer in a sentence: its verbs agree with how many modes it is about."""

import pytest
from builders import cell, run, timed

from gradbench.analysis.headline import answer


@pytest.mark.parametrize(
    ("modes", "words"),
    [
        (["global_on", "no_grad"], "`no_grad` takes "),
        (["global_on", "no_grad", "inference_mode"], "`no_grad` and `inference_mode` take "),
    ],
)
def test_one_mode_takes_and_two_take(modes, words):
    cells = [cell(grad_mode=mode) for mode in modes]
    times = [1000 if mode == "global_on" else 500 for mode in modes]
    outcomes = [timed(one, [ns] * 8) for one, ns in zip(cells, times, strict=True)]
    assert words in answer(run(outcomes))[0]
