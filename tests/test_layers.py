"""Who may import whom: a module made tomorrow is covered by its folder's line.

One module is added to every folder of every contract, in a copy of the package, and import-linter
must name each of them. It reads sources and imports nothing, so the modules need not work.
"""

import ast
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
*FORBIDDING, LAYERS = SETTINGS["contracts"]
NEW = "made_tomorrow"


def is_folder(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()


# folder, what a module there must not import, and the contract that says so
FORBIDDEN = [
    (folder, library, contract["name"])
    for contract in FORBIDDING
    for folder in filter(is_folder, contract["source_modules"])
    for library in contract["forbidden_modules"]
]
UPWARDS = [
    (f"gradbench.{lower}", f"gradbench.{upper.split(' | ')[0]}", LAYERS["name"])
    for upper, layer in pairwise(LAYERS["layers"])
    for lower in layer.split(" | ")
    if is_folder(f"gradbench.{lower}")
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(
        ROOT / "gradbench", folder / "gradbench", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder: Path) -> str:
    """Return what import-linter says of the package in a folder, in one line."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return f"status {done.returncode}: {' '.join((done.stdout + done.stderr).split())}"


@pytest.fixture(scope="module")
def complaints(copy) -> str:
    assert lint(copy).startswith("status 0: "), "the package itself keeps its contracts"
    for folder, imported, _ in FORBIDDEN + UPWARDS:
        path = copy / folder.replace(".", "/") / f"{NEW}.py"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"import {imported}\n")
    (copy / "gradbench" / NEW).mkdir()
    (copy / "gradbench" / NEW / "__init__.py").touch()
    return lint(copy)


@pytest.mark.parametrize(("folder", "imported", "contract"), FORBIDDEN + UPWARDS)
def test_a_module_made_tomorrow_is_covered_by_its_folders_line(
    folder, imported, contract, complaints
):
    assert complaints.startswith("status 1: ")
    assert f"{contract} BROKEN" in complaints
    assert f"{folder}.{NEW} -> {imported} (l." in complaints


def test_a_folder_made_tomorrow_must_find_its_place_in_the_layers(complaints):
    unlisted = complaints.partition("not listed as layers")[2]
    assert f"- gradbench.{NEW} (Since this contract is marked as 'exhaustive'" in unlisted


def test_every_folder_of_the_package_is_in_a_layer():
    """So that the two tests above ask about all of them."""
    layers = {name for layer in LAYERS["layers"] for name in layer.split(" | ")}
    folders = {path.parent.name for path in (ROOT / "gradbench").glob("*/__init__.py")}
    assert folders <= layers
    assert len(folders) > 10


# The tests themselves


def imported(path: Path) -> set[str]:
    """Return the first part of every name that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_no_test_module_imports_another(path):
    """What two of them need lives beside them: builders, fakes, jobs, pages, servers."""
    assert {name for name in imported(path) if name.startswith(("test_", "tests"))} == set()
