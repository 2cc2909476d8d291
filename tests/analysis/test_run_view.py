"""A run looked up by cell: one answer for terminal and page, or the reason why there is none."""

from dataclasses import replace

import pytest
from builders import (
    block,
    cell,
    counted,
    environment,
    measured_block,
    refused_block,
    run,
    run_of,
    run_on_machines,
    skipped,
    started,
    timed,
)

from gradbench.analysis import checkpointing, dataframes
from gradbench.analysis.run_view import MEMORY, TIME, View
from gradbench.records import ranks
from gradbench.stats import estimates
from gradbench.stats.verdicts import Verdict

ON, OFF, NO_GRAD, INFERENCE = block()


def test_the_control_is_global_off_over_no_grad_whichever_cell_of_the_block_asks():
    view = View(run([timed(OFF, [102] * 12), timed(NO_GRAD, [100] * 12), timed(ON, [900] * 12)]))
    for member in block():
        assert view.control(member).point == pytest.approx(1.02)
        assert view.floor(member) == pytest.approx(0.02)


@pytest.mark.parametrize(
    "outcomes",
    [
        [timed(OFF, [1, 1])],
        [timed(OFF, [1, 1]), skipped(NO_GRAD)],
        [timed(OFF, [1, 1]), timed(cell("no_grad", batch_size=64), [1, 1])],
        [counted(OFF, 5), counted(NO_GRAD, 5)],
        [timed(cell(mode, entry="per_call"), [1, 1]) for mode in ("global_off", "no_grad")],
    ],
    ids=["one-side", "skipped", "another-block", "no-times", "entered-by-steps"],
)
def test_without_both_sides_there_is_no_control_and_the_floor_is_the_least(outcomes):
    view = View(run(outcomes))
    assert view.control(outcomes[0].cell) is None
    assert view.floor(outcomes[0].cell) == estimates.MIN_DETECTABLE_EFFECT


def test_changes_are_those_of_the_tables():
    whole = run([*measured_block(), *measured_block(batch_size=64, step_ns={"global_off": 1650})])
    view = View(whole)
    table = dataframes.changes(whole, reference="no_grad").set_index(
        ["batch_size", "grad_mode", "meter"]
    )
    for member in view.cells:
        for meter in (TIME, MEMORY):
            change = view.change(member, meter, "no_grad")
            key = (member.batch_size, member.grad_mode, meter)
            assert (key in table.index) == (change is not None)
            assert change is None or change.point == table.loc[key].ratio


def test_the_view_of_a_view_is_itself():
    view = View(run(measured_block()))
    assert View.of(view) is view
    assert View.of(view.run).cells == view.cells


def test_an_exact_figure_has_no_floor_and_bytes_that_are_not_have_the_least():
    rss = [counted(member, 4096, meter="peak_rss") for member in (ON, NO_GRAD)]
    rss = [
        type(r)(cell=r.cell, meter=r.meter, unit=r.unit, values=r.values, iterations=1, exact=False)
        for r in rss
    ]
    view = View(run([*measured_block(step_ns={"global_off": 1650}), *rss]))
    assert view.floor(ON, MEMORY) == 0
    assert view.floor(ON, "peak_rss") == estimates.MIN_DETECTABLE_EFFECT
    assert view.floor(ON, TIME) > 0.09


def test_verdicts_are_by_the_floor_of_the_block():
    view = View(run(measured_block(step_ns={"global_off": 1560, "inference_mode": 1450})))
    assert (
        view.verdict(INFERENCE, TIME, "no_grad") == Verdict.SAME
    )  # 3%, and the control is 4% from 1
    assert view.verdict(INFERENCE, TIME, "global_on") == Verdict.BETTER
    assert view.verdict(ON, TIME, "no_grad") == Verdict.WORSE
    assert view.verdict(NO_GRAD, TIME, "no_grad") is None


def test_rounds_that_do_not_pair_have_no_change():
    view = View(run([timed(ON, [1, 2, 3]), timed(NO_GRAD, [1, 2])]))
    assert view.change(NO_GRAD, TIME, "global_on") is None
    assert view.ratio(NO_GRAD, TIME, "global_on").number is None


