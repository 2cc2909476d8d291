"""A run in sentences."""

from dataclasses import replace

import pytest
from builders import (
    block,
    cell,
    counted,
    ended,
    measured_block,
    refused_block,
    run,
    run_of,
    skipped,
    started,
)

from gradbench.analysis.closing_notes import closing_notes
from gradbench.analysis.compilations import made
from gradbench.analysis.run_sentences import (
    _ODDITIES as ODDITIES,
    fused_attention,
    kept,
    leaks,
    oddities,
    other_paths,
    predicted,
    prediction_marks,
    reasons,
    spent,
    tracebacks,
)
from gradbench.analysis.run_view import View
from gradbench.records.measurements import Measurement


def test_a_reason_is_reported_once_with_the_cells_it_holds_for():
    (sentence,) = reasons(run(refused_block("no grad_fn")[2:6]))
    assert sentence == (
        "cannot train: training[cpu-mlp_tiny-b8-global_off], training[cpu-mlp_tiny-b8-no_grad]: "
        "no grad_fn"
    )


def test_beyond_three_cells_the_rest_are_counted():
    (sentence,) = reasons(run(skipped(c, reason="x") for c in [*block(), *block(batch_size=1)]))
    assert sentence.count("inference[") == 3
    assert "inference[cpu-mlp_tiny-b8-no_grad] and 5 more: x" in sentence


def test_reasons_and_causes_that_differ_are_reported_apart_in_their_order():
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


def test_the_time_is_reported_by_phase_with_the_harness_s_share():
    words = spent(run_of([started([]), ended(timing=3.0, memory=5.0, harness=2.0)]))
    assert words == (
        "10.0 s: timing 3.0 s, memory 5.0 s, harness 2.0 s; gradbench's own overhead 20%, "
        "process starts included"
    )


@pytest.mark.parametrize(
    ("seconds", "share"),
    [({"timing": 0.0}, "0%"), ({"timing": 5.0}, "0%"), ({"harness": 5.0}, "100%")],
)
def test_the_share_is_of_what_there_is(seconds, share):
    assert f"own overhead {share}," in spent(run_of([started([]), ended(**seconds)]))


def test_a_run_that_did_not_end_says_so():
    assert spent(run_of([started([])])) == "the run did not come to its end"


def both_peaks(cell, *, predicted, measured):
    return [
        counted(cell, predicted, meter="predicted_peak"),
        counted(cell, measured, meter="peak_allocated"),
    ]


ON, OFF, NO_GRAD, INFERENCE = block()


def test_predictions_that_are_exact_are_counted():
    exact = [o for c in block() for o in both_peaks(c, predicted=800, measured=800)]
    assert predicted(run(exact)) == "peaks predicted from fake tensors: 4 of 4 to the byte"


@pytest.mark.parametrize(("off", "sign"), [(980, "-2.00%"), (1020, "+2.00%")])
def test_the_worst_prediction_is_named_with_its_sign_whichever_it_has(off, sign):
    found = [
        *both_peaks(ON, predicted=800, measured=800),
        *both_peaks(NO_GRAD, predicted=off, measured=1000),
        *both_peaks(INFERENCE, predicted=1010, measured=1000),
    ]
    assert predicted(run(found)) == (
        "peaks predicted from fake tensors: 1 of 3 to the byte, the largest error "
        f"{sign} (inference[cpu-mlp_tiny-b8-no_grad])"
    )


@pytest.mark.parametrize(
    "outcomes",
    [
        [],
        measured_block(),
        [counted(ON, 8, meter="peak_allocated")],
        both_peaks(ON, predicted=8, measured=0),
        [
            counted(ON, 8, meter="peak_allocated"),
            skipped(ON, meter="predicted_peak", cause="unreadable"),
        ],
    ],
    ids=["empty", "neither", "measured", "nothing", "unpredictable"],
)
def test_where_nothing_is_predicted_of_a_peak_there_is_no_word_of_predictions(outcomes):
    assert predicted(run(outcomes)) == ""


def test_a_prediction_beside_which_no_peak_was_measured_is_called_unchecked():
    alone = counted(ON, 8, meter="predicted_peak")
    words = "1 predicted and not checked, for none was measured beside them"
    assert predicted(run([alone])) == f"peaks: {words}"
    assert predicted(run([alone, counted(OFF, 8, meter="peak_allocated")])) == f"peaks: {words}"
    beside = both_peaks(OFF, predicted=8, measured=8)
    assert predicted(run([alone, *beside])) == (
        f"peaks predicted from fake tensors: 1 of 1 to the byte; {words}"
    )


def test_a_prediction_that_is_off_says_so_wherever_it_is_shown():
    found = [
        *both_peaks(ON, predicted=990, measured=1000),
        *both_peaks(OFF, predicted=660, measured=1000),
        *both_peaks(NO_GRAD, predicted=800, measured=800),
    ]
    (mark,) = prediction_marks(run(found))
    assert mark == f"predicted_peak differs from the measured peak: {OFF} -34.00%, {ON} -1.00%"
    assert mark in [note.text for note in closing_notes(run(found))]
    view = View(run(found))
    assert view.value(OFF, "predicted_peak").text.endswith(", error -34.00%")
    assert "error" not in view.value(NO_GRAD, "predicted_peak").text
    assert "error" not in view.value(OFF, "peak_allocated").text


MARKED = {"measured_at_batches": "2, 4", "why_measured": "aten::nonzero returns other sizes"}


