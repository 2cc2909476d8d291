"""The gate: which figures it judges, how, what it lets pass, and how it ends."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from builders import (
    MACHINE,
    TORCH_SAYS,
    broken_down,
    cell,
    counted,
    environment,
    measured_block,
    run_of,
    run_on_a_machine as run,
    run_on_machines,
    skipped,
    started,
    timed,
)
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.errors import BadConfig, StoreError
from gradbench.exit_status import ExitStatus
from gradbench.gate.decide import decide
from gradbench.gate.result import GateResult
from gradbench.gate.rules import Override, Rules, read
from gradbench.records.measurements import Environment, Measurement
from gradbench.stats.verdicts import Verdict
from gradbench.store.baseline import exact_records
from gradbench.store.jsonl import load, write


def saved(size: int, mode: str = "global_on", **axes) -> Measurement:
    return counted(cell(mode, **axes), size, meter="saved_for_backward")


def verdicts(decision: GateResult) -> dict[tuple[str, str], Verdict]:
    return {(j.cell.grad_mode, j.meter): j.verdict for j in decision.figure_verdicts}


def only(decision: GateResult):
    (figure_verdict,) = decision.figure_verdicts
    return figure_verdict


def noisy_times(seed: int, *, slower: float = 1.0, modes=("global_on", "no_grad"), rounds=40):
    """Return a block's times: rounds that share their noise, as interleaved ones do."""
    rng = np.random.default_rng(seed)
    shared = 1_000_000 * np.exp(rng.normal(0, 0.02, rounds))
    return [
        timed(
            cell(mode),
            (shared * slower * factor * np.exp(rng.normal(0, 0.002, rounds))).astype(int).tolist(),
            iterations=10,
        )
        for mode, factor in zip(modes, (1.5, 1.0), strict=False)
    ]


# What repeats


def test_one_byte_more_is_a_regression_and_one_less_is_better():
    base = [run([saved(4096)])]
    assert only(decide(base, [run([saved(4097)])])).verdict is Verdict.WORSE
    assert only(decide(base, [run([saved(4095)])])).verdict is Verdict.BETTER
    assert only(decide(base, [run([saved(4096)])])).verdict is Verdict.SAME


def test_bytes_where_there_were_none_are_a_regression_without_a_ratio():
    judged = only(decide([run([saved(0)])], [run([saved(4096)])]))
    assert (judged.verdict, judged.change) == (Verdict.WORSE, None)
    assert judged.reason.startswith("+4,096 B, 0 allowed")


@given(
    size=st.integers(0, 10**12), more=st.integers(-(10**6), 10**6), allowed=st.integers(0, 10**6)
)
@settings(max_examples=60)
def test_what_is_beyond_the_tolerance_in_bytes_and_only_that_is_judged(size, more, allowed):
    by = Rules(overrides=[Override(changes={"tolerance_bytes": allowed})])
    judged = only(decide([run([saved(size)])], [run([saved(max(0, size + more))])], by=by))
    grown = max(0, size + more) - size
    expected = (
        Verdict.WORSE if grown > allowed else Verdict.BETTER if grown < -allowed else Verdict.SAME
    )
    assert judged.verdict is expected


def test_more_is_better_where_the_rules_say_so():
    by = Rules(overrides=[Override(meters=("saved_for_backward",), changes={"better": "higher"})])
    assert only(decide([run([saved(10)])], [run([saved(11)])], by=by)).verdict is Verdict.BETTER
    assert only(decide([run([saved(10)])], [run([saved(9)])], by=by)).verdict is Verdict.WORSE


def test_the_newest_baseline_counts_and_the_worst_candidate():
    old = run([saved(10)], name="old", when="2026-01-01T00:00:00+00:00")
    new = run([saved(20)], name="new", when="2026-02-01T00:00:00+00:00")
    ours = [run([saved(20)], name="x"), run([saved(21)], name="y")]
    judged = only(decide([new, old], ours))
    assert (judged.baseline, judged.candidate, judged.verdict) == (20, 21, Verdict.WORSE)


def test_the_module_that_saves_more_is_named():
    sides = []
    for size in (1024, 5120):
        parts = replace(broken_down(cell(), saved=size), modules={"0": 1024, "2": size - 1024})
        sides.append(run_of([started([cell()]), environment(**MACHINE), saved(size), parts]))
    reason = only(decide([sides[0]], [sides[1]])).reason
    assert reason == "+4,096 B, 0 allowed; saved by module: 2 +4,096 B"


