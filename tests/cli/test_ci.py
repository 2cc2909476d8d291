"""A CI job: what it asks for, what it makes of what comes back, what it leaves."""

import json
import shutil
import subprocess
import sys

import pytest
from builders import cell, measured_block, run as run_of_outcomes, skipped
from patience import PATIENCE_S
from typer.testing import CliRunner

from gradbench import ci_job
from gradbench.ci_job import Ended, Part, gravest, parts, perform
from gradbench.cli import app
from gradbench.errors import StoreError, UnknownName
from gradbench.exit_status import ExitStatus
from gradbench.exports.source_locations import SourceLocation
from gradbench.store.jsonl import Store

AT = SourceLocation("bench.toml", 3)


def row(verdict="worse", mode="no_grad", meter="peak_transient"):
    return {
        "cell": cell(mode).axes(),
        "meter": meter,
        "verdict": verdict,
        "change": None,
        "baseline": 4096.0,
        "candidate": 4100.0,
        "unit": "bytes",
        "reason": "4 bytes more",
    }


class Calls:
    """Stands for the processes: a run is saved, the others print what the script has."""

    def __init__(self, folder, *, outcomes=None, **script):
        self.folder, self.outcomes, self.script = folder, outcomes, script
        self.asked = []

    def __call__(self, part: Part) -> Ended:
        self.asked.append(part.name)
        if part.name == "run" and "run" not in self.script:
            made = run_of_outcomes(self.outcomes or measured_block())
            Store(self.folder / ci_job.RESULTS).save(made.records)
            return Ended(0, "")
        status, rows = self.script.get(part.name, (0, []))
        output = json.dumps({"verdicts": rows}) if rows is not None else "a mistake"
        return Ended(status, output)


def do(folder, calls, **asked):
    wanted = parts(["--preset", "tiny"], folder=folder, **asked)
    return perform(wanted, folder=folder, call=calls, locator=lambda _runs: lambda _cell: AT)


def test_a_job_runs_gates_and_compares_what_it_was_asked_for(tmp_path):
    wanted = parts(
        ["--preset", "tiny"],
        folder=tmp_path,
        base="main",
        baselines=["a.jsonl", "b.jsonl"],
        fail_on="inconclusive",
    )
    results = ("--results", str(tmp_path / "results"))
    assert [part.arguments for part in wanted] == [
        ("run", "--preset", "tiny", *results, "--reports", str(tmp_path)),
        (
            *("gate", "--baseline", "a.jsonl", "--baseline", "b.jsonl", "latest"),
            *(*results, "--json", "--strict"),
        ),
        ("compare", "--base", "main", "--preset", "tiny", "--json", "--strict"),
    ]


def test_without_base_and_baseline_a_job_only_measures(tmp_path):
    assert [part.name for part in parts([], folder=tmp_path)] == ["run"]
    with pytest.raises(UnknownName, match="did you mean 'regression'"):
        parts([], folder=tmp_path, fail_on="regresion")


def test_a_job_examines_what_the_modes_do_unless_that_is_left_out(tmp_path):
    (full,), (less,) = (
        parts([], folder=tmp_path, semantics=semantics) for semantics in (True, False)
    )
    assert less.arguments == (*full.arguments, "--no-semantics")


def test_a_job_leaves_run_verdicts_summary_annotations_and_junit(tmp_path):
    calls = Calls(tmp_path, gate=(1, [row()]), compare=(0, [row("same", meter="step_time")]))
    job = do(tmp_path, calls, base="main", baselines=["b.jsonl"])
    assert calls.asked == ["run", "gate", "compare"]
    assert (job.status, job.statuses["compare"]) == (1, 0)
    summary = job.summary.read_text("utf-8")
    assert summary.startswith(
        "run: done; gate: a regression; compare: no regression\n\n## gradbench: 1 worse, 1 same\n"
    )
    assert "### Step time" in summary
    line, *_ = job.annotations.read_text("utf-8").splitlines()
    assert line.startswith("::error file=bench.toml,line=3,title=")
    assert line.endswith("4,096 B → 4,100 B: 4 bytes more")
    assert 'failures="1"' in job.junit.read_text("utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results", "gate.json", "compare.json"),
        *("summary.md", "annotations.txt", "junit.xml"),
    }


