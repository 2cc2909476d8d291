"""A CI job with the real gate: a committed baseline, then a model that saves more for backward."""

import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from gradbench.records import Measurement
from gradbench.store import Store, load

CONFIG = """
[[matrix]]
models = ["mlp_tiny"]
grad_modes = ["global_on", "no_grad"]
batch_sizes = [{batch_size}]
[plan]
budget_s = 0.05
warmup_s = 0.02
"""


def gradbench(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "gradbench", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A baseline from one job's run, and what the next job found."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "bench.toml").write_text(CONFIG.format(batch_size=4), "utf-8")
    first = gradbench(folder, "ci", "--config", "bench.toml", "-o", "first")
    assert first.returncode == 0, first.stderr
    saved = gradbench(
        folder, "gate", "--save-baseline", "baseline.jsonl", "latest", "--results", "first/results"
    )
    assert saved.returncode == 0, saved.stderr
    asked = ("--config", "bench.toml", "--baseline", "baseline.jsonl", "-o", "second")
    return folder, gradbench(folder, "ci", *asked)


def test_the_same_code_is_green_against_its_own_baseline(job):
    folder, done = job
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gate: no regression" in done.stdout
    assert "## gradbench: 6 same" in (folder / "second" / "summary.md").read_text("utf-8")
    assert not (folder / "second" / "annotations.txt").read_text("utf-8").count("::error")


def test_what_grew_is_red_at_the_line_of_the_config(job, tmp_path):
    """A baseline whose bytes are lower stands for a change that made them grow."""
    folder, _ = job
    less = [
        replace(r, values=(r.values[0] - 1,)) if isinstance(r, Measurement) and r.values[0] else r
        for r in load(folder / "baseline.jsonl").records
    ]
    Store(folder / "lower").save(less)
    asked = ("--config", "bench.toml", "--baseline", "lower", "-o", "third")
    done = gradbench(folder, "ci", *asked)
    assert done.returncode == 1, done.stdout + done.stderr
    told = (folder / "third" / "annotations.txt").read_text("utf-8").splitlines()
    errors = [line for line in told if line.startswith("::error ")]
    assert len(errors) == 5, "no_grad saves nothing for backward, in the baseline too"
    assert all(line.startswith("::error file=bench.toml,line=3,title=") for line in errors)
    root = ET.parse(folder / "third" / "junit.xml").getroot()
    assert sum(int(suite.get("failures")) for suite in root) == 5
    assert "+1 B" in (folder / "third" / "summary.md").read_text("utf-8")


def test_without_a_comparable_baseline_the_job_is_red_and_says_so(job):
    folder, _ = job
    (folder / "other.toml").write_text(CONFIG.format(batch_size=2), "utf-8")
    asked = ("--config", "other.toml", "--baseline", "baseline.jsonl", "-o", "fourth")
    done = gradbench(folder, "ci", *asked)
    assert done.returncode == 4, done.stdout + done.stderr
    told = (folder / "fourth" / "annotations.txt").read_text("utf-8")
    assert "::error title=gradbench gate::no comparable baseline" in told