def test_equal_arms_instructions_may_differ_by_what_equal_arms_do():
    def count(number: int):
        return replace(counted(cell(), number, meter="instructions"), unit="instructions")

    assert only(decide([run([count(10_000)])], [run([count(10_099)])])).verdict is Verdict.SAME
    assert only(decide([run([count(10_000)])], [run([count(10_101)])])).verdict is Verdict.WORSE


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [(0, 0, Verdict.SAME), (0, 1, Verdict.WORSE), (5, 10, Verdict.SAME), (5, 11, Verdict.WORSE)],
)
def test_a_mode_that_begins_to_change_the_output_is_worse(before, now, verdict):
    def apart(ppt: int):
        return replace(counted(cell("no_grad"), ppt, meter="output_difference"), unit="ppt")

    judged = only(decide([run([apart(before)])], [run([apart(now)])]))
    assert judged.verdict is verdict
    if verdict is Verdict.WORSE:
        assert "farther from global_on's than before" in judged.reason


def test_a_baseline_without_the_outputs_stays_comparable():
    old = [saved(10)]
    new = [saved(10), replace(counted(cell(), 0, meter="output_difference"), unit="ppt")]
    decision = decide([run(old)], [run(new)])
    assert decision.status() is ExitStatus.OK
    assert [one.why for one in decision.not_compared] == ["new"]


@pytest.mark.parametrize(
    ("fact", "value"), [("torch", "2.12.0"), ("cpu_capability", "AVX512"), ("protocol", 2)]
)
def test_bytes_of_another_torch_or_isa_are_not_compared_and_that_is_reported(fact, value):
    decision = decide([run([saved(1)], **{fact: value})], [run([saved(2)])])
    assert decision.status() is ExitStatus.NO_BASELINE
    (not_compared,) = decision.not_compared
    assert not_compared.why == "not comparable"
    named = "torch release" if fact == "torch" else fact
    assert not_compared.reason.startswith(f"{named} was {str(value)!r}, is ")


def test_bytes_span_machines_and_builds_of_one_torch():
    decision = decide([run([saved(1)], torch="2.13.0+cu130", host="b")], [run([saved(1)])])
    assert only(decision).verdict is Verdict.SAME


def test_of_several_baselines_the_one_that_fits_is_taken():
    other = run([saved(7)], cpu_capability="AVX512", when="2026-03-01T00:00:00+00:00")
    assert only(decide([run([saved(9)]), other], [run([saved(9)])])).baseline == 9


# What is noisy


def test_equal_times_are_the_same_and_twice_the_time_is_worse():
    base = run(noisy_times(1))
    assert set(verdicts(decide([base], [run(noisy_times(2))])).values()) == {Verdict.SAME}
    slow = verdicts(decide([base], [run(noisy_times(3, slower=2.0))]))
    assert slow["global_on", "step_time"] is slow["no_grad", "step_time"] is Verdict.WORSE
    assert slow["global_on", "step_time/no_grad"] is Verdict.SAME  # both modes: blind to it


def test_times_of_another_machine_are_not_judged_but_ratios_are():
    decision = decide([run(noisy_times(1), host="b")], [run(noisy_times(2, slower=2.0))])
    assert verdicts(decision) == {("global_on", "step_time/no_grad"): Verdict.SAME}
    assert {u.reason for u in decision.not_compared} == {"host was 'b', is 'a'"}


@pytest.mark.parametrize("fact", ["host", "cpu", "cores", "python", "torch", "protocol"])
def test_times_are_judged_only_when_all_of_the_machine_is_the_same_and_recorded(fact):
    without = run_of(
        [
            *[r for r in run(noisy_times(1)).records if not isinstance(r, Environment)],
            Environment(facts={k: v for k, v in MACHINE.items() if k != fact}),
        ]
    )
    decision = decide([without], [run(noisy_times(1))])
    assert not [j for j in decision.figure_verdicts if j.meter == "step_time"]
    assert f"{fact} is not recorded on both sides" in {u.reason for u in decision.not_compared}


