"""The plugin: readable tests, our rounds in pytest-benchmark's statistics, records and a page.

What a real session leaves is looked at once. Where only the plugin's conduct is in question, a
scripted bench stands in for the measuring processes.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest
from builders import cell, skipped, timed
from scripted_bench import ITERATIONS, VALUES, ScriptedBench, scripted_bench, succeed
from typer.testing import CliRunner

# An inner session in this process must find these loaded: torch and numpy load only once.
from gradbench import recording, report, runner
from gradbench.analysis import run_sentences as words
from gradbench.cli import app
from gradbench.errors import StoreError
from gradbench.experiment.matrix import GRAD_MODES, WORKLOADS, Cell
from gradbench.pytest_plugin import cells
from gradbench.records.measurements import Measurement, Outcome, Reading, Skipped
from gradbench.records.run import Run
from gradbench.runner.preflight import DEFAULT_METERS
from gradbench.store.jsonl import PART, SEALED, load
from gradbench.terminal import run_tables

pytest_plugins = ["pytester"]

LOADED = (recording, report, runner, run_tables, words)
ROOT = Path(__file__).parents[2]
MATRIX = """
[[matrix]]
models = ["mlp_tiny"]
workloads = ["inference", "training"]
batch_sizes = [1]
[plan]
budget_s = 0.05
warmup_s = 0.02
"""
LEAN = ("-p", "no:hypothesispytest", "-p", "no:cacheprovider")  # a second a session
USAGE_ERROR = pytest.ExitCode.USAGE_ERROR
WITHOUT_CELLS = tuple(name for name in WORKLOADS if name not in ("inference", "training"))
"""Workloads that have a benchmark, and no cell in the small matrix."""


def name_of(mode: str, workload: str = "inference") -> str:
    return f"test_{workload}[cpu-mlp_tiny-b1-{mode}]"


def furnish(folder: Path) -> None:
    """Put our benchmarks, a small matrix and a root marker into a folder."""
    shutil.copy(ROOT / "benchmarks" / "test_grad_modes.py", folder)
    (folder / "matrix.toml").write_text(MATRIX, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", "utf-8")


# A real session


@dataclass(frozen=True)
class Real:
    """A session that measured, and what it left."""

    folder: Path
    done: subprocess.CompletedProcess[str]

    @cached_property
    def run(self) -> Run:
        (path,) = (self.folder / "results").iterdir()
        return load(path)

    @cached_property
    def json(self) -> dict:
        return json.loads((self.folder / "out.json").read_text("utf-8"))

    @cached_property
    def verdicts(self) -> dict[str, str]:
        """Test name -> PASSED, XFAIL, ..."""
        lines = [line.partition("::")[2] for line in self.done.stdout.splitlines()]
        return {line.split()[0]: line.split()[1] for line in lines if len(line.split()) > 1}

    def benchmark(self, mode: str) -> dict:
        (found,) = (b for b in self.json["benchmarks"] if b["name"] == name_of(mode))
        return found

    def measurement(self, mode: str) -> Measurement:
        return self.outcomes(mode)["step_time"]

    def outcomes(self, mode: str) -> dict[str, Reading]:
        ours = cell(mode, batch_size=1)
        readings = (*self.run.outcomes, *self.run.breakdowns.values())
        return {o.meter: o for o in readings if o.cell == ours}


def session_here(folder: Path, *options: str) -> Real:
    """Run one in this process, on fork servers that are loaded: for what it does, not how."""
    furnish(folder)
    arguments = [*LEAN, "-v", "--gradbench-config=matrix.toml", *options]
    before, stdout = set(sys.modules), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout):
        patch.chdir(folder)
        patch.setenv("COLUMNS", "300")
        patch.setattr(sys, "path", list(sys.path))
        status = pytest.main(arguments)
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
    return Real(folder, subprocess.CompletedProcess(arguments, status, stdout.getvalue()))


needs_pygal = pytest.mark.skipif(
    find_spec("pygal") is None, reason="needs pytest-benchmark[histogram]"
)


@pytest.fixture(scope="module")
def real(tmp_path_factory, shared_fork_servers) -> Real:
    histogram = ["--benchmark-histogram=picture"] if find_spec("pygal") else []
    options = ("--benchmark-json=out.json", *histogram)
    return session_here(tmp_path_factory.mktemp("real"), *options)


def test_every_cell_is_a_test_under_a_readable_id(real):
    expected = {
        name_of(mode, workload) for mode in GRAD_MODES for workload in ("inference", "training")
    }
    assert set(real.verdicts) == expected | {f"test_{name}[NOTSET]" for name in WITHOUT_CELLS}


def test_inference_passes_and_training_xfails_where_nothing_is_recorded(real):
    assert real.done.returncode == 0, real.done.stdout
    assert {real.verdicts[name_of(mode)] for mode in GRAD_MODES} == {"PASSED"}
    assert {mode: real.verdicts[name_of(mode, "training")] for mode in GRAD_MODES} == {
        "global_on": "PASSED",
        "global_off": "XFAIL",
        "no_grad": "XFAIL",
        "inference_mode": "XFAIL",
    }


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_statistics_are_those_of_the_records(mode, real):
    stats, measured = real.benchmark(mode)["stats"], real.measurement(mode)
    per_step_s = [value / measured.iterations / 1e9 for value in measured.values]
    assert stats["rounds"] == len(measured.values)
    assert stats["iterations"] == measured.iterations
    assert stats["data"] == pytest.approx(per_step_s, rel=1e-12)
    for name, of in (("min", min), ("max", max), ("median", statistics.median)):
        assert stats[name] == pytest.approx(of(per_step_s), rel=1e-12)
    assert stats["mean"] == pytest.approx(statistics.fmean(per_step_s), rel=1e-12)


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_extra_info_carries_axes_throughput_and_every_other_meter(mode, real):
    info, outcomes = real.benchmark(mode)["extra_info"], real.outcomes(mode)
    assert {type(value) for value in info.values()} <= {str, int, float}
    assert cell(mode, batch_size=1).axes().items() <= info.items()
    per_step_s = [v / outcomes["step_time"].iterations / 1e9 for v in outcomes["step_time"].values]
    assert 1 / max(per_step_s) <= info["samples_per_s"] <= 1 / min(per_step_s)
    assert set(outcomes) == set(DEFAULT_METERS)
    single = outcomes["latency"].values
    assert min(single) <= info["latency_p50_ns"] <= info["latency_p99_ns"] <= max(single)
    parts = outcomes["breakdown"].parts
    assert {f"peak_{part}": nbytes for part, nbytes in parts.items()}.items() <= info.items()
    assert sum(info[f"peak_{part}"] for part in parts) == info["peak_allocated"]
    for meter in set(DEFAULT_METERS) - {"step_time", "latency", "breakdown"}:
        if isinstance(outcomes[meter], Skipped):
            assert info[meter] == f"{outcomes[meter].cause}: {outcomes[meter].reason}"
        else:
            assert info[meter] == outcomes[meter].values[0]
    assert info["peak_transient"] > 0


def test_a_single_call_has_percentiles_too():
    member = cell()
    one = replace(timed(member, [7_000]), meter="latency")
    assert {f"latency_p{p}_ns": 7_000 for p in (50, 90, 99)}.items() <= cells.extra_info(
        member, {"latency": one}
    ).items()


def test_params_in_the_json_can_be_read_back(real):
    assert "UNSERIALIZABLE" not in (real.folder / "out.json").read_text("utf-8")
    for mode in GRAD_MODES:
        assert real.benchmark(mode)["param"] == f"cpu-mlp_tiny-b1-{mode}"
        assert real.benchmark(mode)["params"] == {
            "gradbench_cell": str(cell(mode, batch_size=1)),
        }


def test_a_blocks_modes_are_one_group(real):
    groups = {benchmark["name"]: benchmark["group"] for benchmark in real.json["benchmarks"]}
    assert groups == {
        **{name_of(mode): "inference[cpu-mlp_tiny-b1]" for mode in GRAD_MODES},
        name_of("global_on", "training"): "training[cpu-mlp_tiny-b1]",
    }


def test_a_session_leaves_one_sealed_run_with_every_outcome_and_one_page(real):
    assert real.run.sealed
    assert real.run.unfinished() == []
    readings = len(real.run.outcomes) + len(real.run.breakdowns)
    assert readings == 2 * len(GRAD_MODES) * len(DEFAULT_METERS)
    (page,) = (real.folder / "reports").iterdir()
    assert page.name == f"{real.run.name}.html"
    assert real.run.name in page.read_text("utf-8")


def test_the_summary_has_ratios_and_says_where_things_are(real):
    summary = real.done.stdout.partition(" gradbench ====")[2]
    rows = [line.split() for line in summary.splitlines()]
    for mode in GRAD_MODES[1:]:
        (row, *_) = (row for row in rows if row[:1] == [mode])
        assert any(word.startswith("[") for word in row)  # the ratio's interval
    assert f"records  {real.folder}/results/{real.run.name}.jsonl\n" in summary
    assert f"page     {real.folder}/reports/{real.run.name}.html\n" in summary
    assert "gradbench's own overhead" in summary


@needs_pygal
def test_histograms_are_drawn_a_picture_a_block(real):
    pictures = {path.name for path in real.folder.glob("picture*.svg")}
    blocks = ("inference[cpu-mlp_tiny-b1]", "training[cpu-mlp_tiny-b1]")
    assert pictures == {f"picture-{block}.svg" for block in blocks}


@pytest.fixture(scope="module")
def disabled(tmp_path_factory, shared_fork_servers) -> Real:
    return session_here(tmp_path_factory.mktemp("disabled"), "--benchmark-disable", "-k", "no_grad")


def test_with_benchmarks_disabled_steps_run_and_nothing_is_recorded(disabled):
    assert disabled.done.returncode == 0, disabled.done.stdout
    assert disabled.verdicts == {
        name_of("no_grad"): "PASSED",
        name_of("no_grad", "training"): "XFAIL",
    }
    assert not (disabled.folder / "results").exists()
    assert not (disabled.folder / "reports").exists()


STOPPED = """
import pytest

