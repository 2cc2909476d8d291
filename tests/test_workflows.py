"""Workflow files, the composite action, its scripts: what GitHub would say of them, asked here."""

import configparser
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import click.testing
import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from typer.testing import CliRunner

from gradbench.ci_job import FAIL_ON
from gradbench.cli import app
from gradbench.experiment.presets import PRESETS

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTION = ROOT / "action.yml"
PAGE = ROOT / "docs" / "ci.md"
KEEP = ROOT / ".ci" / "keep-history"


def check(schema: str, path: Path) -> click.testing.Result:
    runner = click.testing.CliRunner()
    return runner.invoke(check_jsonschema, ["--builtin-schema", schema, str(path)])


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text("utf-8"))


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of docs/ci.md in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_fits_github_s_schema(path):
    done = check("vendor.github-workflows", path)
    assert done.exit_code == 0, done.output


def test_the_action_fits_github_s_schema():
    done = check("vendor.github-actions", ACTION)
    assert done.exit_code == 0, done.output


def test_the_schemas_can_refuse(tmp_path):
    broken = tmp_path / "broken.yml"
    broken.write_text("on: push\njobs:\n  a:\n    runs_on: ubuntu-latest\n", "utf-8")
    assert check("vendor.github-workflows", broken).exit_code == 1
    assert check("vendor.github-actions", broken).exit_code == 1


@pytest.mark.parametrize("path", [*WORKFLOWS, ACTION], ids=lambda path: path.name)
def test_no_script_is_pasted_together_from_expressions(path):
    """What an expression yields is data: it reaches a script through its environment."""
    content = read(path)
    jobs = content.get("jobs", {"action": content.get("runs", {})})
    scripts = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert scripts
    assert [script for script in scripts if "${{" in script] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_s_token_may_only_read_unless_a_job_says_why(path):
    content = read(path)
    assert content["permissions"] == {"contents": "read"}
    writing = {name for name, job in content["jobs"].items() if "permissions" in job}
    assert writing <= {"record"}


def test_a_pull_request_s_job_can_do_with_a_fork_s_token():
    gate = read(ROOT / ".github/workflows/benchmarks.yml")["jobs"]["gate"]
    assert "permissions" not in gate
    assert "secrets" not in str(gate)
    assert "github.token" not in str(gate)


def test_our_workflow_asks_the_action_for_inputs_that_it_has():
    known = read(ACTION)["inputs"]
    jobs = read(ROOT / ".github/workflows/benchmarks.yml")["jobs"]
    steps = [s for job in jobs.values() for s in job["steps"] if s.get("uses") == "./"]
    assert len(steps) == 2
    for step in steps:
        assert set(step["with"]) <= set(known)
        assert step["with"]["preset"] in PRESETS
        assert step["with"].get("fail-on", "regression") in FAIL_ON


