"""What a run says while it measures: a line for each device on a terminal."""

from io import StringIO
from types import SimpleNamespace

import pytest
import typer
from builders import cell, timed

from gradbench.cli import measure
from gradbench.cli.app import say_in_log
from gradbench.cli.screen import Screen
from gradbench.errors import ClusterLost
from gradbench.experiment.plan import Plan
from gradbench.host_locks import WAITING
from gradbench.runner import Progress, started
from gradbench.store.jsonl import Store


@pytest.fixture
def terminal(monkeypatch):
    stream = StringIO()
    monkeypatch.setattr(measure, "err", Screen(file=stream, force_terminal=True, width=120))
    return stream


def event(device, *, doing="time", done=0, begun=1):
    return Progress(cell(device=device).block, doing, done, 2, begun)


def test_each_device_that_measures_has_a_line(terminal):
    with measure.progress(8) as listen:
        listen(event("cuda"))
        listen(event("cuda:1", begun=2))
        listen(event("cuda", done=1, begun=2))
    last = terminal.getvalue().rpartition("loading torch")[2]
    for device in ("cuda", "cuda:1"):
        assert f"inference[{device}-mlp_tiny-b8] time" in last
    assert "1/2" in last


def test_one_device_has_one_line(terminal):
    with measure.progress(8) as listen:
        listen(event("cpu"))
        listen(event("cpu", done=1, begun=2))
    drawn, _, _ = terminal.getvalue().partition("\x1b[?25h")  # what follows takes it away
    assert "cpu-mlp_tiny" in drawn
    assert "\x1b[1A\x1b[2K" not in drawn  # which would go up to a second line


def test_where_nobody_looks_a_block_has_a_line_and_one_more_where_it_waits(capsys, monkeypatch):
    monkeypatch.setattr(measure, "err", Screen(file=StringIO()))
    with measure.progress(8) as listen:
        for doing in ("memory", WAITING, "time", WAITING, "time"):
            listen(event("cpu", doing=doing))
    block = "[1/2] inference[cpu-mlp_tiny-b8]"
    assert capsys.readouterr().err.splitlines() == [block, f"{block}: waiting for another run"]


def test_a_line_of_a_log_acts_on_no_terminal_and_no_ci(capsys):
    say_in_log("::error::\x1b[31mred\nagain")
    (line,) = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line
    assert not line.startswith("::")
    assert "red" in line


def test_the_name_of_a_machine_is_text_and_no_markup(terminal):
    with measure.progress(8) as listen:
        listen(event("cpu", doing="on [/red]\x1b[2Jodd"))
        listen(event("cpu", doing="on [/red]\x1b[2Jodd", done=1))
    assert "on [/red]" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()


class Stopped(SimpleNamespace):
    """A recording that is stopped after its first cells."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def measure(self, **_):
        with Store(self.folder).create() as writer:
            self.path = writer.path
            writer.write(self.header)
            for one in self.measured:
                writer.write(timed(one, (10, 11)))
            if len(self.measured) == len(self.header.cells):
                self.path = writer.seal()
        raise self.by


def stopped(folder, measured, by):
    cells = [cell("no_grad", batch_size=size) for size in (1, 2)]
    header = started(cells, plan=Plan(), meters=["step_time"])
    return Stopped(header=header, folder=folder, measured=cells[:measured], by=by)


def test_a_cluster_that_is_lost_says_what_is_kept_and_how_to_go_on(capsys, tmp_path):
    with pytest.raises(ClusterLost):
        measure._measure(stopped(tmp_path, 1, ClusterLost("the head is gone")))
    said = capsys.readouterr().err
    assert "1 of 2 blocks are kept; go on with: gradbench run --resume" in said


def test_a_run_that_is_stopped_when_it_is_complete_is_not_to_be_resumed(capsys, tmp_path):
    with pytest.raises(typer.Exit):
        measure._measure(stopped(tmp_path, 2, KeyboardInterrupt()))
    said = " ".join(capsys.readouterr().err.split())
    assert "the run is complete" in said
    (path,) = tmp_path.glob("*.jsonl")
    assert f"gradbench report {path.stem}" in said
    assert "--resume" not in said