def test_a_mode_that_lost_its_advantage_shows_in_the_ratio():
    base = run(noisy_times(1), host="b")
    slow = noisy_times(2)
    slow[0] = replace(slow[0], values=tuple(int(v * 1.3) for v in slow[0].values))
    judged = only(decide([base], [run(slow)]))
    assert (judged.meter, judged.verdict, judged.unit) == (
        "step_time/no_grad",
        Verdict.WORSE,
        "ratio",
    )


def test_the_control_pair_is_no_ratio_to_judge():
    runs = [run(measured_block(), name=name) for name in "ab"]
    meters = {(j.cell.grad_mode, j.meter) for j in decide(runs[:1], runs[1:]).figure_verdicts}
    assert ("global_off", "step_time/no_grad") not in meters
    assert ("inference_mode", "step_time/no_grad") in meters


def test_the_more_is_tested_the_more_it_takes_to_be_an_alarm():
    def table(blocks: int, *, slower: float):
        return run(
            [
                replace(o, cell=replace(o.cell, batch_size=number + 1))
                for number in range(blocks)
                for o in noisy_times(
                    number + 1, slower=slower if number == 0 else 1.0, modes=("no_grad",)
                )
            ]
        )

    def first(blocks: int) -> Verdict:
        decision = decide([table(blocks, slower=1.0)], [table(blocks, slower=1.21)])
        return decision.figure_verdicts[0].verdict

    assert (first(1), first(1000)) == (Verdict.WORSE, Verdict.INCONCLUSIVE)


def test_in_two_hundred_null_tables_at_most_a_few_cry_wolf():
    """Runs that drift apart as the rules assume: the chance of any alarm is at most alpha."""
    rng = np.random.default_rng(0)
    by = Rules(alpha=0.05, overrides=[Override(changes={"tolerance": 0.0})])
    alarms = 0
    for _ in range(200):
        sides = []
        for _side in range(2):
            drifts = np.exp(rng.normal(0, 0.05 / np.sqrt(2), 5))
            sides.append(
                run(
                    [
                        replace(o, cell=replace(o.cell, batch_size=number + 1))
                        for number, drift in enumerate(drifts)
                        for o in noisy_times(
                            int(rng.integers(1 << 30)), slower=drift, modes=("no_grad",)
                        )
                    ]
                )
            )
        decision = decide(sides[:1], sides[1:], by=by)
        alarms += any(
            j.verdict in (Verdict.WORSE, Verdict.BETTER) for j in decision.figure_verdicts
        )
    assert alarms <= 20  # 10 expected; the chance of more than 20 is 0.1%


def test_several_runs_a_side_speak_by_their_own_spread():
    def several(factors, first):
        return [
            run(noisy_times(first + n, slower=f, modes=("no_grad",)), name=str(first + n))
            for n, f in enumerate(factors)
        ]

    by = Rules(overrides=[Override(changes={"tolerance": 0.05, "drift": 0.0})])
    steady = decide(several([1.0, 1.01, 0.99], 1), several([1.2, 1.21, 1.19], 9), by=by)
    unsteady = decide(several([1.0, 1.3, 0.8], 1), several([1.2, 1.5, 0.9], 9), by=by)
    assert only(steady).verdict is Verdict.WORSE
    assert only(unsteady).verdict is Verdict.INCONCLUSIVE


def test_latency_is_judged_by_its_median_alone_unless_asked():
    calls = [replace(o, meter="latency", iterations=1) for o in noisy_times(1, modes=("no_grad",))]
    assert only(decide([run(calls)], [run(calls)])).meter == "latency_p50"
    by = Rules(overrides=[Override(meters=("latency_p90",), changes={"judge": True})])
    meters = [j.meter for j in decide([run(calls)], [run(calls)], by=by).figure_verdicts]
    assert meters == ["latency_p50", "latency_p90"]


# What is missing


def test_a_cell_that_failed_is_a_regression_in_its_own_words():
    broken = skipped(cell(), meter="saved_for_backward", cause="failed", reason="ValueError: no")
    decision = decide([run([saved(1)])], [run([broken])])
    judged = only(decision)
    assert (judged.verdict, judged.reason) == (Verdict.WORSE, "failed: ValueError: no")
    assert decision.status() is ExitStatus.REGRESSION