@pytest.mark.parametrize("path", [*WORKFLOWS, ACTION], ids=lambda path: path.name)
def test_an_action_of_others_is_pinned_to_a_commit_and_says_its_version(path):
    """A tag can be moved to other code; a commit cannot."""
    used = re.findall(r"uses: (?!\./)(.*)", path.read_text("utf-8"))
    assert used
    assert [one for one in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", one)] == []


def test_a_job_that_uses_this_checkout_s_action_has_checked_it_out_first():
    for path in WORKFLOWS:
        for job in read(path)["jobs"].values():
            uses = [step.get("uses", "") for step in job["steps"]]
            assert uses[0].startswith("actions/checkout@")


def test_torch_comes_from_the_index_of_cpu_builds_but_where_the_gpu_is_simulated():
    """The default index has the build for CUDA, of gigabytes."""
    jobs = read(ROOT / ".github/workflows/nightly.yml")["jobs"]
    indexes = {name: job.get("env", {}).get("PIP_EXTRA_INDEX_URL") for name, job in jobs.items()}
    assert indexes.pop("simulated-cuda") is None
    assert set(indexes.values()) == {read(ACTION)["inputs"]["torch-index"]["default"]}


# The action's own script, run as GitHub would


def script_of(name: str) -> str:
    (step,) = (s for s in read(ACTION)["runs"]["steps"] if s.get("name") == name)
    return step["run"]


@pytest.mark.parametrize(
    ("inputs", "arguments"),
    [
        ({}, ["--preset", "tiny"]),
        ({"CONFIG": "a b.toml"}, ["--config", "a b.toml"]),
        (
            {"OPTIONS": "--model a.b:make --input 8,3"},
            ["--preset", "tiny", "--model", "a.b:make", "--input", "8,3"],
        ),
        (
            {"OPTIONS": "--model a.b:make\n  --input 8,3\n"},
            ["--preset", "tiny", "--model", "a.b:make", "--input", "8,3"],
        ),
        (
            {"BASELINE": "a.jsonl\nb.jsonl\n"},
            ["--preset", "tiny", "--baseline", "a.jsonl", "--baseline", "b.jsonl"],
        ),
        ({"BASE": "abc"}, ["--preset", "tiny", "--base", "abc"]),
        ({"BASE": "none"}, ["--preset", "tiny"]),
        (
            {"BASELINE": "a.jsonl b.jsonl"},
            ["--preset", "tiny", "--baseline", "a.jsonl", "--baseline", "b.jsonl"],
        ),
        ({"PRESET": "$(touch pwned); x"}, ["--preset", "$(touch pwned); x"]),
    ],
)
def test_the_action_asks_gradbench_for_what_its_inputs_say(inputs, arguments, tmp_path):
    stub = tmp_path / "bin" / "gradbench"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\nexit 4\n', "utf-8")
    stub.chmod(0o755)
    settings = {"PRESET": "tiny", "FAIL_ON": "never", "FOLDER": "out dir"}
    empty = dict.fromkeys(("CONFIG", "OPTIONS", "BASE", "BASELINE", "CAPABILITY"), "")
    done = subprocess.run(
        [
            "bash",
            "--noprofile",
            "--norc",
            "-eo",
            "pipefail",
            "-c",
            script_of("Measure, gate and compare"),
        ],
        cwd=tmp_path,
        env={"PATH": f"{stub.parent}:{os.environ['PATH']}"} | empty | settings | inputs,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["ci", "--fail-on", "never", "-o", "out dir", *arguments]
    assert done.returncode == 4, "the status is the job's"
    assert not (tmp_path / "pwned").exists()


# Before a commit, and in CI


def test_before_a_commit_runs_what_ci_runs():
    """The same words, so that no version or option of a linter is known in two places."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "tox.ini", "utf-8")
    asked = [
        command
        for name in ("lint", "types", "layers")
        for command in settings[f"testenv:{name}"]["commands"].strip().splitlines()
    ]
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == asked
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}


def test_the_linters_of_a_commit_are_the_project_s_own():
    """tox takes two of them alone: with the same bounds as the extra that brings them all."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    bounds = set(extra["project"]["optional-dependencies"]["dev"])
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "tox.ini", "utf-8")
    assert {settings[f"testenv:{name}"]["deps"] for name in ("lint", "layers")} <= bounds
    assert any(text.startswith("mypy") for text in bounds)


def test_every_night_the_least_versions_are_tried_that_the_package_takes():
    """But for torch's, which the simulated CUDA runtime is tried with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    least = {text.replace(">=", "==") for text in project["dependencies"] if "torch" not in text}
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "tox.ini", "utf-8")
    assert set(settings["testenv:least"]["deps"].split()) == least
    assert "tox -e least" in (ROOT / ".github/workflows/nightly.yml").read_text("utf-8")


def test_ci_runs_every_environment_that_is_run_by_default():
    """By tox or, in an environment that is there, by the environment's own command."""
    script = (ROOT / ".ci/run").read_text("utf-8")
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "tox.ini", "utf-8")
    for name in settings["tox"]["env_list"].split(", "):
        command = settings.get(f"testenv:{name}", "commands", fallback="").strip()
        words = command.partition(" --durations")[0]
        assert (words and words in script) or re.search(rf"tox -e [\w,]*\b{name}\b", script), name


# Keeping history


@pytest.fixture
def remote(tmp_path):
    path = tmp_path / "remote.git"
    subprocess.run(["git", "init", "--quiet", "--bare", path], check=True)
    return path


