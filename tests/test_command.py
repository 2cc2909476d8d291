"""The command as it starts: what it does before any of gradbench is loaded."""

import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gradbench import __main__ as command
from gradbench.exit_status import ExitStatus


@pytest.fixture
def _handler():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_handler")
def test_until_the_command_line_is_loaded_ctrl_c_meets_no_import(monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found = []
    stand_in = ModuleType("gradbench.cli")
    stand_in.main = lambda: found.append(signal.getsignal(signal.SIGINT))
    monkeypatch.setitem(sys.modules, "gradbench.cli", stand_in)
    command.main()
    assert found == [signal.SIG_DFL]


@pytest.mark.usefixtures("_handler")
def test_an_ignored_ctrl_c_stays_ignored(monkeypatch):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stand_in = ModuleType("gradbench.cli")
    stand_in.main = lambda: None
    monkeypatch.setitem(sys.modules, "gradbench.cli", stand_in)
    command.main()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_current_folder_stands_behind_the_library_unless_gradbench_is_there(
    monkeypatch, tmp_path
):
    """A random.py of the user's is not the library's."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), "library"])
    command.current_folder_last()
    assert sys.path == ["library", str(tmp_path)]
    checkout = str(Path(command.__file__).parents[1])
    monkeypatch.setattr(sys, "path", [checkout, "library"])
    command.current_folder_last()
    assert sys.path == [checkout, "library"]


@pytest.mark.usefixtures("_handler")
def test_a_command_line_that_cannot_be_loaded_is_one_line_and_no_regression(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradbench.cli", None)  # as where a package is missing
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == command.BROKEN == ExitStatus.BROKEN
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gradbench: it cannot be loaded: ModuleNotFoundError(")
