"""A study's advice: which mode it names, what it says that saves, and when it says nothing does."""

import json
from dataclasses import replace
from io import StringIO

import pytest
from builders import block, cell, counted, run, skipped, timed
from rich.console import Console

from gradbench import Measurement
from gradbench.analysis.advice import ALIKE, Advice, as_plain, less
from gradbench.records.advice import Finding, LargestBatch, Study, Trial, Turns
from gradbench.records.predictions import Fit
from gradbench.report.advice import advice_html
from gradbench.terminal.advice_screen import advice_screen

BLOCK = block(batch_size=8)


def rounds(step_ns, *, spread=0.0, count=12):
    """Return rounds around a step's time; ``spread`` makes every other one slower."""
    return [round(step_ns * (1 + spread * (number % 2))) for number in range(count)]


def study(
    step_ns, *, nbytes=(4096, 1024, 1024, 1024), spread=0.0, differences=(0, 0, 0, 0), **fields
):
    """Return a study of a block whose modes take so long, in the order of the block."""
    outcomes = []
    for member, ns, size, apart in zip(BLOCK, step_ns, nbytes, differences, strict=True):
        noise = spread if member.grad_mode == "inference_mode" else 0.0
        outcomes += [
            timed(member, rounds(ns, spread=noise)),
            counted(member, size),
            counted(member, size * 2, meter="peak_allocated"),
            counted(member, size - 1024, meter="saved_for_backward"),
            Measurement(
                cell=member,
                meter="output_difference",
                unit="ppt",
                values=(apart,),
                iterations=1,
                exact=True,
                notes={"absolute": apart / 1e12, "relative": apart / 1e12} if apart else {},
            ),
        ]
    return Study(**{"run": run(outcomes), "cells": tuple(BLOCK)} | fields)


def test_the_faster_mode_is_advised_with_its_ratio_and_what_forgetting_costs():
    advice = Advice(study([2000, 1000, 1000, 900]))
    assert advice.modes == ("inference_mode",)
    assert advice.answer() == [
        "Use `inference_mode` for inference here: against `no_grad`, 10% less time "
        "(0.900 [0.900, 0.900]) and the same memory.",
        "Against forgetting it (`global_on`), 55% less time (0.450 [0.450, 0.450]) and a step "
        "adds 1 KiB instead of 4 KiB.",
    ]


def test_where_no_grad_is_faster_it_is_advised():
    assert Advice(study([2000, 900, 900, 1000])).modes == ("no_grad",)


def test_modes_that_nothing_tells_apart_are_both_advised():
    advice = Advice(study([2000, 1000, 1000, 1000]))
    assert advice.modes == ("inference_mode", "no_grad")
    assert advice.answer()[0] == (
        "Use `no_grad` or `inference_mode` for inference here: no measurable difference between "
        "them in time (1.000 [1.000, 1.000]), none in memory."
    )


def test_an_undecided_time_is_not_called_the_same():
    advice = Advice(study([2000, 1000, 1000, 960], spread=0.1))
    assert "no difference is sure between them in time" in advice.answer()[0]
    assert "noise floor" not in advice.answer()[0]  # the interval itself holds 1


def test_a_difference_that_the_noise_floor_hides_is_said_to_be_hidden_by_it():
    """global_off and no_grad are one construct: that they lie 4% apart is noise."""
    times, ratio = [2000, 1040, 1000, 920], "0.947 [0.920, 0.975]"
    hidden = "beyond the noise floor of ±4%"
    assert Advice(study(times, spread=0.06)).answer()[0] == (
        "Use `no_grad` or `inference_mode` for inference here: no difference between them in time "
        f"is {hidden} ({ratio}), none in memory."
    )
    (answer,) = Advice(study([1000, *times[1:]], nbytes=(1024,) * 4, spread=0.06)).answer()
    assert answer == (
        f"No difference between the modes is {hidden} here: `inference_mode` takes {ratio} times "
        "the time, and the same memory."
    )


def test_the_same_time_is_decided_by_memory():
    advice = Advice(study([2000, 1000, 1000, 1000], nbytes=(4096, 2048, 2048, 1024)))
    assert advice.modes == ("inference_mode",)
    assert "a step adds 1 KiB instead of 2 KiB" in advice.answer()[0]


def test_where_nothing_is_saved_that_is_the_answer():
    advice = Advice(study([1000] * 4, nbytes=(1024,) * 4))
    assert not advice.saves
    assert advice.answer() == [
        "There is no measurable difference between the modes here: `inference_mode` takes "
        "1.000 [1.000, 1.000] times the time, and the same memory."
    ]
    assert not any(row.advised for row in advice.rows())


