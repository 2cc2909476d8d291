"""What we export, taken by the tools themselves; otava only where it is installed."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from builders import counted, ended, environment, measured_block, refused_block, run_of, started
from patience import PATIENCE_S

from gradbench.exports.formats import export, write
from gradbench.exports.otava import CONFIG

COMMITS = 24
STEP = 12
"""The commit from which on no_grad takes a fifth longer."""


def tool(name: str) -> str | None:
    """Return a tool's path: $GRADBENCH_OTAVA for one that lives in an environment of its own."""
    beside = Path(sys.executable).with_name(name)
    return os.environ.get(f"GRADBENCH_{name.upper()}") or (
        str(beside) if beside.exists() else shutil.which(name)
    )


def call(*arguments: object, cwd: Path) -> str:
    """Return what a tool printed; it must have succeeded."""
    done = subprocess.run(
        list(map(str, arguments)),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git(*arguments: str, cwd: Path) -> str:
    nobody = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid")
    return call("git", *nobody, *arguments, cwd=cwd).strip()


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A repository of some commits and a run of each, with a step in one mode's time."""
    folder = tmp_path_factory.mktemp("history")
    git("init", "-q", "-b", "main", ".", cwd=folder)
    runs = []
    for number in range(COMMITS):
        git("commit", "-q", "--allow-empty", "-m", f"commit {number}", cwd=folder)
        slow = 1.2 if number >= STEP else 1.0
        outcomes = [
            *measured_block(step_ns={"no_grad": int((1500 + number % 3) * slow)}),
            *refused_block(),
        ]
        then = datetime.now(UTC) - timedelta(days=COMMITS - number)
        opening = started(
            dict.fromkeys(o.cell for o in outcomes),
            meters=("step_time", "peak_transient"),
            started_at=then.isoformat(timespec="seconds"),
        )
        facts = environment(
            git_commit=git("rev-parse", "HEAD", cwd=folder), host="ci", cpu="X", python="3.11.7"
        )
        records = [opening, facts, *outcomes, ended()]
        runs.append(run_of(records, name=f"r{number:02d}"))
    return folder, runs


def test_asv_publishes_our_results_and_finds_the_regression(history):
    folder, runs = history
    write(export("asv", runs), folder / "results", folder=True)
    configuration = {
        "version": 1,
        "project": "gradbench",
        "repo": ".",
        "branches": ["main"],
        "results_dir": "results",
        "html_dir": "html",
        "environment_type": "existing",
    }
    (folder / "asv.conf.json").write_text(json.dumps(configuration), "utf-8")
    call(sys.executable, "-m", "asv", "publish", "--no-pull", cwd=folder)
    index = json.loads((folder / "html" / "index.json").read_text("utf-8"))
    names = {name.partition(".")[2] for name in index["benchmarks"]}
    assert names == {"cpu-mlp_tiny-b8.step_time", "cpu-mlp_tiny-b8.peak_transient"}
    assert len(index["revision_to_hash"]) == COMMITS
    found = json.loads((folder / "html" / "regressions.json").read_text("utf-8"))["regressions"]
    ((name, *_),) = found
    assert name == "inference.cpu-mlp_tiny-b8.step_time('no_grad')"


def test_pyperf_compares_two_of_our_files(history, tmp_path):
    _, runs = history
    for name, chosen in (("before", runs[0]), ("after", runs[-1])):
        write(export("pyperf", [chosen]), tmp_path / f"{name}.json", folder=False)
    output = call(
        sys.executable, "-m", "pyperf", "compare_to", "before.json", "after.json", cwd=tmp_path
    )
    (line,) = (line for line in output.splitlines() if "no_grad] step_time" in line)
    assert line.endswith("1.20x slower")
    assert "[before] 1024 bytes -> [after] 1024 bytes: no change" in output
    assert "ERROR: " not in output


def test_pyperf_shows_a_byte_more(history, tmp_path):
    _, runs = history
    before = [counted(runs[0].outcomes[0].cell, size) for size in (1024, 1025)]
    for outcome, name in zip(before, ("before", "after"), strict=True):
        chosen = run_of([started([outcome.cell]), environment(), outcome])
        write(export("pyperf", [chosen]), tmp_path / f"{name}.json", folder=False)
    output = call(
        sys.executable, "-m", "pyperf", "compare_to", "before.json", "after.json", cwd=tmp_path
    )
    assert "[before] 1024 bytes -> [after] 1025 bytes: 1.00x slower" in output


@pytest.mark.slow
@pytest.mark.skipif(
    tool("otava") is None,
    reason="apache-otava pins an old numpy: install it apart and name it in GRADBENCH_OTAVA",
)
def test_otava_analyzes_our_tables_and_finds_the_step(history, tmp_path):
    _, runs = history
    write(export("otava", runs), tmp_path, folder=True)
    otava = tool("otava")
    configured = ("--config-file", CONFIG)
    assert "VALID" in subprocess.run(
        [otava, "validate", *configured], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stderr.replace("INVALID", "")
    output = call(otava, "analyze", *configured, "all", "--output", "json", cwd=tmp_path)
    changed = {
        name: [
            (change["metric"].rpartition(".")[2], change["index"]) for change in point["changes"]
        ]
        for line in output.splitlines()
        for name, points in json.loads(line).items()
        for point in points
    }
    assert changed == {
        "inference-cpu-mlp_tiny-b8-no_grad-times": [("step_time", STEP)],
        "inference-cpu-mlp_tiny-b8-no_grad": [("step_time_to_global_on", STEP)],
    }