@pytest.mark.parametrize("cause", ["timed_out", "out_of_memory", "crashed"])
def test_a_baseline_that_was_killed_makes_no_candidate_better(cause):
    """As in a comparison: it had too little time, or others may have ended it."""
    words = {
        "timed_out": "killed at its time limit of 300 s",
        "out_of_memory": "killed by SIGKILL, as the kernel does when memory runs out",
        "crashed": "the process was killed by SIGTERM while this mode was tried",
    }[cause]
    killed = skipped(cell(), meter="saved_for_backward", cause=cause, reason=words)
    base = run([killed])
    decision = decide([base], [run([saved(1)])])
    judged = only(decision)
    assert (judged.verdict, judged.change, judged.candidate) == (Verdict.INCONCLUSIVE, None, 1)
    assert judged.reason.startswith(f"the baseline has no number: {cause.replace('_', ' ')}: ")
    assert (decision.status(), decision.status(strict=True)) == (
        ExitStatus.OK,
        ExitStatus.INCONCLUSIVE,
    )


@pytest.mark.parametrize(
    ("cause", "words", "verdict"),
    [
        ("timed_out", "killed at its time limit of 300 s", Verdict.WORSE),
        ("out_of_memory", "killed by SIGKILL: memory had run out", Verdict.WORSE),
        ("out_of_memory", "RuntimeError: DefaultCPUAllocator: can't allocate", Verdict.WORSE),
        ("crashed", "killed by SIGSEGV", Verdict.WORSE),
        (
            "out_of_memory",
            "killed by SIGKILL, as the kernel does when memory runs out",
            Verdict.INCONCLUSIVE,
        ),
        ("crashed", "killed by SIGTERM (killed by SIGKILL: memory had run out)",
         Verdict.INCONCLUSIVE),
    ],
)  # fmt: skip
def test_a_candidate_that_others_may_have_killed_is_no_worse(cause, words, verdict):
    """As in a comparison: unless the kernel's count says that memory ran out."""
    killed = skipped(cell(), meter="saved_for_backward", cause=cause, reason=words)
    decision = decide([run([saved(1)])], [run([killed])])
    assert only(decision).verdict is verdict
    worse = verdict is Verdict.WORSE
    assert decision.status() is (ExitStatus.REGRESSION if worse else ExitStatus.NOTHING_MEASURED)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("failed", "ValueError: killed by SIGKILL"),
        ("crashed", "killed by SIGSEGV"),
        ("crashed", "ended early with exit status 1 (killed by SIGKILL)"),
        ("out_of_memory", "RuntimeError: DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_number_where_the_baseline_failed_by_its_own_fault_is_better(cause, words):
    broken = skipped(cell(), meter="saved_for_backward", cause=cause, reason=words)
    judged = only(decide([run([broken])], [run([saved(1)])]))
    assert judged.verdict is Verdict.BETTER
    assert judged.reason.startswith("has a number now; the baseline had none: ")


def test_a_run_held_against_a_copy_of_itself_is_the_same_whatever_its_spread():
    wild = [
        replace(one, values=tuple(value * (1 + 3 * (number % 2)) for number, value in
                                  enumerate(one.values)))
        for one in noisy_times(1)
    ]  # fmt: skip
    strict = Rules(overrides=[Override(changes={"tolerance": 0.01})])
    decision = decide([run(wild, name="a")], [run(wild, name="b")], by=strict)
    assert {judged.reason for judged in decision.figure_verdicts} == {
        "both sides are one measurement"
    }
    assert set(verdicts(decision).values()) == {Verdict.SAME}


def test_a_cell_that_this_machine_cannot_measure_is_not():
    absent = skipped(cell(), meter="saved_for_backward", cause="unavailable", reason="no CUDA")
    decision = decide([run([saved(1)])], [run([absent])])
    assert (decision.figure_verdicts, decision.not_compared[0].why) == ((), "not measured")
    assert decision.status() is ExitStatus.NOTHING_MEASURED


def test_new_and_gone_cells_are_named_and_no_error():
    both = saved(5, batch_size=1)
    decision = decide([run([both, saved(1, batch_size=2)])], [run([both, saved(1, batch_size=3)])])
    assert {(u.why, u.cell.batch_size) for u in decision.not_compared} == {("new", 3), ("gone", 2)}
    assert decision.status() is ExitStatus.OK


def test_what_never_had_a_number_is_no_news():
    refused = skipped(cell("no_grad", workload="training"), meter="saved_for_backward")
    decision = decide([run([saved(1), refused])], [run([saved(1), refused])])
    assert [u.why for u in decision.not_compared] == ["no number"]
    assert TORCH_SAYS in decision.not_compared[0].reason


@pytest.mark.parametrize("before", [None, "unreadable", "not_applicable"])
def test_a_figure_that_a_cell_does_not_have_is_not_named_whatever_older_runs_say(before):
    """A meter that came later, or another word for its absence, is no news of cells without it."""
    one = skipped(cell(), meter="compile_time", cause="not_applicable", reason="compile=off")
    old = run([saved(1), *([] if before is None else [replace(one, cause=before)])])
    new = run([saved(1), one])
    assert decide([old], [new]).not_compared == ()
    assert decide([new], [old]).not_compared == ()


def test_a_figure_that_is_not_had_any_more_is_named_whatever_its_cause():
    one = skipped(cell(), meter="leaked", cause="not_applicable", reason="of another workload")
    lost = decide([run([counted(cell(), 1, meter="leaked")])], [run([one])])
    assert [(each.why, each.meter) for each in lost.not_compared] == [("not measured", "leaked")]


def test_statuses_tell_what_happened():
    base, wide = run([saved(1)]), Rules(overrides=[Override(changes={"tolerance": 0.01})])
    assert decide([base], [base]).status() is ExitStatus.OK
    assert decide([base], [run([saved(2)])]).status() is ExitStatus.REGRESSION
    assert decide([], [base]).status() is ExitStatus.NO_BASELINE
    assert decide([base], [run([skipped(cell())])]).status() is ExitStatus.NOTHING_MEASURED
    unsure = decide([run(noisy_times(1))], [run(noisy_times(2))], by=wide)
    assert (unsure.status(), unsure.status(strict=True)) == (ExitStatus.OK, ExitStatus.INCONCLUSIVE)


# Rules


def rules(tmp_path, text: str, *, name: str = "rules.toml") -> Rules:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return read(path, meters=["step_time", "saved_for_backward", "peak_allocated"])


RULES = """
alpha = 0.05
correction = "fdr"
strict = true

[ratios]
reference = "global_on"
tolerance = 0.1

[meters.saved_for_backward]
tolerance_bytes = 4096

[[cells]]
model = ["mlp_deep", "mlp_tiny"]
workload = "training"
meter = "saved_for_backward"
tolerance_bytes = 0
"""


@pytest.mark.parametrize("table", ["", "tool.gradbench.gate"])
def test_rules_are_read_from_a_file_of_their_own_or_pyproject(tmp_path, table):
    text = RULES
    if table:
        text = f"[{table}]{RULES}".replace("[ratios", f"[{table}.ratios")
        text = text.replace("[meters", f"[{table}.meters").replace("[[cells", f"[[{table}.cells")
    by = rules(tmp_path, text, name="pyproject.toml" if table else "rules.toml")
    assert (by.alpha, by.correction, by.strict, by.reference) == (0.05, "fdr", True, "global_on")
    assert by.ratio.tolerance == 0.1
    loose = by.rule(cell(), "saved_for_backward", by.ratio)
    strict = by.rule(cell(workload="training"), "saved_for_backward", by.ratio)
    assert (loose.tolerance_bytes, strict.tolerance_bytes) == (4096, 0)


HUGE = "0x" + "f" * 5000  # more digits than Python writes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("alhpa = 0.1", "line 1, alhpa: no such key: did you mean 'alpha'?"),
        ("alpha = 2", "line 1, alpha: a chance between 0 and 1"),
        ("alpha = true", "line 1, alpha: a share"),
        ('strict = "yes"', "line 1, strict: true or false is needed, not 'yes'"),
        ('correction = "bonferroni"', "line 1, correction: 'bonferroni' is none of holm, fdr"),
        ("meters = 3", "meters: a table is needed, not 3"),
        ("\n[meters.step_tme]\ntolerance = 1", "line 2, meters.step_tme: unknown meter 'step_tme'"),
        ("[meters.step_time]\ntolerence = 1", "line 2, tolerence: no such key: did you mean"),
        ("[meters.step_time]\ntolerance = -1", "line 2, tolerance: a share from 0 up"),
        ("[meters.step_time]\ntolerance = nan", "line 2, tolerance: a share from 0 up"),
        ("[meters.step_time]\ntolerance_bytes = 1.5", "line 2, tolerance_bytes: a whole number"),
        ('[meters.step_time]\nbetter = "more"', "line 2, better: 'more' is none of lower, higher"),
        ('[ratios]\nreference = "nograd"', "line 2, reference: 'nograd' is none of"),
        ("cells = 1", "cells: [[cells]] tables are needed, not 1"),
        ('[[cells]]\nmodl = "x"', "line 2, modl: no such key: did you mean 'model'?"),
        ('[[cells]]\n[[cells]]\nworkload = "infer"', "line 3, workload: unknown workload 'infer'"),
        ('[[cells]]\nmeter = "steptime"', "line 2, meter: unknown meter 'steptime'"),
        ("alpha = ", "Invalid value"),
        (f"alpha = {HUGE}", "line 1, alpha: a share from 0 up"),
        (f"strict = [{HUGE}]", "line 1, strict: true or false is needed, not a list"),
        (f"[meters.step_time]\ntolerance_bytes = {HUGE}", "line 2, tolerance_bytes: a whole"),
        (f"[[cells]]\nmeter = {HUGE}", "line 2, meter: unknown meter a number of"),
    ],
    ids=lambda text: text[:40],
)
def test_a_mistake_in_the_rules_is_answered_with_file_line_and_key(tmp_path, text, complaint):
    with pytest.raises(BadConfig) as caught:
        rules(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "rules.toml"))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_table_of_pyproject_is_refused(tmp_path):
    with pytest.raises(BadConfig, match=r"line 2, tool.gradbench.gates: no such key"):
        rules(tmp_path, "\n[tool.gradbench.gates]\nalpha = 0.1", name="pyproject.toml")