def test_a_study_without_a_number_says_why():
    lost = run([skipped(one, cause="failed", reason="ValueError: no") for one in BLOCK])
    advice = Advice(Study(run=lost, cells=tuple(BLOCK)))
    assert advice.modes == ()
    assert advice.answer() == ["No mode could be measured: ValueError: no."]


def printed(advice):
    screen = StringIO()
    Console(file=screen, width=80).print(advice_screen(advice))
    return screen.getvalue()


def test_where_nothing_was_measured_no_figure_and_no_praise_is_shown():
    advice = Advice(Study(run=run([skipped(one) for one in BLOCK]), cells=tuple(BLOCK)))
    for shown in (printed(advice), str(advice_html(advice))):
        assert "noise floor" not in shown
        assert "nothing that would cost or break" not in shown
    assert as_plain(advice)["noise_floor"] is None
    measured = str(advice_html(Advice(study([2000, 1000, 1000, 900]))))
    assert "noise floor" in measured
    assert "nothing that would cost or break" in measured


def test_outputs_that_differ_are_said_with_the_mode_and_how_far():
    same = Advice(study([2000, 1000, 1000, 900]))
    assert same.outputs() == "the same to the bit in all modes"
    apart = Advice(study([2000, 1000, 1000, 900], differences=(0, 0, 0, 1_200_000)))
    assert apart.outputs() == (
        "inference_mode differs from global_on by up to 1.2e-06 absolute, 1.2e-06 relative"
    )


def test_an_answer_is_sure_from_the_round_on_that_never_changes_it():
    clear = Advice(study([2000, 1000, 1000, 900]))
    sure = clear.sure()
    assert (sure.rounds, sure.seconds) == (6, pytest.approx(6 * 4900 / 1e9))
    assert clear.when_sure() == "after 29.4 µs of timing (6 rounds)"
    for shown in (printed(clear), str(advice_html(clear))):
        assert clear.when_sure() in shown
    late = [1100, 900] * 12 + [400] * 60  # undecided at first, then much faster
    outcomes = []
    for member in BLOCK:
        fast = member.grad_mode == "inference_mode"
        outcomes += [timed(member, late if fast else [1000] * 84), counted(member, 64)]
    sure = Advice(Study(run=run(outcomes), cells=tuple(BLOCK))).sure()
    assert 24 < sure.rounds < 84
    undecided = Advice(study([1000, 1000, 1000, 960], spread=0.1, nbytes=(64,) * 4))
    assert undecided.sure() is None
    assert undecided.when_sure().startswith("not yet, after ")