def test_a_figure_that_gate_and_compare_judge_alike_is_one_row(tmp_path):
    saved = row("same", meter="saved_for_backward")
    calls = Calls(tmp_path, gate=(1, [saved, row()]), compare=(0, [saved | {"reason": "equal"}]))
    job = do(tmp_path, calls, base="main", baselines=["b.jsonl"])
    summary = job.summary.read_text("utf-8")
    assert "## gradbench: 1 worse, 1 same\n" in summary
    assert summary.count("| saved_for_backward |") == 1
    assert 'tests="2"' in job.junit.read_text("utf-8")


def test_a_figure_whose_base_is_not_the_baseline_has_a_row_for_each(tmp_path):
    saved = row("same", meter="saved_for_backward")
    grown = saved | {"verdict": "worse", "baseline": 4000.0}
    calls = Calls(tmp_path, gate=(0, [saved]), compare=(1, [grown]))
    job = do(tmp_path, calls, base="main", baselines=["b.jsonl"])
    assert job.summary.read_text("utf-8").count("| saved_for_backward |") == 2


def test_a_step_that_broke_is_annotated_beside_the_verdicts(tmp_path):
    broken = skipped(cell(batch_size=1), cause="crashed", reason="signal 11")
    calls = Calls(tmp_path, outcomes=[*measured_block(), broken], gate=(0, [row("same")]))
    job = do(tmp_path, calls, baselines=["b.jsonl"])
    assert "crashed::signal 11 (step_time)" in job.annotations.read_text("utf-8")


def test_a_run_in_which_every_step_broke_is_reported(tmp_path):
    broken = [skipped(cell(), meter=m, cause="crashed", reason="signal 11") for m in ("a", "b")]
    job = do(tmp_path, Calls(tmp_path, outcomes=broken))
    assert 'errors="2"' in job.junit.read_text("utf-8")
    assert "signal 11 (a, b)" in job.annotations.read_text("utf-8")
    assert "signal 11" in job.summary.read_text("utf-8")


def test_of_a_run_that_was_killed_what_there_is_is_reported(tmp_path):
    def call(part):
        with Store(tmp_path / ci_job.RESULTS).create() as writer:
            for record in run_of_outcomes(measured_block()).records[:3]:
                writer.write(record)
        return Ended(-9, "")

    job = do(tmp_path, call)
    assert job.exit_status("never") == -9
    written = job.summary.read_text("utf-8")
    assert written.startswith("run: killed by SIGKILL\n")
    assert "the run was cut short" in written


def test_a_gate_without_a_run_is_left_out_and_the_comparison_is_not(tmp_path):
    calls = Calls(tmp_path, run=(2, None), compare=(0, [row("same")]))
    job = do(tmp_path, calls, base="main", baselines=["b.jsonl"])
    assert calls.asked == ["run", "compare"]
    assert job.status == ExitStatus.USAGE
    assert "::error title=gradbench run::a mistake" in job.annotations.read_text("utf-8")


def test_a_part_that_printed_no_verdicts_is_reported_by_its_status(tmp_path):
    calls = Calls(tmp_path, gate=(4, None), compare=(-9, None))
    job = do(tmp_path, calls, base="main", baselines=["b.jsonl"])
    assert job.status == -9
    written = job.annotations.read_text("utf-8")
    assert "::error title=gradbench gate::no comparable baseline" in written
    assert "::error title=gradbench compare::killed by SIGKILL" in written
    assert not (tmp_path / "gate.json").exists()
    assert "tests=" in job.junit.read_text("utf-8"), "then the run itself is reported"