# The committed baseline


def test_a_baseline_keeps_what_repeats_and_no_name_of_a_machine(tmp_path):
    full = run([*measured_block(), saved(8), skipped(cell("no_grad"), meter="saved_for_backward")])
    small = load(write(exact_records(full), tmp_path / "base.jsonl"))
    assert small.sealed
    assert {o.meter for o in small.outcomes} == {"peak_transient", "saved_for_backward"}
    assert set(small.environment.facts) == {"protocol", "torch", "cpu_capability", "python"}
    assert decide([small], [full]).status() is ExitStatus.OK
    with pytest.raises(StoreError, match="no deterministic metric"):
        list(exact_records(run(noisy_times(1))))


def test_the_committed_baseline_is_that_of_the_tiny_preset(request):
    from gradbench.experiment.presets import PRESETS

    committed = load(request.config.rootpath / "results" / "baseline" / "tiny.jsonl")
    assert set(committed.header.cells) == set(PRESETS["tiny"])
    assert {"saved_for_backward", "peak_allocated"} <= set(committed.header.meters)
    assert "host" not in committed.environment.facts


# The command


@pytest.fixture
def gate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"COLUMNS": "200"})
    return lambda *arguments: runner.invoke(app, ["gate", *map(str, arguments)])


@pytest.fixture
def files(tmp_path):
    """A folder with spaces in its name, holding a baseline and candidates."""
    folder = tmp_path / "my runs"
    for name, size in (("base", 4096), ("same", 4096), ("more", 8192)):
        write(run([saved(size), *noisy_times(1)]).records, folder / f"{name}.jsonl")
    return folder


