"""What stands on the page: the answer, the commands, what fits, what changed, small drawings."""

import json
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
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
    run_on_a_machine,
    run_on_machines,
    skipped,
    started,
    timed,
    write_run,
)
from matplotlib.figure import Figure
from typer.testing import CliRunner

from gradbench import Report
from gradbench.analysis import commands, headline
from gradbench.analysis.run_view import MEMORY, TIME, View
from gradbench.cli import app
from gradbench.experiment.matrix import by_block
from gradbench.experiment.model_source import ModelSource
from gradbench.experiment.presets import PRESETS
from gradbench.experiment.toml_config import choose
from gradbench.gate.rules import Override, Rules
from gradbench.memory import batch_fit
from gradbench.report import (
    answer,
    capacity,
    cell_table,
    run_differences,
    sparklines,
    svg,
)
from gradbench.report.figures.scaling import families as scaling_families
from gradbench.stats.verdicts import Verdict

TEMPLATES = sorted(Path(svg.__file__).parent.joinpath("templates").glob("*.j2"))
ON, OFF, NO_GRAD, INFERENCE = block()
NORMAL = run([*measured_block(), *measured_block(batch_size=64), *refused_block()])


# --- the answer


def test_the_answer_is_computed_from_inference_blocks():
    costs, between = answer(NORMAL)
    assert costs == (
        "On cpu, `no_grad` and `inference_mode` cut the memory that an inference step adds by a "
        "factor of 4 and take 25 to 50% less time (4 better of 4 comparisons)."
    )
    assert between == "Between the two, `inference_mode` is faster in 2 of 2 blocks, by 33.3%."


def test_the_answer_does_not_call_noise_a_difference():
    same = {"global_on": 1000, "global_off": 1100, "no_grad": 1000, "inference_mode": 1005}
    costs, between = answer(run(measured_block(step_ns=same)))
    assert "show no difference in its time beyond the noise floor" in costs
    assert between == (
        "Between the two no difference in time shows beyond the noise floor of the inference "
        "block, ±10% at most."
    )


def test_a_run_and_its_report_show_themselves_in_a_line_where_no_page_can_be():
    whole = run(measured_block())
    assert repr(whole) == f"<Run {whole.name}: 11 records, complete>"
    shown = repr(Report(whole))
    assert shown.startswith(f"{whole.name}: On cpu, no_grad and inference_mode cut the memory")
    assert "\n" not in shown


def test_a_cell_that_a_run_did_not_come_to_has_no_figures():
    read, failed, later = block()[:3]
    begun = started([read, failed, later])
    cut = run_of([begun, environment(), timed(read, [5]), skipped(failed)], sealed=False)
    assert headline.missing(cut) == {"cannot_train": 1, "not_measured": 1}


def test_the_answer_names_whose_time_it_is_where_no_memory_was_measured():
    outcomes = [one for one in measured_block() if one.meter == "step_time"]
    equal = [replace(one, values=(1000,) * 12) for one in outcomes]
    words = "show no difference in the time of an inference step beyond the noise floor"
    assert words in answer(run(equal))[0]


def test_the_answer_has_both_signs_where_a_mode_is_slower():
    slower = {"global_off": 3000, "no_grad": 3000}
    mixed = [*measured_block(), *measured_block(batch_size=64, step_ns=slower)]
    assert "change its time by −50% to +50% (" in answer(run(mixed))[0]


def test_the_answer_says_where_no_inference_was_measured_for_it():
    reenabled = run(measured_block(workload="training_reenabled"))
    assert answer(reenabled) == [
        "No inference was measured, which this answer is about; see the other workloads."
    ]


def test_the_answer_is_by_device_and_names_the_machine():
    both = [*measured_block(), *measured_block(device="cuda")]
    facts = environment(cpu="EPYC", gpu="H100")
    said = answer(run_of([started(block()), facts, *both, *[started(o.cell for o in both)]]))
    assert said[0].startswith("On cpu (EPYC), ")
    said = answer(run_of([started({o.cell: 0 for o in both}), facts, *both]))
    assert [s.split(", ")[0] for s in said if s.startswith("On ")] == [
        "On cpu (EPYC)",
        "On cuda (H100)",
    ]


def test_a_mode_that_adds_no_byte_is_no_error():
    assert "to 0.000 of `global_on`'s" in answer(run([counted(ON, 64), counted(NO_GRAD, 0)]))[0]