def keep(tmp_path, remote, name):
    """Keep one run from a job of its own."""
    job = tmp_path / f"job-{name}"
    (job / "results").mkdir(parents=True)
    (job / "results" / f"{name}.jsonl").write_text(f"{name}\n", "utf-8")
    return subprocess.run(
        ["bash", str(KEEP), "results"],
        cwd=job,
        env=os.environ | {"REMOTE": str(remote), "RUNNER_TEMP": str(job), "GITHUB_SHA": "0" * 40},
        capture_output=True,
        text=True,
        check=False,
    )


def kept(remote):
    done = subprocess.run(
        ["git", "-C", remote, "ls-tree", "--name-only", "gradbench-history"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_history_keeps_every_job_s_runs_on_a_branch(tmp_path, remote):
    for name in ("one", "two"):
        done = keep(tmp_path, remote, name)
        assert done.returncode == 0, done.stderr
    assert kept(remote) == ["one.jsonl", "two.jsonl"]
    again = keep(tmp_path / "later", remote, "two")
    assert again.returncode == 0, again.stderr
    assert kept(remote) == ["one.jsonl", "two.jsonl"]


def test_a_job_that_was_overtaken_fetches_and_pushes_again(tmp_path, remote):
    """The remote refuses the first push, as it does when another job's came in between."""
    keep(tmp_path, remote, "one")
    hook = remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\n[ -e overtaken ] || { touch overtaken; exit 1; }\n", "utf-8")
    hook.chmod(0o755)
    done = keep(tmp_path, remote, "two")
    assert done.returncode == 0, done.stderr
    assert "another job was faster: attempt 1" in done.stderr
    assert kept(remote) == ["one.jsonl", "two.jsonl"]


# The page


def test_every_workflow_on_the_page_fits_github_s_schema(tmp_path):
    examples = [text for text in blocks("yaml") if text.startswith("name:")]
    assert examples
    known = read(ACTION)["inputs"]
    for number, text in enumerate(examples):
        path = tmp_path / f"{number}.yml"
        path.write_text(text, "utf-8")
        done = check("vendor.github-workflows", path)
        assert done.exit_code == 0, done.output
        for job in yaml.safe_load(text)["jobs"].values():
            for step in job["steps"]:
                if "gradbench" in step.get("uses", ""):
                    assert set(step["with"]) <= set(known)


def test_the_gitlab_file_on_the_page_fits_gitlab_s_schema(tmp_path):
    (text,) = (text for text in blocks("yaml") if text.startswith("# .gitlab-ci.yml"))
    path = tmp_path / "gitlab.yml"
    path.write_text(text, "utf-8")
    done = check("vendor.gitlab-ci", path)
    assert done.exit_code == 0, done.output


def test_every_command_on_the_page_exists():
    commands = re.findall(r"^gradbench (.*)$", "\n".join(blocks("sh")), re.M)
    assert commands
    for name in dict.fromkeys(command.split()[0] for command in commands):
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [name, "--help"])
        assert done.exit_code == 0, f"{name}: {done.output}"
        options = set(re.findall(r"(?<=\s)--[a-z-]+", done.stdout))
        for command in (c for c in commands if c.split()[0] == name):
            assert set(re.findall(r"(?<=\s)--[a-z-]+", command)) <= options, command


def test_the_input_table_on_the_page_is_the_action_s():
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", PAGE.read_text("utf-8"), re.M))
    inputs = read(ACTION)["inputs"]
    assert {name: rows.get(name) for name in inputs} == {
        name: f"`{each['default']}`" if each["default"] else "" for name, each in inputs.items()
    }


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_our_scripts(tmp_path):
    scripts = [KEEP, ROOT / ".ci" / "run"]
    for step in read(ACTION)["runs"]["steps"]:
        if "run" in step:
            path = tmp_path / f"{len(scripts)}.sh"
            path.write_text(f"#!/bin/bash\n{step['run']}", "utf-8")
            scripts.append(path)
    done = subprocess.run(
        ["shellcheck", "--severity=warning", *scripts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