def test_a_job_of_nothing_but_mistakes_still_leaves_its_summary(tmp_path):
    job = do(tmp_path, Calls(tmp_path, run=(2, None)))
    assert job.summary.read_text("utf-8") == "run: a mistake in what was asked\n\n"
    assert not job.junit.exists()


def test_a_folder_with_another_job_s_run_is_refused(tmp_path):
    do(tmp_path, Calls(tmp_path))
    with pytest.raises(StoreError, match="holds the run of another job"):
        do(tmp_path, Calls(tmp_path))


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        ([], 0),
        ([0, 3], 3),
        ([3, 4], 4),
        ([4, 5], 5),
        ([5, 1], 1),
        ([1, 2], 2),
        ([2, 137], 137),
        ([0, -9], -9),
    ],
)
def test_the_gravest_status_is_the_job_s(statuses, worst):
    assert gravest(statuses) == gravest(reversed(statuses)) == worst


@pytest.mark.parametrize(
    ("status", "regression", "inconclusive", "never"),
    [
        (0, 0, 0, 0),
        (1, 1, 1, 0),
        (2, 2, 2, 2),
        (3, 0, 3, 0),
        (4, 4, 4, 0),
        (5, 5, 5, 0),
        (70, 70, 70, 70),
        (130, 130, 130, 130),
    ],
)
def test_what_a_job_fails_on_is_chosen(status, regression, inconclusive, never, tmp_path):
    job = do(tmp_path, Calls(tmp_path, gate=(status, [row()])), baselines=["b.jsonl"])
    assert [job.exit_status(on) for on in ci_job.FAIL_ON] == [regression, inconclusive, never]


@pytest.mark.parametrize("name", ["run", "gate", "compare"])
@pytest.mark.parametrize("status", [1, 3, 70])
def test_a_part_that_broke_is_no_verdict_and_is_never_forgiven(name, status, tmp_path):
    """A program that cannot so much as start ends with 1, as a regression does."""
    calls = Calls(tmp_path, **{name: (status, None)})
    job = do(tmp_path, calls, base="main", baselines=["b.jsonl"])
    assert job.statuses[name] == ExitStatus.BROKEN
    assert [job.exit_status(on) for on in ci_job.FAIL_ON] == [ExitStatus.BROKEN] * 3
    assert f"{name}: broke" in job.words
    assert "a regression" not in job.words
    written = job.annotations.read_text("utf-8")
    assert f"::error title=gradbench {name}::broke" in written


def test_a_part_that_ends_well_without_its_verdicts_broke(tmp_path):
    job = do(tmp_path, Calls(tmp_path, gate=(0, None)), baselines=["b.jsonl"])
    assert job.statuses == {"run": ExitStatus.OK, "gate": ExitStatus.BROKEN}


# The command


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Return the command called beside a baseline ``b.jsonl``, where processes are scripted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    saved = Store(tmp_path / "before").save(run_of_outcomes(measured_block()).records)
    shutil.copy(Store(tmp_path / "before").find(saved.name), "b.jsonl")
    for variable in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(variable, raising=False)

    def call(*arguments, **script):
        call.asked = calls = Calls(tmp_path / "gradbench-ci", **script)
        monkeypatch.setattr("gradbench.cli.ci._call", calls)
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["ci", *arguments])

    return call


def test_under_github_summary_annotations_and_outputs_go_where_it_looks(
    command, tmp_path, monkeypatch
):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    (tmp_path / "step.md").write_text("before\n", "utf-8")
    result = command("--baseline", "b.jsonl", gate=(1, [row()]))
    assert result.exit_code == 1
    assert (
        "::error title=inference[cpu-mlp_tiny-b8-no_grad] peak_transient worse::" in result.stdout
    )
    assert (tmp_path / "step.md").read_text("utf-8").startswith("before\nrun: done; gate:")
    assert (tmp_path / "output").read_text("utf-8") == "status=1\nfolder=gradbench-ci\n"