def test_the_results_of_other_workloads_stand_aside():
    again = measured_block(workload="training_reenabled", step_ns={"global_off": 2000})
    said = headline.asides(run([*refused_block(), *again]))
    assert said[0].startswith("Training inside `global_on`, `global_off`, `no_grad`, `inference_")
    span = "takes 0.500 to 1.000 times as long as under `global_on`"
    assert f"{span}: 1 better, 1 same, 1 inconclusive of 3" in said[1]


def test_verdicts_are_counted_by_mode():
    strips = headline.strips(View(NORMAL), TIME, "no_grad")
    counts = {s.mode: {v: n for v, n in s.counts.items() if n} for s in strips}
    assert counts == {
        "global_on": {Verdict.WORSE: 2},
        "global_off": {Verdict.SAME: 2},
        "inference_mode": {Verdict.BETTER: 2},
    }


def test_the_noise_floor_is_the_controls():
    off = measured_block(batch_size=64, step_ns={"global_off": 1650})
    found = headline.noise(View(run([*measured_block(), *off])))
    assert (found.blocks, found.held) == (2, 1)
    assert found.largest == pytest.approx(0.1, abs=1e-3)
    assert headline.noise(View(run(measured_block(["no_grad"])))) is None


# --- commands


def selected(command):
    """Return the cells and the plan that a ``gradbench run`` command asks for."""
    words = shlex.split(command)
    assert words[:2] == ["gradbench", "run"]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    plan = {"--budget": "budget_s", "--limit": "limit_s", "--seed": "seed"}
    axes = {
        name.removeprefix("--").replace("-", "_"): value.split(",")
        for name, value in given.items()
        if name not in (*plan, "--meter", "--input")
    }
    planned = {plan[name]: json.loads(value) for name, value in given.items() if name in plan}
    return choose(selections=axes, plan=planned)


def test_the_command_of_a_block_asks_for_just_that_block_and_plan():
    full = [*PRESETS["quick"], *list(PRESETS["full"])[::37]]
    full += block(
        device="cuda:1",
        dtype="bfloat16",
        threads=2,
        memory_format="channels_last",
        compile="default",
    )
    full += block(entry="per_call", malloc="system", l2="cold", optimizer="adamw")
    for design in by_block(full).values():
        first = started(design, plan={"budget_s": 2.5, "seed": 3, "precision_short": 0.1})
        choice = selected(commands.again(design[0], first))
        assert set(choice.cells) == set(design)
        assert (choice.plan.budget_s, choice.plan.seed) == (2.5, 3)


def test_a_model_of_the_user_s_comes_with_its_input():
    source = ModelSource(build="nets:make", input=("B,3,8,8",), head="last")
    own = started(block(model="nets.make", batch_size=4), sources={"nets.make": source}, plan={})
    command = commands.again(own.cells[0], own)
    assert "--model nets:make" in command
    assert "--input B,3,8,8" in command
    assert "--batch-size 4" in command
    assert "--head last" in command


def test_a_model_that_was_given_in_python_has_no_command():
    assert commands.again(cell(model="mine"), started(block(model="mine"))) is None


def test_a_hostile_model_name_is_one_word_of_the_command():
    name = "a; rm -rf /:$(x) '"
    own = started(block(model=name), sources={name: ModelSource(build=name, input=("B,3",))})
    words = shlex.split(commands.again(own.cells[0], own))
    assert f"{name}={name}" in words


@pytest.mark.parametrize("preset", PRESETS)
def test_pytest_s_command_names_a_test_of_the_preset_that_holds_the_cell(preset):
    for member in list(PRESETS[preset])[::29]:
        words = shlex.split(commands.through_pytest(member))
        held = next((w.partition("=")[2] for w in words if "preset=" in w), "quick")
        assert member in list(PRESETS[held])
        assert words[-1].endswith(f"test_{member.workload}[{member.id}]")
    assert commands.through_pytest(cell(model="mine")) is None


@pytest.mark.slow
def test_pytest_s_command_is_collected(pytester_root, request):
    command = commands.through_pytest(next(iter(PRESETS["tiny"])))
    found = pytester_root(*shlex.split(command)[1:])
    assert "1 test collected" in found