def test_no_rounds_are_a_reason_and_no_number():
    view = View(run([timed(ON, []), timed(OFF, []), timed(NO_GRAD, [])]))
    assert view.value(ON, TIME).text == "no rounds"
    assert view.value(ON, TIME).number is None
    assert view.control(ON) is None
    assert view.throughput(ON).text == ""


def test_a_cell_has_stopped_only_when_nothing_of_it_was_read():
    rss = skipped(ON, meter="peak_rss", cause="unreadable", reason="no VmHWM")
    assert View(run([rss])).stopped(ON) is None
    assert View(run([rss, timed(ON, [1])])).stopped(ON) is None
    absent = skipped(ON, meter="compile_time", cause="not_applicable")
    assert View(run([rss, absent])).stopped(ON) is None
    assert View(run([rss, skipped(ON)])).stopped(ON).cause == "cannot_train"
    assert View(run(refused_block())).stopped(ON) is None  # another workload
    assert View(run([skipped(ON, meter=MEMORY), timed(ON, [1])])).stopped(ON) is None


@pytest.mark.parametrize("meter", [TIME, MEMORY, "latency", "peak_rss"])
def test_whatever_was_not_measured_says_so_and_what_was_not_asked_for_says_that(meter):
    read = timed(cell(batch_size=64), [1])
    for meters, words in (((TIME, meter), "not measured"), ((), "not asked for")):
        value = View(run_of([started([ON], meters=meters), environment(), read])).value(ON, meter)
        assert (value.text, value.kind, value.number) == (words, "reason", None)


def test_bytes_of_ranks_have_each_ones_and_their_sum_behind_the_largest():
    peak = replace(counted(ON, 3000), notes=ranks.notes_of([3000, 1000]))
    value = View(run([peak])).value(ON, MEMORY)
    assert value.number == 3000
    assert value.detail == "3,000 bytes; by rank: 3,000 B; 1,000 B; all ranks: 4,000 B"


def test_a_predicted_peak_is_held_against_the_rank_that_was_predicted():
    notes = ranks.notes_of([1000, 3000])
    peak = replace(counted(ON, 3000, meter="peak_allocated"), notes=notes)
    view = View(run([peak, counted(ON, 1000, meter="predicted_peak")]))
    assert view.prediction_errors == {ON: 0}


def test_the_tail_is_the_99th_percentile_of_single_calls():
    latency = timed(ON, list(range(100, 1100)))
    latency = type(latency)(
        cell=ON, meter="latency", unit="ns", values=latency.values, iterations=1, exact=False
    )
    tail = View(run([latency])).tail(ON)
    assert tail.number == pytest.approx(1089, abs=1)
    assert tail.detail.startswith("1,000 single calls: p50")


SIZES = {"a": (1, 2), "b": (4, 8)}
FLEET = run_on_machines(
    {
        host: [o for n in sizes for o in measured_block(batch_size=n)]
        for host, sizes in SIZES.items()
    },
    b={"cpu": "another CPU", "cores": 64},
)


def test_cells_are_grouped_by_kind_of_machine_and_of_one_machine_not_at_all():
    kinds = View(FLEET).kinds
    assert {kind: {c.batch_size for c in cells} for kind, cells in kinds.items()} == {
        "AVX2, some CPU, 2 cores": {1, 2},
        "AVX2, another CPU, 64 cores": {4, 8},
    }
    assert list(View(run(measured_block())).kinds) == [""]


def test_a_cell_is_on_the_machine_that_it_was_timed_on():
    view = View(FLEET)
    assert {view.machine(c) for c in view.cells if c.batch_size == 8} == {"b"}
    assert {View(run(measured_block())).machine(c) for c in block()} == {""}


def test_a_checkpointed_cell_is_held_against_a_plain_one_of_its_own_machine_only():
    plain = cell(workload="training")
    changed = replace(plain, checkpointing="blocks")
    for hosts, expected in ((("a", "a"), 2.0), (("a", "b"), None)):
        read = {}
        for host, one, step_ns in zip(hosts, (plain, changed), (100, 200), strict=True):
            read.setdefault(host, []).append(timed(one, [step_ns] * 12))
        view = View(run_on_machines(read))
        assert checkpointing.over(view, changed, plain, TIME) == expected