@pytest.mark.gradbench("inference")
def test_measured(gradbench_cell, gradbench):
    gradbench()

def test_of_the_users():
    assert False

@pytest.mark.gradbench("training")
def test_never_reached(gradbench_cell, gradbench):
    gradbench()
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, shared_fork_servers) -> Real:
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "test_stopped.py").write_text(STOPPED, "utf-8")
    left = session_here(folder, "-x", "test_stopped.py")
    assert left.run, "read it now: a later test completes it"
    return left


def test_a_session_stopped_early_leaves_what_it_measured_and_says_how_to_go_on(stopped):
    assert stopped.done.returncode == pytest.ExitCode.TESTS_FAILED
    run = stopped.run
    assert not run.sealed
    assert [str(block) for block in run.unfinished()] == ["training[cpu-mlp_tiny-b1]"]
    assert f"go on with: gradbench run --resume {run.name} --results " in stopped.done.stdout
    assert f"{run.name}{PART}" in stopped.done.stdout
    assert (stopped.folder / "reports" / f"{run.name}.html").exists()


def test_what_a_stopped_session_proposes_completes_its_run(
    stopped, shared_fork_servers, monkeypatch
):
    proposed = stopped.done.stdout.partition("go on with: gradbench ")[2].splitlines()[0]
    name = stopped.run.name
    monkeypatch.chdir(stopped.folder)
    done = CliRunner().invoke(app, [*proposed.split(), "--no-semantics"])
    assert done.exit_code == 0, done.output
    completed = load(stopped.folder / "results" / f"{name}{SEALED}")
    assert completed.unfinished() == []
    assert stopped.run.outcomes
    assert [outcome for outcome in stopped.run.outcomes if outcome not in completed.outcomes] == []


