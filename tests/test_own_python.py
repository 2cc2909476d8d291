"""Further Pythons of this package: none looks where the user stands before the library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradbench
from gradbench import own_python
from gradbench.own_python import calling, command, loading_path

PACKAGE = Path(gradbench.__file__).parent
LIBRARY = Path(os.__file__).parent


def test_one_module_alone_says_how_this_interpreter_is_started():
    naming = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "sys.executable" in path.read_text("utf-8")
    }
    # a supervisor is isolated from all folders, a comparison's side may have another's, and its
    # worker, which is no part of the package there, begins itself anew
    assert naming == {
        "own_python.py",
        "process_tree.py",
        "comparison/checkouts.py",
        "comparison/worker.py",
    }


def test_what_a_program_puts_in_front_stands_behind_the_library_until_gradbench_is_loaded(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(own_python.VARIABLE, "/first")
    order = loading_path().split(os.pathsep)
    assert order[0] == "/first"
    assert order.index(str(LIBRARY)) < order.index(own_python.ROOT) < order.index(str(tmp_path))


def test_a_new_process_then_imports_as_this_one_does_from_a_folder_with_a_colon_too(
    tmp_path, monkeypatch
):
    folder = tmp_path / "a:b"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    path = [str(folder), *sys.path[1:]]
    asked = calling("gradbench.plurals", f"sys.path == {path!r} or 1 / 0", first="import sys")
    asked[-1] = asked[-1].replace("module.sys", "sys")
    environment = {**os.environ, own_python.VARIABLE: loading_path()}
    assert subprocess.run(asked, env=environment, cwd=tmp_path, check=False).returncode == 0


@pytest.fixture
def hostile(tmp_path):
    """A folder with a file for every module of the library, and for gradbench: none is harmless."""
    (tmp_path / "hostile").mkdir()
    for name in (*sys.stdlib_module_names, "gradbench", "typer", "psutil"):
        if not name.startswith("_"):
            text = f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n"
            (tmp_path / "hostile" / f"{name}.py").write_text(text, "utf-8")
    return tmp_path / "hostile"


def test_a_command_that_another_starts_executes_nothing_of_the_folder_that_it_stands_in(hostile):
    environment = {n: v for n, v in os.environ.items() if n != own_python.VARIABLE}
    answer = subprocess.run(
        command("runs", "--results", "none"),
        cwd=hostile,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.returncode, answer.stderr) == (0, "no runs in 'none'\n")
    assert not (hostile.parent / "executed").exists()