def test_the_command_shows_what_is_worse_first_and_exits_1(gate, files):
    answer = gate("--baseline", files / "base.jsonl", files / "more.jsonl")
    assert answer.exit_code == ExitStatus.REGRESSION
    lines = answer.stdout.splitlines()
    assert lines[0] == "worse: 1"
    assert "saved_for_backward" in lines[2]
    assert "+4,096 B" in lines[2]
    assert "step_time of 2" in answer.stdout
    assert "10th percentile of a run's rounds" in lines[-2]
    assert lines[-1] == "regression: 0 better, 3 same, 1 worse, 0 inconclusive"


def test_runs_are_taken_by_path_glob_folder_and_name(gate, files):
    for baseline in (files / "base.jsonl", files / "b*.jsonl", "b*.jsonl", "base"):
        answer = gate("--baseline", baseline, files / "same.jsonl", "--results", files)
        assert answer.exit_code == ExitStatus.OK, answer.output
    assert gate("--baseline", files, files / "same.jsonl").exit_code == ExitStatus.OK


def test_json_holds_every_verdict_with_its_axes(gate, files):
    answer = gate("--baseline", files / "base.jsonl", files / "more.jsonl", "--json")
    content = json.loads(answer.stdout)
    assert content["status"] == answer.exit_code == ExitStatus.REGRESSION
    assert content["counts"]["worse"] == 1
    (worse,) = [j for j in content["verdicts"] if j["verdict"] == "worse"]
    assert (worse["cell"]["model"], worse["baseline"], worse["candidate"]) == (
        "mlp_tiny",
        4096,
        8192,
    )


