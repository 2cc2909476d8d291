"""What stands beneath predictions: each reason once, with its blocks, and a traceback instead."""

from builders import block, cell

from gradbench.analysis.prediction_notes import Note, notes, tracebacks
from gradbench.records.allocations import PeakBreakdown
from gradbench.records.measurements import PARTS
from gradbench.records.predictions import Fit, NoPrediction, Prediction

BREAKDOWN = PeakBreakdown(dict.fromkeys(PARTS, 0), "forward", {}, {}, (), ())


def predicted(one, **fields):
    return Prediction(one, BREAKDOWN, 0, **{"unprobed": (), "seconds": 0.1} | fields)


def said(found):
    return list(notes(found))


def test_a_reason_stands_once_with_the_blocks_and_the_modes_that_it_holds_for():
    whole, part = block(model="a"), block(model="b")
    reason, other = NoPrediction("its step [fails] at 0x7f12"), NoPrediction("another")
    found = dict.fromkeys(whole, reason)
    found |= dict(zip(part, [predicted(part[0]), other, reason, predicted(part[3])], strict=True))
    assert said(found)[-2:] == [
        Note(
            "inference[cpu-a-b8], inference[cpu-b-b8] no_grad: its step [fails] at 0x7f12", "none"
        ),
        Note("inference[cpu-b-b8] global_off: another", "none"),
    ]


def test_reasons_that_differ_in_a_number_alone_are_one():
    found = {
        cell(model=name): predicted(cell(model=name), measured_at=(4,), why_measured=f"b <= {b}")
        for name, b in (("a", 17), ("b", 18))
    }
    batches = predicted(cell(model="c"), measured_at=(2, 4), why_measured="b <= 19")
    assert said(found | {batches.cell: batches}) == [
        Note("inference[cpu-a-b8], inference[cpu-b-b8]: measured at batch 4: b <= 17", "doubt"),
        Note("inference[cpu-c-b8]: measured at batches 2 and 4: b <= 19", "doubt"),
    ]


def test_what_a_traceback_says_is_not_said_again_and_what_it_lacks_is():
    frames = '  File "nets.py", line 3, in forward\nValueError: no'
    alone = NoPrediction("its step fails: ValueError: no", frames)
    more = NoPrediction("it looks at numbers; nor could it be measured: ValueError: no", frames)
    first, second = cell(model="a"), cell(model="b")
    found = {first: alone, second: more}
    assert said(found) == [Note(f"inference[cpu-b-b8]: {more.reason}", "none")]
    ((line, shown),) = tracebacks(found)
    assert shown == frames
    assert line == ("inference[cpu-a-b8] and 1 more raised, from the model's own first line on:")


def test_fits_are_named_without_the_batch_that_they_look_for():
    one, other = cell(batch_size=1), cell("no_grad", batch_size=1)
    found = {one: Fit(one, 100, 7, 90, 110, checked_at=2), other: NoPrediction("no")}
    assert said(found) == [
        Note("checked by measured steps at batch 2: equal to the byte", "proof"),
        Note("inference[cpu-mlp_tiny] no_grad: no", "none"),
    ]


def test_operators_that_are_not_counted_are_named_with_the_models_that_have_them():
    a, b, c = (cell(model=name) for name in "abc")
    found = {
        a: predicted(a, unprobed=("aten::mm",)),
        b: predicted(b, unprobed=("aten::mm", "aten::addmm"), run_otherwise=("aten::bernoulli",)),
        c: NoPrediction("no"),
    }
    assert [note.text for note in said(found) if note.kind == "doubt"] == [
        "not counted, what these need inside: aten::addmm (b), aten::mm",
        "the device has other operators for aten::bernoulli (b): where it is present, its own are "
        "predicted",
    ]