def test_a_trial_is_held_against_the_plain_step_in_the_same_mode():
    tried = cell("inference_mode", memory_format="channels_last")
    plain = study([2000, 1000, 1000, 1000])
    added = Advice(plain)._bytes("inference_mode")
    turns = Turns(plain_ns=(1000.0,) * 12, changed_ns=(500.0,) * 12)
    fits = tuple(Fit(replace(tried, workload="training"), 100, size, 90, 110) for size in (7, 21))
    trials = (
        Trial(name="channels_last", cell=tried, turns=turns, adds_bytes=int(added // 2)),
        Trial(name="bfloat16 autocast", cell=tried, fails="RuntimeError: no kernel"),
        Trial(name="torch.compile", not_tried="it takes long"),
        Trial(name="checkpointing", fits=fits),
    )
    gained, failed, untried, roomy = Advice(replace(plain, trials=trials)).gains()
    assert gained.words == (
        "50% less time (0.500 [0.500, 0.500]), 0.500 of the memory that a step adds"
    )
    assert failed.words == "does not run: RuntimeError: no kernel"
    assert untried.words == "not tried: it takes long"
    assert roomy.words == (
        "training fits 21 samples instead of 7, 3.000 times as many; its time was not tried"
    )


def test_a_trial_that_makes_room_for_no_more_samples_is_no_gain():
    tried = cell("inference_mode", workload="training")
    fits = tuple(Fit(tried, 100, size, 90, 110) for size in (21, 19))
    shown = replace(study([1000] * 4), trials=(Trial(name="checkpointing", fits=fits),))
    (gain,) = Advice(shown).gains()
    assert gain.words == "no more samples fit: 19, and 21 without it"


def test_a_trial_within_the_noise_floor_is_said_to_be_no_difference_beyond_it():
    noisy = study([2000, 1500, 1000, 1000], spread=0.4)
    assert Advice(noisy).floor() > 0.1
    turns = Turns(plain_ns=(1000.0,) * 12, changed_ns=(950.0,) * 12)
    trial = Trial(name="channels_last", cell=BLOCK[-1], turns=turns)
    (gain,) = Advice(replace(noisy, trials=(trial,))).gains()
    assert gain.words.startswith("no difference in time beyond the noise floor of ±")
    assert gain.words.endswith(" (0.950 [0.950, 0.950])")


def test_what_a_run_shows_of_a_model_is_among_the_findings():
    grown = study([2000, 1000, 1000, 1000])
    outcomes = [*grown.run.outcomes, counted(BLOCK[0], 64, meter="leaked")]
    found = Advice(
        replace(grown, run=run(outcomes), findings=(Finding(what="first", cure="none"),))
    ).findings()
    assert found[0].what == "first"
    assert found[1].what.startswith("leak: ")
    assert found[1].cure


def test_everything_shown_is_in_the_json():
    one = replace(BLOCK[0], batch_size=1)
    batches = (
        LargestBatch(purpose="training", cell=one, fit=Fit(one, 100, 7, 90, 110)),
        LargestBatch(purpose="inference", cell=one, reason="its step depends on data"),
    )
    plain = as_plain(Advice(study([2000, 1000, 1000, 900], batches=batches, memory_bytes=100)))
    again = json.loads(json.dumps(plain))
    assert again["use"] == ["inference_mode"]
    assert again["modes"]["no_grad"]["ratio"] == pytest.approx([0.5, 0.5, 0.5])
    assert again["modes"]["no_grad"]["verdict"] == "better"
    assert again["inference_mode_over_no_grad"] == pytest.approx([0.9, 0.9, 0.9])
    assert again["largest_batch"] == {"training": 7, "inference": "its step depends on data"}


def test_a_batch_at_which_the_search_ended_is_not_called_the_largest_and_has_no_ratio():
    one = replace(BLOCK[0], batch_size=1)
    batches = (
        LargestBatch(
            purpose="inference",
            cell=replace(one, grad_mode="no_grad"),
            fit=Fit(one, 100, 2**24, 90, None),
        ),
        LargestBatch(purpose="grad on", cell=one, fit=Fit(one, 100, 3_000, 90, 110)),
    )
    advice = Advice(study([2000, 1000, 1000, 900], batches=batches, memory_bytes=100))
    found = [(batch.fit.size, ratio) for batch, ratio in advice.batches()]
    assert found == [("16,777,216 or more", None), ("3,000", 1)]


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ([(2, 4), (2, 4)], ["measured at batches 2 and 4"]),
        ([(), (2, 4)], ["training: measured at batches 2 and 4"]),
        ([(2, 4), (3, 6)], ["a: measured at batches 2 and 4", "training: measured at batches 3"]),
        ([(), ()], []),
    ],
)
def test_what_was_measured_instead_of_predicted_is_a_line_beneath_the_batches(measured, words):
    one = replace(BLOCK[0], batch_size=1)
    batches = tuple(
        LargestBatch(purpose=purpose, cell=one, fit=Fit(one, 100, 7, 90, 110, measured_at=at))
        for purpose, at in zip(("a", "training"), measured, strict=True)
    )
    advice = Advice(study([2000, 1000, 1000, 900], batches=batches, memory_bytes=100))
    lines = [line.strip() for line in printed(advice).splitlines() if "measured at" in line]
    assert len(lines) == len(words)
    assert all(line.startswith(said) for line, said in zip(lines, words, strict=True))


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.7, "30% less"), (1.2, "20% more"), (2.4, "2.4 times the")]
)
def test_no_saving_is_said_in_more_than_a_hundred_percent(ratio, words):
    assert less(ratio) == words


def test_a_reason_that_keeps_several_batches_from_being_found_is_said_once():
    one = replace(BLOCK[0], batch_size=1)
    reason = "its step fails: ValueError: no"
    batches = tuple(
        LargestBatch(purpose=purpose, cell=one, reason=reason) for purpose in ("a", "b", "c")
    )
    advice = Advice(study([2000, 1000, 1000, 900], batches=batches, memory_bytes=100))
    assert [batch.reason for batch, _ in advice.batches()] == [reason, ALIKE, ALIKE]
    assert as_plain(advice)["largest_batch"] == dict.fromkeys("abc", reason)


def test_where_memory_ends_no_search_a_change_of_memory_is_not_praised():
    trained = replace(BLOCK[0], workload="training", batch_size=1)
    endless = Fit(trained, 2**40, 2**24, 90, None)
    trial = Trial(name="checkpointing", fits=(endless, endless))
    (gain,) = Advice(replace(study([2000, 1000, 1000, 900]), trials=(trial,))).gains()
    assert gain.words == (
        "training fits 16,777,216 or more samples, and 16,777,216 or more without it: "
        "memory is no limit here"
    )