def test_no_baseline_and_nothing_measured_have_statuses_of_their_own(gate, files):
    assert gate("--baseline", "not there", files / "same.jsonl").exit_code == ExitStatus.NO_BASELINE
    none = gate("--baseline", files / "x*.jsonl", files / "same.jsonl")
    assert none.exit_code == ExitStatus.NO_BASELINE
    (line,) = none.output.splitlines()  # once
    assert line.startswith("no baseline: no run fits ")
    answer = gate("--baseline", files / "base.jsonl", files / "x*.jsonl")
    assert answer.exit_code == ExitStatus.NOTHING_MEASURED


@pytest.mark.parametrize(
    "arguments",
    [
        ["same.jsonl"],
        ["--baseline", "base.jsonl", "not-there"],
        ["--baseline", "base.jsonl", "same.jsonl", "--rules", "nowhere.toml"],
        ["--baseline", "base.jsonl", "same.jsonl", "--rules", "binary.toml"],
        ["--baseline", "base.jsonl", "same.jsonl", "--alpha", "7"],
        ["--baseline", "base.jsonl", "same.jsonl", "--correction", "none"],
        ["--baseline", "cut.jsonl", "same.jsonl"],
        ["--baseline", "base.jsonl", "cut.jsonl"],
        ["--save-baseline", "x.txt", "same.jsonl"],
        ["--save-baseline", "y.jsonl", "base.jsonl", "same.jsonl"],
    ],
)
def test_a_mistake_costs_one_line_and_status_2(gate, files, monkeypatch, arguments):
    monkeypatch.chdir(files)
    (files / "binary.toml").write_bytes(b"\xff\xfe")
    (files / "cut.jsonl").write_bytes((files / "base.jsonl").read_bytes()[:-200])
    answer = gate(*arguments)
    assert answer.exit_code == ExitStatus.USAGE, answer.output
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == 1
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--baseline", "base.jsonl", "not-there"], ExitStatus.USAGE),
        (["--baseline", "base.jsonl", "same.jsonl", "--rules", "nowhere.toml"], ExitStatus.USAGE),
        (["same.jsonl"], ExitStatus.USAGE),
        (["--baseline", "nowhere", "same.jsonl"], ExitStatus.NO_BASELINE),
        (["--baseline", "base.jsonl", "x*.jsonl"], ExitStatus.NOTHING_MEASURED),
        (["--save-baseline", "x.jsonl", "not-there"], ExitStatus.USAGE),
        (["--save-baseline", "x.txt", "same.jsonl"], ExitStatus.USAGE),
    ],
)
def test_what_is_named_is_looked_at_before_the_self_test_measures(
    gate, files, monkeypatch, arguments, status
):
    monkeypatch.chdir(files)
    monkeypatch.setattr("gradbench.cli.gate._prove", lambda: pytest.fail("it measured"))
    assert gate("--self-test", *arguments).exit_code == status


def test_a_name_that_fits_no_run_is_not_passed_over_for_another_s_sake(gate, files):
    base = files / "base.jsonl"
    result = gate("--baseline", base, "--baseline", "nothing-*", files / "same.jsonl")
    assert "no run fits 'nothing-*'" in result.stderr
    assert result.exit_code == ExitStatus.NO_BASELINE


def test_of_a_glob_a_bad_file_is_named_and_left_out(gate, files):
    (files / "bad.jsonl").write_text("{}", "utf-8")
    answer = gate("--baseline", files / "b*.jsonl", files / "same.jsonl")
    assert answer.exit_code == ExitStatus.OK
    assert "left out" in answer.stderr
    assert "bad.jsonl" in answer.stderr


