"""What of the two trees goes to the machines of a cluster."""

import subprocess

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


def test_of_a_folder_without_one_goes_all_but_environments_and_results(tree, tmp_path):
    sent_trees.gather({"base": tree}, tmp_path / "sent")
    assert set(sent(tmp_path / "sent")) == {
        f"base/{name}" for name in FILES if name != "results/run.jsonl"
    }