def test_elsewhere_the_console_prints_the_result_and_where_it_is_written(command):
    result = command("--fail-on", "never", "--baseline", "b.jsonl", gate=(1, [row()]))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "run: done; gate: a regression",
        "summary  gradbench-ci/summary.md",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fail-on", "nevr"], "did you mean 'never'?"),
        (["--base", ""], "--base '' has an empty value"),
        (["--base", "main"], "is in no git repository"),
        (["--config", "nowhere.toml"], "nowhere.toml: there is no such file"),
        (["--baseline", "damaged.jsonl"], "damaged.jsonl"),
    ],
)
def test_a_mistake_costs_a_line_before_anything_is_measured(arguments, words, command, tmp_path):
    (tmp_path / "damaged.jsonl").write_text("{}\n", "utf-8")
    result = command(*arguments)
    assert result.exit_code == ExitStatus.USAGE
    assert words in result.stderr
    assert not (tmp_path / "gradbench-ci").exists()


@pytest.mark.parametrize(
    "name", ["nowhere", "nowhere.jsonl", "no-*.jsonl", "nothing/nowhere.jsonl"]
)
def test_a_baseline_that_is_not_there_is_said_before_anything_is_measured(name, command):
    result = command("--baseline", name)
    assert result.exit_code == ExitStatus.NO_BASELINE
    (line,) = result.stderr.splitlines()
    assert line.startswith("gradbench: no baseline: no run ")
    assert name in line
    assert command.asked.asked == []


def test_a_job_that_looks_on_measures_where_there_is_no_baseline_yet(command):
    result = command("--baseline", "nowhere", "--fail-on", "never", gate=(4, None))
    assert result.exit_code == ExitStatus.OK
    assert command.asked.asked == ["run", "gate"]


def test_a_revision_that_is_none_is_said_before_anything_is_measured(command, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    result = command("--base", "nothere")
    assert result.exit_code == ExitStatus.USAGE
    assert "no revision 'nothere'" in result.stderr
    assert command.asked.asked == []


def test_the_options_that_choose_cells_are_handed_on_as_they_were_given(
    command, monkeypatch, tmp_path
):
    seen = []

    def note(what, **_options):
        seen.append(what)
        return []

    monkeypatch.setattr(ci_job, "parts", note)
    command("--preset", "tiny", "--model", "mlp_tiny,p.q:make", "--input", "8,3", "--threads", "2")
    matrix = '[[matrix]]\nmodels = ["mlp_tiny"]\n'
    (tmp_path / "x.toml").write_text(matrix, "utf-8")
    command("--config", "x.toml")
    assert seen == [
        [
            *("--preset", "tiny", "--model", "mlp_tiny", "--model", "p.q:make"),
            *("--threads", "2", "--input", "8,3"),
        ],
        ["--config", "x.toml"],
    ]


@pytest.mark.slow
def test_a_real_job_measures_in_a_process_of_its_own(tmp_path):
    config = (
        '[[matrix]]\nmodels = ["mlp_tiny"]\ngrad_modes = ["no_grad"]\nbatch_sizes = [8]\n'
        "[plan]\nbudget_s = 0.05\nwarmup_s = 0.02\n"
    )
    (tmp_path / "bench.toml").write_text(config, "utf-8")
    done = subprocess.run(
        [*(sys.executable, "-m", "gradbench", "ci"), "--config", "bench.toml", "--no-semantics"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "run: done" in done.stdout
    folder = tmp_path / "gradbench-ci"
    assert "inference[cpu-mlp_tiny-b8]" in (folder / "summary.md").read_text("utf-8")
    assert len(list((folder / "results").glob("*.jsonl"))) == 1
    assert len(list(folder.glob("*.html"))) == 1
