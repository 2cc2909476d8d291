"""What importing costs, each promise in an interpreter of its own."""

import subprocess
import sys

import pytest

PROMISES = [
    ("import gradbench; gradbench.Matrix(models=['a']); gradbench.Store()", ["torch", "pandas"]),
    ("import gradbench.cli", ["torch", "pandas", "matplotlib"]),
    ("import gradbench.behaviour, gradbench.semantics.state", ["pandas"]),
    ("import gradbench.observation", ["pandas", "scipy", "matplotlib"]),
    ("import gradbench.pytest_plugin", ["torch", "pandas"]),
    ("import gradbench; gradbench.summary, gradbench.render", ["torch"]),
    ("import gradbench.terminal, gradbench.words", ["torch"]),
    ("import gradbench.exports, gradbench.ci, gradbench.judgements", ["torch", "matplotlib"]),
    ("import gradbench.merge, gradbench.shards, gradbench.places", ["torch", "pandas", "scipy"]),
    ("import gradbench.history, gradbench.pack, gradbench.cli.history", ["torch", "matplotlib"]),
    (
        "import gradbench.runner.block",
        ["pandas", "scipy", "matplotlib", "gradbench.devices.cuda"],
    ),
]


def loaded(statement: str, modules: list[str]) -> list[str]:
    code = f"{statement}; import sys; print(*[m for m in {modules} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return answer.stdout.split()


@pytest.mark.parametrize(("statement", "modules"), PROMISES)
def test_importing_leaves_out(statement, modules):
    assert loaded(statement, modules) == []


def test_this_test_can_fail():
    assert loaded("import gradbench.runner", ["torch"]) == ["torch"]


def test_public_names_are_all_there_and_a_wrong_one_is_an_attribute_error():
    import gradbench

    for name in dir(gradbench):
        getattr(gradbench, name)
    with pytest.raises(AttributeError, match="no attribute 'MODELLS'"):
        _ = gradbench.MODELLS