def test_why_a_peak_was_measured_instead_of_predicted_is_said_wherever_it_is_shown():
    made = [
        replace(counted(one, 800, meter="predicted_peak"), notes=notes)
        for one, notes in ((ON, MARKED), (OFF, MARKED), (NO_GRAD, {}))
    ]
    words = "measured at batches 2 and 4, not predicted: aten::nonzero returns other sizes"
    (mark,) = prediction_marks(run(made))
    assert mark == f"predicted_peak of {ON}, {OFF}: {words}"
    assert mark in [note.text for note in closing_notes(run(made))]
    view = View(run(made))
    assert view.value(ON, "predicted_peak").detail == f"800 bytes; {words}"
    assert view.value(NO_GRAD, "predicted_peak").detail == "800 bytes"


def test_what_first_steps_keep_is_said_once_with_its_name_and_in_the_cells_detail():
    made = [
        replace(counted(ON, 64, meter="kept_after_first"), notes={"kept": "0 Net.table (64 B)"}),
        replace(counted(OFF, 64, meter="kept_after_first"), notes={"kept": "0 Net.table (64 B)"}),
        counted(NO_GRAD, 0, meter="kept_after_first"),
    ]
    (sentence,) = kept(run(made))
    assert sentence == f"kept: {ON}, {OFF}: 64 B stay after the first steps: 0 Net.table (64 B)"
    assert sentence in [note.text for note in closing_notes(run(made))]
    view = View(run(made))
    assert view.value(ON, "kept_after_first").detail == "64 bytes; 0 Net.table (64 B)"


def on_path(cell, meter, path):
    return replace(counted(cell, 8, meter=meter), notes={"fused_attention": path})


def test_figures_of_two_paths_of_attention_are_never_shown_without_saying_so():
    same = [on_path(ON, meter, "taken: 1 call of 1 layer") for meter in ("a", "b")]
    assert other_paths(run(same)) == []
    assert fused_attention(run(same)) == [f"fused attention of {ON}: taken: 1 call of 1 layer"]
    both = run([*same, on_path(ON, "peak_allocated", "not taken: autograd records")])
    (sentence,) = other_paths(both)
    assert sentence == (
        f"other path: in {ON}, a: fused attention taken: 1 call of 1 layer; "
        "but peak_allocated: fused attention not taken: autograd records"
    )
    texts = [note.text for note in closing_notes(both)]
    assert f"possible interference: {sentence}" in texts


def leaked(cell, nbytes, **notes):
    return Measurement(
        cell=cell,
        meter="leaked",
        unit="bytes",
        values=(nbytes,),
        iterations=1,
        exact=True,
        notes=notes,
    )


def test_each_leak_is_reported_with_its_cell_and_who_made_it():
    found = run([leaked(ON, 4096, kept="4,096 B a step made by aten::mean"), leaked(OFF, 0)])
    assert leaks(found) == [
        "leak: inference[cpu-mlp_tiny-b8-global_on] leaves 4,096 B behind each step: "
        "4,096 B a step made by aten::mean"
    ]


def test_a_leak_whose_makers_were_not_seen_says_so():
    (sentence,) = leaks(run([leaked(ON, 8)]))
    assert sentence.endswith("8 B behind each step: nobody was seen to make them")


def test_where_nothing_leaks_there_is_nothing_to_say_of_it():
    unread = skipped(NO_GRAD, meter="leaked", cause="unreadable")
    other = counted(INFERENCE, 8, meter="peak_transient")
    assert leaks(run([leaked(ON, 0), unread, other])) == []


def test_what_a_model_raised_is_said_once_however_often_it_was_called():
    def raised(number, line):
        words = f"ValueError: bad luck in call {number} of <Net at 0x{number:08x}>"
        frame = f'  File "nets.py", line {line}, in forward\n    raise ValueError(words)'
        why = skipped(cells[number % 2], cause="failed", reason=words)
        return replace(why, traceback=f"{frame}\n{words}")

    cells = block()
    of = run([raised(1, 7), raised(2, 7), raised(3, 9)])
    found = list(tracebacks(of))
    assert [traceback.splitlines()[0] for _, traceback in found] == [
        '  File "nets.py", line 7, in forward',
        '  File "nets.py", line 9, in forward',
    ]
    assert found[0][0].startswith(f"{cells[1]} and 1 more raised")
    assert not any("bad luck" in note.text for note in closing_notes(of))


def test_a_cell_without_a_traceback_is_noted_though_another_has_one_in_the_same_words():
    one, other, *_ = block()
    words = "RuntimeError: nothing requires grad"
    traced = replace(skipped(one, cause="failed", reason=words), traceback=f"  File\n{words}")
    texts = [
        note.text
        for note in closing_notes(run([traced, skipped(other, cause="failed", reason=words)]))
    ]
    assert f"failed: {other}: {words}" in texts


def test_a_failure_without_a_traceback_stays_among_the_notes():
    why = skipped(block()[0], cause="failed", reason="RuntimeError: shapes cannot be multiplied")
    assert any("shapes cannot be" in note.text for note in closing_notes(run([why])))


def test_what_a_reason_says_beside_its_traceback_stays_among_the_notes():
    words = "IndexError: index out of range in self"
    why = skipped(block()[0], cause="failed", reason=f"{words} (called with int64 [3, 2])")
    of = run([replace(why, traceback=f'  File "nets.py", line 7, in forward\n{words}')])
    assert any("called with int64 [3, 2]" in note.text for note in closing_notes(of))


@pytest.mark.parametrize("fact", ["words", True, 1, 12345.5, -1])
def test_a_note_of_whatever_type_a_file_gives_it_is_a_sentence(fact):
    for note in ODDITIES:
        noted = replace(counted(cell(), 1), notes={note: fact, "graphs": fact})
        (sentence,) = oddities(run([noted]))
        assert (f"{fact:,}" if type(fact) in (int, float) else str(fact)) in sentence
        assert made(noted.notes)
