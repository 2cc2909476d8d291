"""Git: its answer, or its own words in one line."""

import os
import subprocess

import pytest

from gradbench.errors import GradbenchError
from gradbench.git import GitError, git


@pytest.fixture
def repository(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def test_an_answer_comes_without_its_last_newline(repository):
    assert git("rev-parse", "--show-toplevel", folder=repository) == str(repository.resolve())


def test_a_refusal_is_one_line_in_git_s_words_and_the_user_s_error(repository):
    with pytest.raises(GradbenchError, match=r"(?i)no such remote") as refused:
        git("remote", "get-url", "origin", folder=repository, limit_s=60)
    assert "\n" not in str(refused.value)


def test_a_missing_git_is_the_reason_given(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitError, match="git cannot be run: No such file"):
        git("status")


def test_a_git_that_hangs_is_left_at_the_limit(monkeypatch, tmp_path):
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 60\n", "utf-8")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(GitError, match=r"git status gave no answer in 0.2 s"):
        git("status", limit_s=0.2)