def test_rules_of_the_nearest_pyproject_hold(gate, files, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(
        "[tool.gradbench.gate.meters.saved_for_backward]\ntolerance_bytes = 4096\n", "utf-8"
    )
    monkeypatch.chdir(files)
    assert gate("--baseline", "base.jsonl", "more.jsonl").exit_code == ExitStatus.OK


def test_gating_loads_neither_torch_nor_pandas(files):
    code = (
        "import sys\nfrom gradbench.cli import app\n"
        "try: app(['gate', '--baseline', 'base.jsonl', 'same.jsonl'])\n"
        "except SystemExit as end: print('status', end.code)\n"
        "print('loaded', *({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=files, capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-2:] == ["status 0", "loaded"]


def test_energy_is_judged_where_rules_ask_for_it_and_not_by_default():
    """It is the whole board's, and where the host bounds a step it goes by the host's load."""
    base, more = (
        run([replace(timed(cell(), [nj] * 3), meter="energy", unit="uJ")]) for nj in (100, 900)
    )
    assert decide([base], [more]).figure_verdicts == ()
    by = Rules(overrides=[Override(meters=("energy",), changes={"judge": True})])
    assert only(decide([base], [more], by=by)).verdict is Verdict.WORSE


def compiled(*first_less_typical_ns: int) -> Measurement:
    return replace(timed(cell(), first_less_typical_ns), meter="compile_time")


def test_one_reading_of_compilation_is_not_judged_unless_asked_and_then_says_what_it_lacks():
    base, more = run([compiled(1_000_000)]), run([compiled(9_000_000)])
    assert decide([base], [more]).figure_verdicts == ()
    by = Rules(overrides=[Override(meters=("compile_time",), changes={"judge": True})])
    judged = only(decide([base], [more], by=by))
    assert (judged.verdict, judged.change) == (Verdict.INCONCLUSIVE, None)
    assert "the baseline has one round" in judged.reason
    assert only(decide([base] * 3, [more] * 3, by=by)).verdict is Verdict.WORSE


def test_a_time_of_zero_has_no_ratio_and_is_a_reason():
    zero = run([timed(cell(), [0, 5, 5, 5, 5, 5])])
    some = run([timed(cell(), [5, 5, 5, 5, 5, 5])])
    for sides, side in ((([zero], [some]), "baseline"), (([some], [zero]), "candidate")):
        judged = only(decide(*sides))
        assert judged.verdict is Verdict.INCONCLUSIVE
        assert judged.reason == f"the {side} has a round of 0, to which there is no ratio"


def test_a_rule_for_the_first_device_holds_however_that_is_written():
    rule = Override(axes={"device": ("cuda:0",)})
    assert rule.holds(cell(device="cuda"), "step_time")
    assert not rule.holds(cell(device="cuda:1"), "step_time")


def test_a_time_is_held_against_one_of_an_equal_machine_alone_and_bytes_against_any():
    def fleet(first, second, slower=1.0):
        step_ns = {mode: round(2000 * slower) for mode in ("global_on", "no_grad")}
        read = {
            host: measured_block(("global_on", "no_grad"), step_ns=step_ns, batch_size=size)
            for host, size in ((first, 1), (second, 2))
        }
        return run_on_machines(read)

    decision = decide([fleet("a", "b")], [fleet("a", "c", slower=3.0)])
    timed_there = {v.cell.batch_size for v in decision.figure_verdicts if v.meter == "step_time"}
    assert timed_there == {1}
    assert {n.cell.batch_size for n in decision.not_compared if n.meter == "step_time"} == {2}
    counted_there = {
        v.cell.batch_size for v in decision.figure_verdicts if v.meter == "peak_transient"
    }
    assert counted_there == {1, 2}


def test_candidates_of_another_machine_do_not_join_the_newest_ones_sample():
    outcomes = measured_block(("no_grad",))
    slow = measured_block(("no_grad",), step_ns={"no_grad": 9000})
    base = run(outcomes, host="a")
    newest = run(outcomes, name="20260103T030405Z-abcd", when="2026-01-03T03:04:05+00:00", host="a")
    other = run(slow, name="20260102T040405Z-abcd", when="2026-01-02T04:04:05+00:00", host="b")
    (verdict,) = [
        v for v in decide([base], [other, newest]).figure_verdicts if v.meter == "step_time"
    ]
    assert verdict.verdict is Verdict.SAME
