"""Which code of the user's can go to the machines of a cluster: what cannot is said before."""

import subprocess

import pytest

from gradbench.cli import cluster
from gradbench.errors import BadModel
from gradbench.experiment.model_source import ModelSource


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A folder without a repository, to stand in."""
    for name in ("nets.py", "kept.py", "pkg/made.py", "pkg/mine.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("*.py\n!kept.py\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def repository(project):
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    subprocess.run(["git", "add", "-f", "nets.py"], cwd=project, check=True)
    (project / "pkg" / ".gitignore").write_text("!mine.py\n", "utf-8")
    (project / ".git" / "info" / "exclude").write_text("kept.py\n", "utf-8")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (ModelSource(build="nets.py:make"), "'nets.py:make' is in 'nets.py', which .gitignore"),
        (ModelSource(build="nets:make"), "'nets:make' is in 'nets.py', which .gitignore names"),
        (ModelSource(build="kept:make", loss="pkg.made:loss"), "is in 'pkg/made.py', which"),
    ],
)
@pytest.mark.usefixtures("repository")
def test_a_file_that_git_ignores_is_refused_for_it_stays_here(source, words):
    """Ray leaves out what the patterns name, whether git keeps it or not."""
    with pytest.raises(BadModel, match=words):
        cluster.check_goes(source)


@pytest.mark.usefixtures("repository")
def test_a_file_that_no_such_file_ignores_goes_and_an_installed_module_is_there():
    cluster.check_goes(ModelSource(build="kept.py:make", batch="torch:rand", loss="pkg.mine:loss"))


def test_without_a_repository_nothing_is_refused():
    cluster.check_goes(ModelSource(build="nets.py:make"))


@pytest.mark.parametrize("name", ["/elsewhere/nets.py", "../nets.py", "pkg/../../nets.py"])
def test_a_file_that_is_not_below_the_folder_is_refused(name):
    with pytest.raises(BadModel, match="is not below this folder"):
        cluster.check_travels(ModelSource(build=f"{name}:make"))
