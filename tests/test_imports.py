"""What importing costs, promises held in new interpreters; and how tests are run."""

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

import conftest

TESTS = Path(__file__).parent
ANYTHING = nullcontext()

PROMISES = (
    (
        ("import gradbench; gradbench.Matrix(models=['a']); gradbench.Store()", "torch pandas"),
        ("import gradbench.cli", "torch pandas matplotlib"),
        ("import gradbench.pytest_plugin.cells", "torch pandas"),
        (
            "import gradbench.store.merge_shards, gradbench.experiment.shards, "
            "gradbench.exports.source_locations",
            "torch pandas scipy",
        ),
        (
            "import gradbench.gate.decide, gradbench.terminal.verdict_tables, gradbench.gate.rules",
            "torch pandas scipy.stats",
        ),
    ),
    (
        (
            "import gradbench.exports, gradbench.ci_job, gradbench.gate.figure_verdicts",
            "torch matplotlib",
        ),
        (
            "import gradbench.history.parquet_write, gradbench.cli.history",
            "torch matplotlib",
        ),
        ("import gradbench; gradbench.summary, gradbench.render", "torch"),
        ("import gradbench.terminal.run_tables, gradbench.analysis.run_sentences", "torch"),
    ),
    (
        (
            "import gradbench.runner.time_pass",
            "pandas scipy matplotlib gradbench.devices.cuda",
        ),
        ("import gradbench.observation", "pandas scipy matplotlib"),
        ("import gradbench.records.semantics, gradbench.semantics.state", "pandas"),
    ),
)
"""Statements and what they must not load. Those of a group run one after the other in an
interpreter of their own: what all of them leave out, each does."""


@cache
def loaded(*promises: tuple[str, str]) -> dict[str, list[str]]:
    """Return what each statement has loaded of what it names, in one new interpreter."""
    code = (
        "import json, sys\nfound = {}\n"
        f"for statement, names in {promises!r}:\n"
        "    exec(statement)\n"
        "    found[statement] = [name for name in names.split() if name in sys.modules]\n"
        "print(json.dumps(found))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    found: dict[str, list[str]] = json.loads(answer.stdout)
    return found


@pytest.mark.parametrize(
    ("group", "statement"),
    [(group, statement) for group in PROMISES for statement, _ in group],
    ids=[statement for group in PROMISES for statement, _ in group],
)
def test_importing_leaves_out(group, statement):
    assert loaded(*group)[statement] == []


def test_this_test_can_fail():
    statement = "import gradbench.stats.estimates"
    assert loaded((statement, "numpy torch")) == {statement: ["numpy"]}


@pytest.mark.slow
def test_tests_of_folders_without_torch_import_none():
    """``tests/conftest.py`` holds it in every session of such folders alone: here of them all."""
    folders = [f"tests/{name}" for name in conftest.without_torch() if (TESTS / name).is_dir()]
    assert {"tests/stats", "tests/store", "tests/gate"} <= set(folders)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *folders], cwd=TESTS.parent, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("folders", "loaded", "fails"),
    [
        (["stats"], ["torch"], True),
        (["stats", "gate"], ["torch"], True),
        (["stats", "gate"], ["pandas"], False),
        (["stats", "runner"], ["torch"], False),
        ([], ["torch"], False),
    ],
)
def test_a_session_of_such_folders_that_imported_torch_fails(folders, loaded, fails, monkeypatch):
    monkeypatch.setattr(sys, "modules", dict.fromkeys(loaded))
    items = [SimpleNamespace(path=TESTS / folder / "test_it.py") for folder in folders]
    with pytest.raises(pytest.exit.Exception, match="torch was imported") if fails else ANYTHING:
        conftest.pytest_sessionfinish(SimpleNamespace(items=items))


def test_public_names_are_all_there_and_a_wrong_one_is_an_attribute_error():
    import gradbench

    for name in dir(gradbench):
        getattr(gradbench, name)
    with pytest.raises(AttributeError, match="no attribute 'MODELLS'"):
        _ = gradbench.MODELLS


def test_no_property_fails_by_chance_or_for_a_busy_machine():
    from hypothesis import HealthCheck, settings

    assert settings.default.deadline is None
    assert settings.default.derandomize
    assert HealthCheck.too_slow in settings.default.suppress_health_check
    named = re.compile(r"@settings\(.*(deadline|derandomize)=")
    texts = {path: path.read_text("utf-8") for path in TESTS.rglob("test_*.py")}
    assert [path.name for path, text in texts.items() if named.search(text)] == []


def test_workers_begin_with_the_longest_files_and_those_exist():
    first, second, *_ = longest = [TESTS / name for name in conftest.LONGEST]
    others = [TESTS / "z.py", TESTS / "a.py"]
    items = [SimpleNamespace(path=path) for path in (others[0], second, others[1], first)]
    conftest.pytest_collection_modifyitems(SimpleNamespace(workerinput={}), items)
    assert [item.path for item in items] == [first, second, *others]
    assert [path for path in longest if not path.is_file()] == []
