"""A CI job with the real gate: a committed baseline, then a run that needs one byte more."""

import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from builders import counted, environment, measured_block, run_of, started
from typer.testing import CliRunner

from gradbench import ci_job
from gradbench.ci_job import Ended, Part, parts, perform
from gradbench.cli import app
from gradbench.exit_status import ExitStatus
from gradbench.experiment.plan import PROTOCOL
from gradbench.exports.source_locations import locator
from gradbench.records.measurements import Environment, Measurement
from gradbench.store.jsonl import Store

FACTS = {"protocol": PROTOCOL, "cpu_capability": "AVX2", "cpu": "X", "host": "ci"}
METERS = ("step_time", "peak_transient", "saved_for_backward")


def measured(**facts):
    """Return a run of one block, with the line of a test for each of its cells."""
    outcomes = measured_block()
    saved = [
        counted(outcome.cell, 512, meter="saved_for_backward")
        for outcome in outcomes
        if outcome.meter == "step_time"
    ]
    cells = dict.fromkeys(outcome.cell for outcome in outcomes)
    opening = started(cells, meters=METERS, places={str(one): "test_x.py:3" for one in cells})
    return run_of([opening, environment(**FACTS | facts), *outcomes, *saved])


def of_another_model():
    """Return a run that shares no cell with the others."""
    outcomes = measured_block(model="mlp_deep")
    cells = dict.fromkeys(outcome.cell for outcome in outcomes)
    return run_of([started(cells, meters=METERS), environment(**FACTS), *outcomes])


def needing_more(run):
    """Return the run with one byte more in every deterministic metric."""
    return [
        replace(r, values=(r.values[0] + 1,)) if isinstance(r, Measurement) and r.exact else r
        for r in run.records
    ]


@pytest.fixture
def baseline(tmp_path):
    """A baseline as the real gate saves it."""
    Store(tmp_path / "before").save(measured().records)
    asked = ["gate", "--save-baseline", str(tmp_path / "baseline.jsonl"), "latest"]
    saved = CliRunner().invoke(app, [*asked, "--results", str(tmp_path / "before")])
    assert saved.exit_code == 0, saved.output
    return tmp_path / "baseline.jsonl"


def job(folder, records, baseline):
    """Return a job whose run is given and whose gate is real."""

    def call(part: Part) -> Ended:
        if part.name == "run":
            Store(folder / ci_job.RESULTS).save(records)
            return Ended(0, "")
        done = CliRunner().invoke(app, list(part.arguments))
        return Ended(done.exit_code, done.stdout)

    wanted = parts([], folder=folder, baselines=[str(baseline)])
    return perform(wanted, folder=folder, call=call, locator=lambda runs: locator(runs, folder))


def test_the_same_figures_are_green(baseline, tmp_path):
    done = job(tmp_path / "job", measured().records, baseline)
    assert (done.words, done.exit_status("regression")) == ("run: done; gate: no regression", 0)
    assert "## gradbench: 8 same" in done.summary.read_text("utf-8")
    assert "::error" not in done.annotations.read_text("utf-8")


def test_a_byte_more_is_red_at_the_line_of_the_test(baseline, tmp_path):
    done = job(tmp_path / "job", needing_more(measured()), baseline)
    assert done.exit_status("regression") == 1
    errors = [
        line
        for line in done.annotations.read_text("utf-8").splitlines()
        if line.startswith("::error ")
    ]
    assert len(errors) == 8
    assert all(line.startswith("::error file=test_x.py,line=3,title=") for line in errors)
    root = ET.parse(done.junit).getroot()
    assert sum(int(suite.get("failures")) for suite in root) == 8
    assert done.summary.read_text("utf-8").count("+1 B") == 8
    statuses = json.loads((tmp_path / "job" / "gate.json").read_text("utf-8"))
    assert statuses["status"] == 1


def test_without_a_comparable_baseline_the_job_is_red_and_says_so(baseline, tmp_path):
    other = [
        environment(**FACTS | {"torch": "1.0"}) if isinstance(r, Environment) else r
        for r in measured().records
    ]
    done = job(tmp_path / "job", other, baseline)
    assert done.exit_status("regression") == 4
    written = done.annotations.read_text("utf-8")
    assert "::error title=gradbench gate::no comparable baseline" in written
    assert "What has no verdict, and why" in done.summary.read_text("utf-8")
    assert "torch release was '2.13.0', is '1.0'" in done.summary.read_text("utf-8")


def test_a_run_is_not_gated_against_itself(baseline, tmp_path):
    folder = tmp_path / "before"
    options = ["--results", str(folder)]
    itself = CliRunner().invoke(app, ["gate", "--baseline", "latest", *options])
    assert (itself.exit_code, itself.stdout) == (ExitStatus.USAGE, "")
    (line,) = itself.stderr.splitlines()
    assert "is on both sides, and a run is always equal to itself: give another" in line
    other = CliRunner().invoke(app, ["gate", "--baseline", str(baseline), *options])
    assert (other.exit_code, other.stderr) == (ExitStatus.OK, "")


def test_the_run_before_is_proposed_and_of_a_folder_of_both_it_is_the_baseline(baseline, tmp_path):
    folder = tmp_path / "before"
    (first,), _ = Store(folder).load_all()
    Store(folder).save(of_another_model().records)
    latest = Store(folder).save(needing_more(measured()))
    options = ["--results", str(folder)]
    itself = CliRunner().invoke(app, ["gate", "--baseline", "latest", *options])
    assert itself.stderr.rstrip().endswith(f"such as the run before it, {first.name}")
    answer = CliRunner().invoke(app, ["gate", "--baseline", str(folder), *options])
    assert answer.exit_code == ExitStatus.REGRESSION
    assert f"{latest.name} is the candidate: it is left out of the baseline" in answer.stderr
