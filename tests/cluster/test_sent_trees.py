"""What of the two trees goes to the machines of a cluster."""

import subprocess
from pathlib import Path

import pytest

from gradbench.cluster import sent_trees


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def sent(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


FILES = (
    "pkg/nets.py",
    "pkg/results/made.py",
    "results/run.jsonl",
    "kept.log",
    "other.log",
    "new.py",
    "gone.py",
)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "my project"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name, "utf-8")
    (root / ".gitignore").write_text("*.log\n", "utf-8")
    return root


def test_of_a_repository_goes_what_git_keeps_and_what_is_new_and_not_ignored(tree, tmp_path):
    git(tree, "init", "-q")
    git(tree, "add", "pkg", "gone.py", ".gitignore")
    git(tree, "add", "-f", "kept.log")
    git(tree, "commit", "-q", "-m", "first")
    (tree / "gone.py").unlink()
    (tree / "pkg" / "nets.py").write_text("changed", "utf-8")
    sent_trees.gather({"candidate": tree}, tmp_path / "sent")
    assert sent(tmp_path / "sent") == {
        "candidate/pkg/nets.py": "changed",
        "candidate/pkg/results/made.py": "pkg/results/made.py",
        "candidate/kept.log": "kept.log",  # Ray would heed .gitignore, which does not go
        "candidate/new.py": "new.py",
        "candidate/results/run.jsonl": "results/run.jsonl",
    }


def go(folder, outputs=()):
    """Return which files git would not ignore by what is left behind: Ray reads it as git does."""
    git(folder, "init", "-q")
    patterns = sent_trees.left_behind(folder, [Path(one) for one in outputs])
    (folder / ".git" / "info" / "exclude").write_text("\n".join(patterns), "utf-8")
    asked = ["git", "ls-files", "-z", "--others", "--exclude-standard"]
    done = subprocess.run(asked, cwd=folder, check=True, capture_output=True, text=True)
    return {name for name in done.stdout.split("\0") if name}


def test_with_a_run_goes_the_folder_but_for_environments_and_results(tree):
    for name in (".venv/lib.py", "pkg/__pycache__/nets.pyc", "reports/page.html"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    there = {".gitignore", "pkg/nets.py", "pkg/results/made.py", "new.py", "gone.py"}
    assert go(tree) == there


def test_results_in_folders_of_other_names_do_not_go_either(tree):
    places = ["my runs/a", "[b]*", "!c", "."]
    for name in (*places, "b", "my runs/kept"):
        (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / name / "run.jsonl").touch()
    elsewhere = ["/elsewhere", "../elsewhere"]
    gone = {f"{name}/run.jsonl" for name in places[:3]}
    everything = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    ignored = {"results/run.jsonl", "kept.log", "other.log"}
    assert go(tree, [*places, *elsewhere]) == everything - gone - ignored


@pytest.mark.parametrize("module", ["results/__init__.py", "results/made/nets.py"])
def test_a_package_of_the_user_s_goes_though_it_is_called_results(tree, tmp_path, module):
    (tree / module).parent.mkdir(exist_ok=True)
    (tree / module).touch()
    sent_trees.gather({"base": tree}, tmp_path / "sent")
    assert f"base/{module}" in sent(tmp_path / "sent")
    assert module in go(tree)


def test_of_a_folder_without_one_goes_all_but_environments_and_results(tree, tmp_path):
    sent_trees.gather({"base": tree}, tmp_path / "sent")
    assert set(sent(tmp_path / "sent")) == {
        f"base/{name}" for name in FILES if name != "results/run.jsonl"
    }
