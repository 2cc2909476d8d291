"""Exit statuses: one meaning a number, and none of a verdict where there is no verdict."""

import subprocess
import sys
from pathlib import Path

import pytest
from builders import block, counted, run_on_a_machine, write_run
from patience import PATIENCE_S

from gradbench import cli
from gradbench.exit_status import GATE, ExitStatus

DOCS = Path(__file__).parents[1] / "docs"


def test_every_status_has_words_of_its_own():
    assert len({status.words for status in ExitStatus}) == len(ExitStatus)


def test_a_crash_is_no_regression_and_keeps_its_traceback(monkeypatch, capsys):
    def app(**_options):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == ExitStatus.BROKEN
    assert "ZeroDivisionError: a fault of ours" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory ran out"),
        (RuntimeError("can't start new thread"), "the system starts no more threads"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "torch cannot be loaded"),
        (OSError("libtorch.so: failed to map segment\x1b[0m"), r"failed to map segment\x1b[0m"),
    ],
)
def test_what_the_machine_or_the_installation_lacks_is_one_line(monkeypatch, capsys, error, words):
    def app(**_options):
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == ExitStatus.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_module_of_ours_that_is_missing_keeps_its_traceback(monkeypatch, capsys):
    def app(**_options):
        raise ModuleNotFoundError("No module", name="gradbench.nowhere")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == ExitStatus.BROKEN
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_is_gone_is_no_regression(tmp_path):
    """As of ``gradbench gate | head -1``: here the pipe is closed before anything is printed."""
    cells = [cell for size in range(1, 200) for cell in block(batch_size=size)]
    before, after = (
        write_run(run_on_a_machine([counted(c, size) for c in cells], name=name), tmp_path)
        for name, size in (("a", 64), ("b", 65))
    )
    with subprocess.Popen(
        [sys.executable, "-m", "gradbench", "gate", "--baseline", str(before), str(after)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=PATIENCE_S)
    assert process.returncode == ExitStatus.NO_READER


@pytest.mark.parametrize("page", ["gate.md", "ci.md"])
def test_the_documents_name_every_status_of_a_gate(page):
    text = (DOCS / page).read_text("utf-8")
    missing = [status for status in GATE if f"| {int(status)} | " not in text]
    assert missing == []
