"""A run in sentences."""

import pytest
from builders import (
    block,
    cell,
    ended,
    measured_block,
    refused_block,
    run,
    run_of,
    skipped,
    started,
)

from gradbench.words import reasons, spent


def test_a_reason_is_said_once_with_the_cells_it_holds_for():
    (sentence,) = reasons(run(refused_block("no grad_fn")[2:6]))
    assert sentence == (
        "cannot train: training[cpu-mlp_tiny-b8-global_off], training[cpu-mlp_tiny-b8-no_grad]: "
        "no grad_fn"
    )


def test_beyond_three_cells_the_rest_are_counted():
    (sentence,) = reasons(run(skipped(c, reason="x") for c in [*block(), *block(batch_size=1)]))
    assert sentence.count("inference[") == 3
    assert "inference[cpu-mlp_tiny-b8-no_grad] and 5 more: x" in sentence


def test_reasons_and_causes_that_differ_are_said_apart_in_their_order():
    said = list(
        reasons(
            run(
                [
                    skipped(cell(), cause="out_of_memory", reason="x"),
                    skipped(cell("no_grad"), cause="failed", reason="x"),
                    skipped(cell(), meter="peak_rss", cause="failed", reason="y"),
                ]
            )
        )
    )
    assert [s.split(": ")[0] for s in said] == ["out of memory", "failed", "failed"]
    assert [s.split(": ")[-1] for s in said] == ["x", "x", "y"]


@pytest.mark.parametrize(
    "outcomes",
    [[], measured_block(), [skipped(cell(), meter="peak_reserved", cause="unreadable")]],
    ids=["empty", "measured", "unreadable"],
)
def test_where_nothing_was_refused_there_is_nothing_to_say(outcomes):
    assert list(reasons(run(outcomes))) == []


def test_the_time_is_said_by_phase_with_the_harness_s_share():
    words = spent(run_of([started([]), ended(timing=3.0, memory=5.0, harness=2.0)]))
    assert words == (
        "10.0 s: timing 3.0 s, memory 5.0 s, harness 2.0 s; the harness's own share 20%, "
        "process starts included"
    )


@pytest.mark.parametrize(
    ("seconds", "share"),
    [({"timing": 0.0}, "0%"), ({"timing": 5.0}, "0%"), ({"harness": 5.0}, "100%")],
)
def test_the_share_is_of_what_there_is(seconds, share):
    assert f"own share {share}," in spent(run_of([started([]), ended(**seconds)]))


def test_a_run_that_did_not_end_says_so():
    assert spent(run_of([started([])])) == "the run did not come to its end"
