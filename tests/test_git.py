"""Git: its answer, or its own words in one line."""

import os
import subprocess

import pytest

from gradbench.errors import GradbenchError
from gradbench.git import GitError, environment_elsewhere, git, paths


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


def test_a_hook_s_variables_lead_to_no_other_repository(repository, tmp_path_factory, monkeypatch):
    """As in a pre-commit hook: a worktree that is added must not be written into its index."""
    ours = tmp_path_factory.mktemp("ours")
    subprocess.run(["git", "init", "-q", str(ours)], check=True)
    monkeypatch.setenv("GIT_DIR", str(ours / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(ours / ".git" / "index"))
    monkeypatch.setenv("GIT_WORK_TREE", str(ours))
    assert paths("rev-parse", "--show-toplevel", folder=repository) == [repository.resolve()]
    (repository / "file").touch()
    git("add", "file", folder=repository)
    assert not (ours / ".git" / "index").exists()
    assert not environment_elsewhere().keys() & {"GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"}


@pytest.mark.parametrize("name", ["ends in a blank ", "two\nlines\n", b"no UTF-8 \xff"])
def test_a_repository_may_have_any_name(tmp_path, name):
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    assert paths("rev-parse", "--show-toplevel", folder=folder) == [folder.resolve()]


def test_to_ask_for_the_status_writes_nothing(repository):
    (repository / "file").write_text("as it was", "utf-8")
    git("add", "file", folder=repository)
    before = (repository / ".git" / "index").read_bytes()
    os.utime(repository / "file", (1, 1))  # git would note that it looked
    assert git("status", "--porcelain", folder=repository) == "A  file"
    assert (repository / ".git" / "index").read_bytes() == before


def test_a_hook_and_settings_of_the_user_s_change_no_checkout_and_no_log(
    repository, tmp_path_factory, monkeypatch
):
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")  # as CI sets safe.directory
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.name")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "somebody")
    git("-c", "user.email=s@b", "commit", "--allow-empty", "-qm", "first", folder=repository)
    assert git("log", "-1", "--format=%an", folder=repository) == "somebody"
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 2\n", "utf-8")
    hook.chmod(0o755)
    git("config", "log.follow", "true", folder=repository)
    tree = tmp_path_factory.mktemp("trees") / "tree"
    git("worktree", "add", "-q", "--detach", str(tree), folder=repository)
    assert (tree / ".git").exists()
    for name, value in (("submodule.recurse", "false"), ("log.follow", "false")):
        assert git("config", "--get", name, folder=tree) == value
