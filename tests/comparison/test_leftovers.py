"""What a killed command leaves in temporary folders: found by the next one, and nothing else is."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gradbench import scratch
from gradbench.cli import machine
from gradbench.comparison.leftovers import remove_leftovers

KILLED = """
import os, signal, sys
from pathlib import Path
from gradbench import scratch
from gradbench.comparison import leftovers, worktree

root = Path(sys.argv[1])
with scratch.folder(**{leftovers.REPOSITORY: str(root)}) as folder:
    with worktree.checked_out(root, "HEAD", folder / leftovers.BASE):
        with worktree.checked_out(root, "HEAD", folder / "of a bisection"):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "project"
    for arguments in (["init", "-q", str(root)], ["commit", "-q", "--allow-empty", "-m", "first"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *arguments], cwd=root if root.exists() else None, check=True)
    return root


def worktrees(root: Path) -> list[str]:
    listing = subprocess.run(
        ["git", "worktree", "list"], cwd=root, capture_output=True, text=True, check=True
    )
    return listing.stdout.splitlines()


def test_the_worktrees_and_the_folder_of_a_killed_comparison_are_removed(temporary, repository):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(repository)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(worktrees(repository)) == 3
    (left,) = temporary.glob("gradbench-*")
    (said,) = remove_leftovers()
    assert str(left) in said
    assert str(repository) in said
    assert len(worktrees(repository)) == 1
    assert list(temporary.iterdir()) == []
    assert remove_leftovers() == []


def test_a_worktree_of_the_user_s_whose_drive_is_away_is_not_forgotten(temporary, repository):
    theirs = repository.parent / "theirs"
    subprocess.run(["git", "worktree", "add", "-q", str(theirs)], cwd=repository, check=True)
    theirs.rename(repository.parent / "away")
    subprocess.run([sys.executable, "-c", KILLED, str(repository)], check=False)
    assert len(remove_leftovers()) == 1
    assert [str(theirs) in line for line in worktrees(repository)] == [False, True]


def test_a_folder_that_somebody_owns_is_left_and_removed_by_its_owner(temporary):
    with scratch.folder() as folder:
        assert remove_leftovers() == []
        assert folder.is_dir()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("owner", [None, "not json", "[]", "a FIFO", "a link"])
def test_what_merely_looks_like_ours_is_left_alone(owner, temporary):
    theirs = temporary / "gradbench-of-mine"
    theirs.mkdir()
    (theirs / "data").write_text("precious", "utf-8")
    place = theirs / scratch.OWNER
    if owner == "a FIFO":
        os.mkfifo(place)
    elif owner == "a link":
        place.symlink_to(theirs / "data")
    elif owner is not None:
        place.write_text(owner, "utf-8")
    assert remove_leftovers() == []
    assert (theirs / "data").exists()


def test_the_check_of_the_machine_removes_leftovers_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr("gradbench.comparison.leftovers.remove_leftovers", lambda: ["removed it"])
    monkeypatch.setattr(
        "gradbench.runner.environment.capture", lambda _: type("E", (), {"facts": {}})
    )
    monkeypatch.setattr("gradbench.runner.environment.watch", lambda _: {})
    monkeypatch.setattr("gradbench.analysis.diagnosis.before_a_run", lambda _: [])
    with pytest.raises(machine.typer.Exit) as end:
        machine.env(check=True)
    assert end.value.exit_code == 0
    assert "removed it" in capsys.readouterr().out


def test_every_temporary_folder_says_whose_it_is():
    """Python's own, of which nobody knows whose they are, would stay for ever after SIGKILL."""
    package = Path(scratch.__file__).parent
    makers = re.compile(r"\b(TemporaryDirectory|mkdtemp)\(")
    found = [path.name for path in package.rglob("*.py") if makers.search(path.read_text("utf-8"))]
    assert found == ["scratch.py"]