@pytest.fixture
def pytester_root():
    """Return a function that collects what a pytest command line names, and its words."""
    import subprocess
    import sys
    from pathlib import Path

    def collect(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    return collect


# --- what stands behind a cell


def test_outliers_are_those_above_tukey_s_fence():
    (drawer,) = cell_table.drawers(
        View(run([timed(ON, [100, 101, 102, 103] * 5 + [500], iterations=3)]))
    )
    facts = drawer.cells[0].facts
    assert facts["rounds"] == "21"
    assert facts["iterations a round"] == "3"
    assert facts["outliers"].startswith("1 (4.8%)")


def test_changing_iterations_are_reported_as_a_span():
    measured = timed(ON, [10, 20], iterations=(1, 2))
    (drawer,) = cell_table.drawers(View(run([measured])))
    assert drawer.cells[0].facts["iterations a round"] == "1 to 2"


def test_a_cell_that_stopped_says_why_once_and_two_reasons_both():
    (drawer,) = cell_table.drawers(View(run(refused_block())))
    assert [r.meter for r in drawer.cells[0].readings] == ["every meter"]
    two = [skipped(ON), skipped(ON, meter=MEMORY, cause="crashed", reason="signal 11")]
    (drawer,) = cell_table.drawers(View(run(two)))
    assert [r.value.text for r in drawer.cells[0].readings] == ["cannot train", "crashed"]


@pytest.mark.parametrize("count", [1, 2, 59, 60, 61, 4000])
def test_rounds_are_drawn_in_order_by_so_many_points_as_fit(count):
    drawn = sparklines.in_order(np.arange(1.0, count + 1), mode="no_grad", unit="ns", label="a <b>")
    line = re.search(r'class="line no_grad" d="M([^"]*)"', drawn)[1]
    points = [tuple(map(float, point.split())) for point in line.split("L")]
    assert len(points) <= sparklines.SLICES
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    heights = [y for _, y in points]
    assert heights == sorted(heights, reverse=True)  # they rise, and y points down
    assert "a &lt;b&gt;" in drawn


def test_a_distribution_rises_from_the_least_round_to_the_99th_percentile():
    drawn = sparklines.distributions({"no_grad": np.linspace(100, 200, 101)}, unit="ns", label="x")
    line = re.search(r'd="M([^"]*)"', drawn.partition("line no_grad")[2])[1]
    points = [tuple(map(float, point.split())) for point in line.split("L")]
    assert points[0] == (0, 72)
    assert points[-1] == (320, 1)
    assert "100 ns" in drawn
    assert "199 ns" in drawn


# --- what fits


def peaks(**sizes):
    return [
        counted(cell(batch_size=int(n[1:])), size, meter="peak_allocated")
        for n, size in sizes.items()
    ]


class OnALine(int):
    """A prediction of which nothing is known but its peak."""

    context_bytes, unprobed, run_otherwise = 0, (), ()
    measured_at, why_measured, checked_at = (), "", None
    process_bytes = property(int)


def nothing(_low, _high):
    """Give a search no line to follow."""


def test_a_straight_line_says_the_largest_batch_that_fits():
    (row,) = capacity.capacities(View(run(peaks(b1=2000, b10=11_000, b20=21_000))))
    assert (row.fixed_bytes, row.sample_bytes) == pytest.approx((1000, 1000))
    assert (row.measured, row.lost) == (20, 0)
    assert row.max_error == pytest.approx(0)
    assert row.fits[4 * 2**30] == f"{(4 * 2**30 - 1000) // 1000:,}"


def test_a_run_and_a_fit_answer_alike_where_peaks_lie_on_a_line():
    (row,) = capacity.capacities(View(run(peaks(b1=2000, b10=11_000, b20=21_000))))
    for budget, words in row.fits.items():
        fit = batch_fit.largest(cell(), budget, lambda batch: OnALine(1000 + 1000 * batch), nothing)
        assert fit.size == words
    assert [words.endswith("or more") for words in row.fits.values()] == [False, True, True]


def test_a_peak_off_the_line_and_a_batch_that_ran_out_are_reported():
    lost = skipped(cell(batch_size=40), cause="out_of_memory", reason="7 GiB")
    (row,) = capacity.capacities(View(run([*peaks(b1=2200, b10=2000, b20=3000), lost])))
    assert row.max_error == pytest.approx(0.5)
    assert row.lost == 40


def test_a_batch_that_takes_nothing_fits_in_any_size():
    (row,) = capacity.capacities(View(run(peaks(b1=1000, b10=1000))))
    assert row.fits == dict.fromkeys(capacity.BUDGETS, "16,777,216 or more")


# --- what changed


def compared(before, after, **facts):
    """Return how two runs on one machine differ; ``facts`` are of the second."""
    return run_differences.compare(
        run_on_a_machine(before, name="a"), run_on_a_machine(after, name="b", **facts)
    )


def times(factor, *, spread=0.01):
    """Return a mode's times: rounds around 1 µs times a factor, some slower than others."""
    return [timed(ON, [int(1_000_000 * factor * (1 + spread * n / 12)) for n in range(12)])]


PAIRS = {
    "equal": ([*times(1), counted(ON, 64)], [*times(1), counted(ON, 64)], {}),
    "a byte more": ([counted(ON, 64)], [counted(ON, 65)], {}),
    "a byte less": ([counted(ON, 64)], [counted(ON, 63)], {}),
    "15% slower": (times(1), times(1.15), {}),
    "half as fast": (times(1), times(2), {}),
    "twice as fast": (times(2), times(1), {}),
    "a spread on both sides": (times(1, spread=0.6), times(1.15, spread=0.6), {}),
    "a mode's advantage lost": (measured_block(), measured_block(step_ns={"no_grad": 2000}), {}),
    "another host": ([*times(1), counted(ON, 64)], [*times(2), counted(ON, 65)], {"host": "b"}),
    "another protocol": (times(1), times(2), {"protocol": 99}),
    "a cell that broke": (
        [counted(ON, 64)],
        [skipped(ON, meter=MEMORY, cause="crashed", reason="killed by SIGSEGV")],
        {},
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_page_and_gate_give_the_same_verdict_on_the_same_two_runs(pair, tmp_path):
    before, after, facts = PAIRS[pair]
    runs = run_on_a_machine(before, name="a"), run_on_a_machine(after, name="b", **facts)
    paths = [str(write_run(one, tmp_path)) for one in runs]
    gate = CliRunner().invoke(app, ["gate", "--baseline", paths[0], paths[1], "--json"])
    judged = [
        (row["id"], row["meter"], row["verdict"]) for row in json.loads(gate.stdout)["verdicts"]
    ]
    found = run_differences.compare(*runs)
    shown = [(str(row.cell), row.figure, str(row.verdict)) for row in found.differences]
    assert sorted(shown) == sorted(row for row in judged if row[2] in ("better", "worse"))
    assert {
        (figure, str(verdict)): count
        for figure, counts in found.counts.items()
        for verdict, count in counts.items()
    } == Counter((figure, verdict) for _, figure, verdict in judged)


def test_the_table_of_pairs_has_every_verdict_and_one_that_is_not_compared():
    found = [compared(before, after, **facts) for before, after, facts in PAIRS.values()]
    given = {verdict for one in found for counts in one.counts.values() for verdict in counts}
    assert given == set(Verdict) - {Verdict.WITHIN}  # which only compare gives
    assert any(one.not_compared for one in found)


def test_bytes_that_differ_at_all_are_a_change_with_its_reason():
    (row,) = compared([counted(ON, 1000)], [counted(ON, 1001)]).differences
    assert (row.figure, row.verdict, row.before, row.after, row.ratio, row.reason) == (
        *(MEMORY, "worse", "1,000 B", "1,001 B"),
        *("1.001", "+1 B, 0 allowed"),
    )


def test_a_cell_that_broke_is_worse_without_a_ratio_and_comes_first():
    broken = skipped(OFF, meter=MEMORY, cause="crashed", reason="killed by SIGSEGV")
    found = compared([counted(ON, 64), counted(OFF, 64)], [counted(ON, 640), broken])
    first, second = found.differences
    assert (first.after, first.ratio, first.reason) == ("—", "", "crashed: killed by SIGSEGV")
    assert (second.cell, second.ratio) == (ON, "10")


def test_the_worst_comes_first_and_better_last():
    sizes = {ON: (10, 5), OFF: (10, 30), NO_GRAD: (10, 20)}
    found = compared(
        [counted(c, before) for c, (before, _) in sizes.items()],
        [counted(c, after) for c, (_, after) in sizes.items()],
    )
    assert [row.cell for row in found.differences] == [OFF, NO_GRAD, ON]


def test_cells_of_one_run_only_are_named():
    found = compared([counted(ON, 1)], [counted(OFF, 1)])
    assert (found.lost, found.gained) == ([str(ON)], [str(OFF)])
    assert found.not_compared == []


def test_what_may_not_be_compared_is_named_with_the_fact_that_differs():
    found = compared([*times(1), counted(ON, 64)], [*times(2), counted(ON, 64)], host="b")
    assert (found.differences, dict(found.counts)) == ([], {MEMORY: {Verdict.SAME: 1}})
    assert found.not_compared == [f"not comparable: host was 'a', is 'b': {TIME} of {ON}"]


def test_the_rules_of_the_gate_are_the_page_s():
    lenient = Rules(overrides=[Override(changes={"tolerance_bytes": 8})])
    runs = [run_on_a_machine([counted(ON, size)]) for size in (64, 65)]
    assert run_differences.compare(*runs, by=lenient).differences == []


def test_only_facts_that_differ_are_shown_a_value_a_run():
    runs = [run_of([started([]), environment(cores=n)]) for n in (2, 4)]
    assert run_differences.environments(runs) == {"cores": [2, 4]}


# --- in a notebook


def test_a_notebook_shows_the_answer_and_a_row_a_cell():
    shown = Report(NORMAL, reference="no_grad")._repr_html_()
    assert "<code>inference_mode</code> is faster" in shown
    assert shown.count("<tr>") == 1 + len(NORMAL.header.cells)
    assert "0.667 [0.667, 0.667]" in shown
    assert "<script" not in shown


def test_a_notebook_shows_names_as_text():
    named = Report(run(measured_block(model="<script>alert(1)</script>")))._repr_html_()
    assert "<script" not in named
    assert "&lt;script&gt;" in named


def test_a_report_writes_its_page(tmp_path):
    path = Report(NORMAL).write(tmp_path / "page.html")
    assert path.read_text("utf-8") == Report(NORMAL).html()


@pytest.mark.filterwarnings("ignore:Glyph 7")  # no font has the bell
def test_a_figure_of_a_name_that_xml_cannot_hold_is_drawn_all_the_same():
    figure = Figure()
    figure.text(0, 0, "bell \a & <b>")
    drawn = svg.inline(figure, mark="m", label="\a name")
    assert "bell � &amp; &lt;b&gt;" in drawn


# --- the templates


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_has_lines_to_read_and_leaves_style_to_the_head(path):
    text = path.read_text("utf-8")
    assert [line for line in text.splitlines() if len(line) > 130] == []
    assert ("<style" in text) == (path.name == "shell.html.j2")


# --- several machines

FLEET = run_on_machines(
    {
        "a": [*measured_block(batch_size=1), *measured_block(batch_size=2)],
        "b": [*measured_block(batch_size=4), *measured_block(batch_size=8)],
        "c": measured_block(batch_size=16),
    },
    b={"cpu": "another CPU", "cores": 64},
)


def test_a_run_on_several_machines_has_a_table_and_an_answer_for_each_kind():
    page = Report(FLEET).html()
    titles = ["AVX2, some CPU, 2 cores (a, c)", "AVX2, another CPU, 64 cores (b)"]
    for title in titles:
        assert f"<h3>{title}</h3>" in page
    assert page.count('<table class="cells">') == 2
    leads = [line for line in answer(FLEET) if line.startswith("On cpu")]
    assert [line.partition(", `")[0] for line in leads] == [
        "On cpu (AVX2, some CPU, 2 cores)",
        "On cpu (AVX2, another CPU, 64 cores)",
    ]
    assert "some CPU · another CPU" in " ".join(page.split())


def test_the_page_says_what_is_not_the_same_on_all_machines():
    assert run_differences.machines(FLEET)["b"] == {
        "host": "b",
        "cpu": "another CPU",
        "cores": 64,
    }
    assert run_differences.machines(NORMAL) == {}


def test_no_curve_is_drawn_through_times_of_two_machines():
    families = scaling_families(View(FLEET))
    assert [name for name, _, _ in families] == [
        "inference[cpu-mlp_tiny] on a",
        "inference[cpu-mlp_tiny] on b",
    ]
    assert [{c.batch_size for c in cells} for _, _, cells in families] == [{1, 2}, {4, 8}]