def test_without_benchmarks_neither_torch_nor_pandas_is_imported(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_nothing_heavy(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("gradbench")
            assert {"torch", "pandas", "matplotlib"} & set(sys.modules) == set()
        """
    )
    pytester.runpytest_subprocess(*LEAN).assert_outcomes(passed=1)


# A scripted bench


@pytest.fixture
def bench(monkeypatch, request) -> type[ScriptedBench]:
    """The scripted bench, in the place of the real one; every cell succeeds."""
    scripted_bench(monkeypatch)
    monkeypatch.setattr(
        "gradbench.runner.preflight.DEFAULT_METERS", ("step_time", "peak_transient")
    )
    return ScriptedBench


@pytest.fixture
def scripted(pytester, bench, monkeypatch):
    """Return a function that runs an inner session with a scripted bench."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(recording, "write_page", a_plain_page)
    furnish(pytester.path)

    def run(*options: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess(*LEAN, "--gradbench-config=matrix.toml", "-v", *options)

    return run


def a_plain_page(run: Run, _results: Path, reports: Path, **_sections: object) -> Path:
    """Write a page without its figures, which take a second: what is on it, others ask."""
    reports.mkdir(parents=True, exist_ok=True)
    page = reports / f"{run.name}.html"
    page.write_text(run.name, "utf-8")
    return page


def refuse_training(member: Cell, *, cause: str, reason: str = "so it is") -> list[Outcome]:
    if member.workload != "training" or member.grad_mode == "global_on":
        return succeed(member)
    return [skipped(member, meter=m, cause=cause, reason=reason) for m in ("step_time", "peak_rss")]


def test_training_that_succeeds_where_nothing_is_recorded_turns_the_session_red(scripted):
    result = scripted()
    result.assert_outcomes(passed=5, failed=3, skipped=len(WITHOUT_CELLS))
    result.stdout.fnmatch_lines(["*XPASS(strict)*no graph under inference_mode*"])


def test_only_torchs_refusal_to_train_is_expected(scripted, bench):
    bench.script = partial(refuse_training, cause="cannot_train")
    scripted().assert_outcomes(passed=5, xfailed=3, skipped=len(WITHOUT_CELLS))


def test_training_that_fails_after_an_evaluation_alone_is_expected_and_may_succeed(
    scripted, bench, pytester
):
    matrix = MATRIX.replace('"inference", "training"', '"evaluate_then_train"')
    (pytester.path / "matrix.toml").write_text(matrix, "utf-8")

    def script(member: Cell) -> list[Outcome]:
        if member.grad_mode != "inference_mode":
            return succeed(member)
        return [skipped(member, meter="step_time", cause="cannot_train", reason="so it is")]

    bench.script = script
    result = scripted("-rx", "-k", "evaluate_then_train")
    result.assert_outcomes(passed=3, xfailed=1, deselected=2 + len(WITHOUT_CELLS) - 1)
    result.stdout.fnmatch_lines(["*after an evaluation under inference_mode: so it is*"])


@pytest.mark.parametrize("cause", ["failed", "crashed", "timed_out", "out_of_memory"])
def test_a_step_that_breaks_fails_its_test_even_where_training_must_fail(cause, scripted, bench):
    bench.script = partial(refuse_training, cause=cause, reason="ValueError: not like this")
    result = scripted()
    result.assert_outcomes(passed=5, failed=3, skipped=len(WITHOUT_CELLS))
    result.stdout.fnmatch_lines([f"*{cause.replace('_', ' ')}: ValueError: not like this*"])


@pytest.mark.parametrize("cause", ["unavailable", "impossible"])
def test_a_cell_that_cannot_be_here_is_skipped_with_its_reason(cause, scripted, bench):
    bench.script = lambda member: [skipped(member, cause=cause, reason="not on this machine")]
    result = scripted("-k", "test_inference and mlp_tiny", "-rs")
    result.assert_outcomes(skipped=4, deselected=4 + len(WITHOUT_CELLS))
    result.stdout.fnmatch_lines(["SKIPPED*not on this machine*"])


def test_a_block_is_measured_once_and_whole_for_all_its_tests(scripted, bench):
    scripted()
    assert bench.asked == [
        [cell(mode, batch_size=1, workload=workload) for mode in GRAD_MODES]
        for workload in ("inference", "training")
    ]


def test_k_measures_only_the_cells_it_leaves(scripted, bench):
    scripted("-k", "no_grad").assert_outcomes(passed=1, failed=1, deselected=6 + len(WITHOUT_CELLS))
    assert bench.asked == [
        [cell("no_grad", batch_size=1, workload=workload)] for workload in ("inference", "training")
    ]


def test_throughput_is_the_median_steps_as_in_the_table(scripted, pytester):
    scripted("-k", "test_inference and no_grad", "--benchmark-json=out.json")
    (benchmark,) = json.loads((pytester.path / "out.json").read_text("utf-8"))["benchmarks"]
    assert benchmark["extra_info"]["samples_per_s"] == pytest.approx(
        1 / benchmark["stats"]["median"], rel=1e-12
    )


def test_a_saved_session_is_compared_with_the_next(scripted):
    inference = ("-k", "test_inference and (no_grad or global_on)")
    scripted(*inference, "--benchmark-autosave")
    result = scripted(*inference, "--benchmark-compare")
    result.assert_outcomes(passed=2, deselected=6 + len(WITHOUT_CELLS))
    for mode in ("global_on", "no_grad"):
        for which in ("NOW", "0001_*"):
            result.stdout.fnmatch_lines([f"test_inference?cpu-mlp_tiny-b1-{mode}? ({which})*"])


def test_an_equal_session_passes_benchmark_compare_fail_and_a_slower_one_does_not(scripted, bench):
    inference = ("-k", "test_inference")
    against = ("--benchmark-compare", "--benchmark-compare-fail=min:5%")
    scripted(*inference, "--benchmark-autosave")
    assert scripted(*inference, *against).ret == pytest.ExitCode.OK
    bench.script = lambda member: [timed(member, [2 * v for v in VALUES], iterations=ITERATIONS)]
    assert scripted(*inference, *against).ret != pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("func", {"test_inference": 4}),
        ("group", {"inference[cpu-mlp_tiny-b1]": 4}),
        (
            "param:gradbench_cell",
            {f"gradbench_cell=inference[cpu-mlp_tiny-b1-{mode}]": 1 for mode in GRAD_MODES},
        ),
    ],
)
def test_benchmarks_can_be_grouped_by(by, groups, scripted):
    result = scripted("-k", "test_inference", f"--benchmark-group-by={by}")
    for group, size in groups.items():
        assert f"benchmark '{group}': {size} tests" in result.stdout.str()


def test_benchmark_skip_measures_nothing(scripted, bench, pytester):
    scripted("--benchmark-skip").assert_outcomes(skipped=8 + len(WITHOUT_CELLS))
    assert bench.asked == []
    assert not (pytester.path / "results").exists()


def test_records_and_page_go_where_the_options_say(scripted, pytester):
    scripted("-k", "test_inference", "--gradbench-results=a/b", "--gradbench-reports=c")
    assert len(list((pytester.path / "a/b").glob(f"*{SEALED}"))) == 1
    assert len(list((pytester.path / "c").glob("*.html"))) == 1
    assert not (pytester.path / "results").exists()


@pytest.mark.parametrize("option", ["config", "results", "reports"])
def test_an_empty_path_is_refused(option, scripted, pytester):
    """As a shell's unset variable leaves it: it would be the folder where we are."""
    answer = scripted(f"--gradbench-{option}= ")
    assert answer.ret == pytest.ExitCode.USAGE_ERROR
    assert "' ' names nothing: name one, or leave it out" in answer.stderr.str()
    assert not list(pytester.path.glob("**/*.jsonl"))


def test_what_cannot_be_written_in_the_end_is_one_line_and_no_traceback(scripted, monkeypatch):
    def full(*_, **__):
        raise StoreError("cannot write the page 'p': No space left on device\x1b[0m")

    monkeypatch.setattr(recording, "write_page", full)
    answer = scripted()
    assert answer.ret == pytest.ExitCode.INTERNAL_ERROR
    words = r"gradbench: cannot write the page 'p': No space left on device\x1b[0m"
    assert words in answer.stdout.lines
    assert "Traceback" not in answer.stdout.str() + answer.stderr.str()


def test_a_device_option_moves_the_matrix(scripted):
    result = scripted("--gradbench-device=cuda", "--collect-only", "-q")
    assert "test_inference[cuda-mlp_tiny-b1-no_grad]" in result.stdout.str()
    assert "cpu-" not in result.stdout.str()


def test_with_benchmarks_disabled_measuring_parents_are_started_once(scripted, bench):
    scripted("--benchmark-disable", "-k", "test_inference")
    assert bench.asked == [[cell(mode, batch_size=1)] for mode in GRAD_MODES]
    assert bench.made == 1


@pytest.mark.parametrize("index", [1, 2])
def test_a_shard_measures_whole_blocks_of_its_own_and_the_others_are_deselected(
    index, scripted, bench, pytester
):
    result = scripted(f"--gradbench-shard={index}/2")
    workload = ("inference", "training")[index - 1]
    assert bench.asked == [[cell(m, batch_size=1, workload=workload) for m in GRAD_MODES]]
    assert result.parseoutcomes()["deselected"] == 4
    (path,) = (pytester.path / "results").iterdir()
    assert load(path).header.shard == f"{index}/2"


def test_the_shards_share_what_k_leaves(scripted, bench):
    scripted("-k", "training and not NOTSET", "--gradbench-shard=1/1")
    assert bench.asked == [[cell(m, batch_size=1, workload="training") for m in GRAD_MODES]]


def test_a_run_knows_file_and_line_of_each_cell_s_test(scripted, pytester):
    scripted("-k", "test_inference")
    (path,) = (pytester.path / "results").iterdir()
    places = load(path).header.places
    assert set(places) == {str(cell(mode, batch_size=1)) for mode in GRAD_MODES}
    (place,) = set(places.values())
    file, _, line = place.rpartition(":")
    source = (pytester.path / file).read_text("utf-8").splitlines()
    assert "gradbench" in source[int(line) - 1] or "def test_inference" in source[int(line) - 1]


def test_pytest_benchmark_s_own_command_reads_what_it_saved(scripted, pytester):
    scripted("-k", "test_inference", "--benchmark-autosave")
    done = subprocess.run(
        [Path(sys.executable).with_name("pytest-benchmark"), "compare", "--columns=median,rounds"],
        cwd=pytester.path,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    for mode in GRAD_MODES:
        assert name_of(mode) in done.stdout


# Tests of the user's own


TRAINING = [name_of(mode, "mine") for mode in GRAD_MODES]


@pytest.mark.parametrize(
    ("marker", "ids"),
    [
        ("gradbench('training')", TRAINING),
        ("gradbench(workload='training')", TRAINING),
        pytest.param(
            "gradbench()",
            [
                f"test_mine[{workload}-cpu-mlp_tiny-b1-{mode}]"
                for workload in ("inference", "training")
                for mode in GRAD_MODES
            ],
        ),
    ],
)
def test_the_marker_chooses_cells_by_workload(marker, ids, pytester, scripted):
    path = pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.{marker}
        def test_mine(gradbench_cell): ...
        """
    )
    result = scripted("--collect-only", "-qq", str(path))
    assert [line.partition("::")[2] for line in result.outlines if "::" in line] == ids


def test_a_test_that_has_the_cell_and_does_not_measure_may_pass(pytester, scripted):
    path = pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gradbench("training")
        def test_mine(gradbench_cell):
            assert gradbench_cell.workload == "training"
        """
    )
    scripted(str(path)).assert_outcomes(passed=4)


# Mistakes


def usage_error(result: pytest.RunResult) -> str:
    """Return the one line that a mistake of the user's costs."""
    assert result.ret == USAGE_ERROR
    everything = [*result.outlines, *result.errlines]
    (line,) = (line for line in everything if "gradbench: " in line)
    assert not any("pytest_plugin.py" in line for line in everything)
    return line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gradbench-preset=tny"], "unknown preset 'tny': did you mean 'tiny'?"),
        (["--gradbench-device=cdua"], "unknown device 'cdua': did you mean 'cuda'?"),
        (["--gradbench-budget=0"], "--gradbench-budget must be above 0"),
        (["--gradbench-config=nowhere.toml"], "nowhere.toml: there is no such file"),
        (["--gradbench-shard=3/2"], "shard '3/2' is not like 2/3"),
        (["--gradbench-shard="], "shard '' is not like 2/3"),
        (["--gradbench-preset=tiny", "--gradbench-shard=1/99"], "a block is measured in one piece"),
        (
            ["--gradbench-config=typo.toml"],
            "typo.toml, line 2, models: unknown model 'mlp_tny': did you mean 'mlp_tiny'?",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_typo_costs_one_line_and_exit_status_4(options, words, pytester, bench):
    furnish(pytester.path)
    (pytester.path / "typo.toml").write_text('[[matrix]]\nmodels = ["mlp_tny"]\n', "utf-8")
    assert words in usage_error(pytester.runpytest_inprocess(*LEAN, *options))
    assert bench.asked == []


@pytest.mark.parametrize(
    ("mark", "arguments", "words"),
    [
        pytest.param(
            "@pytest.mark.gradbench('inference')", "benchmark", "ask for the fixture gradbench_cell"
        ),
        pytest.param(
            "@pytest.mark.gradbench('infer')", "gradbench_cell", "did you mean 'inference'?"
        ),
        pytest.param("", "gradbench", "pytest.mark.gradbench"),
    ],
    ids=["no fixture", "unknown workload", "no marker"],
)
def test_a_test_that_asks_wrongly_reads_what_is_missing(mark, arguments, words, pytester, scripted):
    path = pytester.makepyfile(f"import pytest\n\n{mark}\ndef test_mine({arguments}): ...\n")
    result = scripted(str(path))
    lines = [line for line in result.outlines if words in line]
    assert lines
    assert not any(" in _hookexec" in line for line in result.outlines)


def test_a_cell_that_is_not_measured_does_not_pass(pytester, scripted, bench):
    path = pytester.makepyfile(
        "import pytest\n\n@pytest.mark.gradbench('inference')\n"
        "def test_mine(gradbench_cell, gradbench): ...\n"
    )
    result = scripted(str(path))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes()["errors"] == 4
    result.stdout.fnmatch_lines(["*Failed: gradbench was asked for and not called, so nothing*"])
    assert bench.asked == []


def test_a_marked_method_of_unittest_is_refused_for_it_would_get_no_cell(pytester, scripted):
    path = pytester.makepyfile(
        "import unittest\nimport pytest\n\n@pytest.mark.gradbench('inference')\n"
        "class TestMine(unittest.TestCase):\n    def test_mine(self): ...\n"
    )
    assert "a method of unittest.TestCase gets no cells" in usage_error(scripted(str(path)))


@pytest.mark.parametrize("option", ["--gradbench-results", "--gradbench-reports"])
def test_a_folder_that_cannot_be_written_is_found_before_measuring(
    option, scripted, bench, pytester
):
    (pytester.path / "taken").write_text("a regular file", "utf-8")
    result = scripted("-k", "test_inference", f"{option}=taken", "--tb=native")
    assert option in usage_error(result)
    assert bench.asked == []


# The project's own root


@pytest.fixture
def checkout(pytester):
    """The root of a checkout, with one test in place of ours; returns what a session collects."""
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, pytester.path)
    shutil.copytree(
        ROOT / "benchmarks",
        pytester.path / "benchmarks",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    pytester.mkdir("tests").joinpath("test_ours.py").write_text("def test_ours(): ...\n", "utf-8")

    def collect(*options: str) -> set[str]:
        result = pytester.runpytest_inprocess(
            *LEAN, "--collect-only", "-q", "--gradbench-preset=tiny", *options
        )
        assert result.ret == pytest.ExitCode.OK
        return {line.partition("/")[0] for line in result.outlines if "::" in line}

    return collect


@pytest.mark.parametrize(
    ("options", "collected"),
    [
        pytest.param([], {"tests"}),
        pytest.param(["--benchmark-only"], {"benchmarks"}),
        (["tests"], {"tests"}),
        (["benchmarks"], {"benchmarks"}),
        (["benchmarks/test_grad_modes.py"], {"benchmarks"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_in_the_root_pytest_collects(options, collected, checkout):
    assert checkout(*options) == collected
