"""Processes of a comparison that hang, are killed or write over their socket, and what follows."""

import json
import os
import select
import signal
import socket
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gradbench import process_end
from gradbench.cli.gate import conclusion
from gradbench.comparison import (
    checkouts,
    commit_counts,
    process,
    side_processes,
    versions,
    worker,
)
from gradbench.comparison.effort import Effort
from gradbench.comparison.process import Failed, Lost
from gradbench.comparison.replicate_effort import Replication
from gradbench.errors import BadModel, Impossible
from gradbench.exit_status import ExitStatus
from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.experiment.model_source import ModelSource
from gradbench.stats.verdicts import Verdict

QUICK = Replication(turns=3, least_turns=3, slice_s=0.001)
COUNTS = {"operators": {}, "nodes": 0, "saved_bytes": 0, "peak_bytes": 64}
HUNG = "gave no answer within its time limit of 120 s"


def cells(model: str) -> list[Cell]:
    return [Cell(model=model, workload="inference", grad_mode=mode) for mode in GRAD_MODES]


class Script:
    """Answers of processes: what a side's process meets when it is asked about a cell, if any."""

    def __init__(self) -> None:
        self.meets = lambda side, cell, times: None
        self.imports = lambda side, path: None
        self.asked: list[tuple[str, str]] = []
        self.heard: list[tuple[str, str]] = []
        self.started = 0

    def process(self, versions_, **_):
        self.started += 1
        return Process(self, versions_)


class Process:
    """A process that does nothing but what the script says."""

    def __init__(self, script, versions_) -> None:
        self.versions, self.name = versions_, "both" if len(versions_) == 2 else versions_[0].name
        self._script, self._answer = script, {"torch": "2.13.0", "python": "3.11"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, **message):
        self.put(**message)
        return self.hear()

    def put(self, **message):
        if "cell" in message:
            mode = message["cell"]["grad_mode"]
            cell = f"{message['cell']['model']} {mode}"
            self._script.asked.append((self.name, cell))
            times = self._script.asked.count((self.name, cell))
            nothing = {"obstacles": [], "own": [], "outside": {}, "settings": {}, "values": {}}
            examined = {"operations": COUNTS, **nothing}
            timed = {"typical_ns": 1e6, "ns": [[1e6] * 4] * 2}
            usual = examined if "examine" in message else timed
            self._answer = self._script.meets(self.name, cell, times) or usual
        elif "batches" in message:
            self._answer = {"ns": [1e6]}

    def imported(self, path):
        if (failure := self._script.imports(self.name, path)) is not None:
            raise failure
        return [str(one.tree / "nets.py") for one in self.versions]

    def hear(self):
        self._script.heard.append((self.name, str(self._answer)[:20]))
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.fixture
def script(monkeypatch):
    script = Script()
    monkeypatch.setattr(side_processes, "LiveProcess", script.process)
    monkeypatch.setattr(commit_counts, "LiveProcess", script.process)
    return script


@pytest.fixture
def sides(tmp_path):
    return [
        checkouts.Version(name=name, python="python", paths=(tmp_path,), tree=tmp_path)
        for name in checkouts.SIDES
    ]


def late(side):
    return Lost(side, HUNG, late=True)


def killed(side):
    return Failed(side, "killed by SIGKILL", killed=True)


def compared(sides, asked, **more):
    effort = Effort(processes=3, replication=QUICK)
    return versions.compare(asked, base=sides[0], candidate=sides[1], effort=effort, **more)


def test_where_a_candidate_hung_its_other_modes_are_not_tried_and_other_models_are(script, sides):
    script.meets = lambda side, cell, _: (
        late(side) if side == "candidate" and cell.startswith("hangs") else None
    )
    found = compared(sides, [*cells("hangs"), *cells("good")])
    (worse,) = (one for one in found.figure_verdicts if one.cell.model == "hangs")
    assert worse.verdict is Verdict.WORSE
    assert worse.reason == f"the candidate cannot step it: {HUNG}"
    assert [one.cell for one in found.not_compared] == cells("hangs")[1:]
    why = f"not tried, for the candidate side {HUNG} in {worse.cell}"
    assert {one.reason for one in found.not_compared} == {why}
    assert {one.cell for one in found.figure_verdicts if one.change is not None} == set(
        cells("good")
    )
    hung = [cell for side, cell in script.asked if side == "candidate" and "hangs" in cell]
    assert hung == ["hangs global_on"]


def test_a_base_that_hung_makes_no_candidate_better_and_one_that_fails_does(script, sides):
    hung, fails, good = (cells(name)[0] for name in ("hangs", "fails", "good"))
    met = {"hangs": late("base"), "fails": Failed("base", "ValueError: no")}
    script.meets = lambda side, cell, _: met.get(cell.split()[0]) if side == "base" else None
    found = compared(sides, [hung, fails, good])
    by_cell = {one.cell: one for one in found.figure_verdicts}
    assert by_cell[hung].verdict is Verdict.INCONCLUSIVE
    assert by_cell[hung].reason == (
        f"the base {HUNG}: a longer --limit shows whether it can step it"
    )
    assert by_cell[fails].verdict is Verdict.BETTER
    assert found.status() is ExitStatus.OK
    assert found.status(strict=True) is ExitStatus.INCONCLUSIVE


def test_a_file_that_no_commit_holds_makes_no_candidate_better(script, tmp_path):
    base, candidate = (tmp_path / name for name in checkouts.SIDES)
    for tree in (base, candidate):
        tree.mkdir()
    (candidate / "weights.pt").touch()
    sides = [
        checkouts.Version(name=tree.name, python="python", paths=(tree,), tree=tree)
        for tree in (base, candidate)
    ]
    missing = {"untracked": base / "weights.pt", "gone": base / "gone.pt"}
    script.meets = lambda side, cell, _: (
        Failed("base", "FileNotFoundError: no", missing=str(missing[cell.split()[0]]))
        if side == "base"
        else None
    )
    untracked, gone = (cells(name)[0] for name in missing)
    found = compared(sides, [untracked, gone])
    (left,) = found.not_compared
    assert (left.cell, left.why) == (untracked, "not comparable")
    assert "the base's tree has no weights.pt, and the working tree has one" in left.reason
    assert [one.cell for one in found.figure_verdicts] == [gone]


def test_where_the_base_alone_hung_and_nothing_is_measured_the_conclusion_says_why(script, sides):
    script.meets = lambda side, cell, _: late("base") if side == "base" else None
    found = compared(sides, cells("hangs")[:1])
    assert found.status() is ExitStatus.NOTHING_MEASURED
    assert f"nothing measured: the base {HUNG}" in conclusion(found, found.status())


OWN = {name: ModelSource(build=f"nets:{name}", input=("B,8",)) for name in ("one", "good")}
NO_SUCH = "model 'nets:one' cannot be imported: no attribute 'one'"


@pytest.mark.parametrize("kind", [Failed, Lost])
@pytest.mark.parametrize("side", checkouts.SIDES)
def test_a_model_that_one_side_cannot_import_costs_its_own_cells_alone(script, sides, kind, side):
    said = {Failed: NO_SUCH, Lost: "killed by SIGSEGV"}[kind]
    words = {Failed: NO_SUCH, Lost: "nets:one cannot be imported: killed by SIGSEGV"}[kind]
    script.imports = lambda name, path: (
        kind(side, said) if (name, path) == (side, "nets:one") else None
    )
    one, good = cells("one")[0], cells("good")[0]
    found = compared(sides, [one, good], sources=OWN)
    by_cell = {each.cell: each for each in found.figure_verdicts}
    assert by_cell[good].change is not None
    if side == "candidate":
        assert by_cell[one].verdict is Verdict.WORSE
        assert by_cell[one].reason == f"the candidate cannot step it: {words}"
        assert found.status() is ExitStatus.REGRESSION
    else:  # which may not have had it: that makes no candidate better
        (left,) = found.not_compared
        assert (left.cell, left.why, left.reason) == (one, "not comparable", f"the base: {words}")
        assert found.status() is ExitStatus.OK


def test_where_the_base_has_none_of_the_models_nothing_is_measured_and_the_reason_is_said(
    script, sides
):
    script.imports = lambda name, _: Failed(name, NO_SUCH) if name == "base" else None
    found = compared(sides, cells("one")[:1], sources=OWN)
    assert found.status() is ExitStatus.NOTHING_MEASURED
    assert conclusion(found, found.status()) == f"nothing measured: the base: {NO_SUCH}"


def test_where_nothing_is_timed_both_sides_have_their_time_at_once(script, sides):
    script.meets = lambda side, cell, _: late(side)
    found = compared(sides, cells("hangs"))
    assert found.status() is ExitStatus.NOTHING_MEASURED
    assert {side for side, _ in script.asked[:2]} == {"base", "candidate"}
    assert {side for side, what in script.heard if HUNG.startswith(what)} == {"base", "candidate"}
    assert len(script.asked) == 2


@pytest.mark.parametrize("why", ["", "they are not known to be equal"])
def test_sides_with_weights_of_their_own_are_said_to_have_them(script, sides, why):
    answer = {"ns": [[1e6] * 4] * 2, "typical_ns": 1e6, "unshared": why}
    script.meets = lambda side, *_: answer if side == "both" else None
    time_, *_ = compared(sides, cells("good")[:1]).figure_verdicts
    assert (f"weights not shared: {why}" in time_.reason) is bool(why)


def test_cells_of_which_there_are_replicates_outlive_a_hang(script, sides):
    first = cells("later")[0]
    script.meets = lambda side, cell, times: (
        late(side) if side == "both" and cell.endswith(first.grad_mode) and times == 3 else None
    )
    found = compared(sides, cells("later"))
    assert not found.not_compared
    assert {one.cell for one in found.figure_verdicts} == set(cells("later"))
    apart = [one.cell for one in found.figure_verdicts if "in pairs of processes" in one.reason]
    assert apart == [first]


@pytest.mark.parametrize("side", ["base", "candidate", "both"])
def test_what_sigkill_ended_once_is_tried_again(script, sides, side):
    script.meets = lambda name, cell, times: (
        killed(name) if (name, times) == (side, 1) and cell.endswith("no_grad") else None
    )
    found = compared(sides, cells("good"))
    assert {one.cell for one in found.figure_verdicts if one.change is not None} == set(
        cells("good")
    )
    assert not any("in pairs" in one.reason for one in found.figure_verdicts)


KILLED_TWICE = (
    "killed by SIGKILL, twice: memory ran out, or others ended it; free memory or take a smaller "
    "batch, and try again"
)


@pytest.mark.parametrize("side", checkouts.SIDES)
def test_what_a_signal_of_others_ends_each_time_is_inconclusive_whichever_side_it_is(
    script, sides, side
):
    big, good = cells("big")[0], cells("good")[0]
    script.meets = lambda name, cell, _: (
        killed(name) if name == side and cell.startswith("big") else None
    )
    found = compared(sides, [big, good])
    (open_,) = (one for one in found.figure_verdicts if one.cell == big)
    assert open_.verdict is Verdict.INCONCLUSIVE
    assert open_.reason == f"the {side} was {KILLED_TWICE}"
    assert script.asked.count((side, "big global_on")) == 2
    assert found.status() is ExitStatus.OK
    assert found.status(strict=True) is ExitStatus.INCONCLUSIVE


def test_a_candidate_for_which_there_was_not_enough_memory_twice_is_worse(script, sides):
    big = cells("big")[0]
    why = "killed by SIGKILL: memory had run out"
    script.meets = lambda name, *_: (
        Lost(name, why, killed=True, out_of_memory=True) if name == "candidate" else None
    )
    (found,) = compared(sides, [big]).figure_verdicts
    assert found.verdict is Verdict.WORSE
    assert found.reason == f"the candidate cannot step it: {why}"
    assert script.asked.count(("candidate", "big global_on")) == 2


def test_a_base_for_which_there_was_not_enough_memory_twice_is_inconclusive(script, sides):
    why = "killed by SIGKILL: memory had run out"
    script.meets = lambda name, *_: (
        Lost(name, why, killed=True, out_of_memory=True) if name == "base" else None
    )
    (found,) = compared(sides, cells("big")[:1]).figure_verdicts
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason == (
        f"the base was {why}, twice: free memory or take a smaller batch, and try again"
    )


@pytest.mark.parametrize(("kills", "out_of_memory"), [((3, 4), True), ((3, 3), False)])
def test_memory_had_run_out_where_the_kernel_counts_a_process_more(
    monkeypatch, tmp_path, kills, out_of_memory
):
    before, now = kills
    monkeypatch.setattr(process_end, "out_of_memory_kills", lambda: now)
    live = process.LiveProcess.__new__(process.LiveProcess)
    with (tmp_path / "log").open("w+") as live._log:
        live._asked_at, live._kills_before = 0, before
        end = live._end(-signal.SIGKILL)
    assert end["killed"]
    assert end["out_of_memory"] is out_of_memory
    assert end["why"].endswith("memory had run out") is out_of_memory


def test_kills_for_want_of_memory_are_read_from_the_kernels_counts_or_not_known(tmp_path):
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 7\n", "utf-8")
    assert process_end.out_of_memory_kills(tmp_path / "vmstat") == 7
    assert process_end.out_of_memory_kills(tmp_path / "none") is None


def test_a_candidate_that_others_end_twice_as_it_imports_a_model_is_inconclusive(script, sides):
    script.imports = lambda name, path: (
        Lost(name, "killed by SIGTERM", killed=True)
        if (name, path) == ("candidate", "nets:one")
        else None
    )
    one = cells("one")[0]
    found = compared(sides, [one, cells("good")[0]], sources=OWN)
    (open_,) = (each for each in found.figure_verdicts if each.cell == one)
    assert open_.verdict is Verdict.INCONCLUSIVE
    assert open_.reason == (
        "the candidate was killed by SIGTERM, twice: others end a process so; try again"
    )


def test_a_side_is_tried_again_that_a_signal_ended_after_the_other_one(script, sides):
    ends = {("base", 1), ("candidate", 2)}
    script.meets = lambda side, cell, times: killed(side) if (side, times) in ends else None
    found = compared(sides, cells("good")[:1])
    assert found.measured == 1
    assert found.figure_verdicts[0].change is not None


@pytest.mark.parametrize(("times", "starts"), [(1, True), (2, False)])
def test_a_side_that_is_killed_as_it_starts_is_started_once_more(
    script, sides, monkeypatch, times, starts
):
    hear, left = Process.hear, [times]

    def killed_at_first(self):
        if self.name == "base" and left[0] and "torch" in str(self._answer):
            left[0] -= 1
            raise Lost("base", "killed by SIGKILL", killed=True)
        return hear(self)

    monkeypatch.setattr(Process, "hear", killed_at_first)
    refused = pytest.raises(BadModel, match="the base side cannot start: killed by SIGKILL")
    with nullcontext() if starts else refused:
        assert compared(sides, cells("good")[:1]).measured == 1


def test_a_side_that_ends_when_its_cell_is_over_cannot_step_it(script, sides, monkeypatch):
    put = Process.put

    def ends_at_last(self, **message):
        put(self, **message)
        if "stop" in message and self.name == "candidate":
            self._answer = Failed("candidate", "killed by SIGTERM")

    monkeypatch.setattr(Process, "put", ends_at_last)
    effort = Effort(processes=3, replication=replace(QUICK, one_process=False))
    asked = cells("ends")[:2]
    found = versions.compare(asked, base=sides[0], candidate=sides[1], effort=effort)
    assert [one.cell for one in found.figure_verdicts] == asked
    why = "the candidate cannot step it: killed by SIGTERM"
    assert {one.reason for one in found.figure_verdicts} == {why}


def counted(sides, asked):
    found, _ = commit_counts.count(sides[1], asked, {}, seed=0, limit_s=120.0)
    return {one.cell.grad_mode: one for one in found}


def test_a_commit_that_hangs_in_one_mode_is_not_tried_in_the_others(script, sides):
    script.meets = lambda side, cell, _: late(side)
    first, *others = counted(sides, cells("hangs")).values()
    assert (first.failure, first.skipped) == (HUNG, "")
    assert {one.skipped for one in others} == {f"not tried: {HUNG} in {first.cell}"}
    assert len(script.asked) == 1


def test_a_count_that_sigkill_ended_once_is_made_again(script, sides):
    script.meets = lambda side, _, times: killed(side) if times == 1 else None
    assert {one.failure for one in counted(sides, cells("good")).values()} == {""}
    script.meets = lambda side, *_: killed(side)
    big = counted(sides, cells("big")).values()
    assert {(one.failure, one.doubt, one.by_others) for one in big} == {
        ("killed by SIGKILL", f"was {KILLED_TWICE}", True)
    }


@pytest.mark.parametrize("limit_s", [0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_no_time_is_refused(limit_s):
    with pytest.raises(Impossible, match="limit_s is a number of seconds above 0"):
        replace(QUICK, limit_s=limit_s)


# The socket


@pytest.fixture
def line():
    """A line, and the other end of its socket."""
    here, there = socket.socketpair()
    line = worker.JsonLineSocket(here.detach())
    yield line, there
    line.close()
    there.close()


def test_what_has_come_by_the_deadline_is_read_after_it(line):
    own, other = line
    other.sendall(b'{"a": 1}\n')
    own.deadline = time.monotonic() - 1
    assert own.receive() == {"a": 1}
    with pytest.raises(TimeoutError):
        own.receive()


def test_a_long_message_is_read_after_the_deadline_of_another_that_was_waited_for(line):
    """The sockets of both sides have one deadline, and the hanging side may be heard first."""
    own, other = line
    own.deadline = time.monotonic() - 1
    long = {"a": "b" * 4 * worker.CHUNK_BYTES * 16}
    sends = threading.Thread(target=other.sendall, args=(json.dumps(long).encode() + b"\n",))
    sends.start()
    select.select([own._socket], [], [])
    assert own.receive() == long
    sends.join()


def test_drops_do_not_make_a_deadline_later(line, monkeypatch):
    monkeypatch.setattr(worker, "READING_S", 0.05)
    own, other = line
    own.deadline = time.monotonic() - 1
    for _ in range(2):
        other.sendall(b'{"a": ')
        with pytest.raises(TimeoutError):
            own.receive()


@pytest.mark.parametrize("text", [b"\x00garbage\n", b"[1]\n", b"[" * 9999 + b"\n"])
def test_what_is_no_message_is_no_answer(line, text):
    own, other = line
    own.deadline = time.monotonic() + 60
    other.sendall(text)
    with pytest.raises((ValueError, RecursionError)):
        own.receive()


class Ended(Exception):
    pass


@pytest.fixture
def answered(monkeypatch, tmp_path):
    """Answer a question in this process as a fork does; return its mark and exit status."""

    def ends(status):
        raise Ended(status)

    def answer(line):
        monkeypatch.setattr(os, "_exit", ends)
        monkeypatch.setattr(worker, "last_answer", lambda *_: {"stopped": True})
        with Path(tmp_path / "mark").open("w+b") as mark:
            with pytest.raises(Ended) as caught:
                worker.answer(line, None, {}, mark.fileno())
            return os.fstat(mark.fileno()).st_size, caught.value.args[0]

    return answer


def test_a_fork_marks_its_last_answer_so_that_its_end_is_no_second_one(line, answered):
    own, other = line
    assert answered(own) == (1, 0)
    assert json.loads(other.recv(100)) == {"stopped": True}


def test_a_fork_whose_socket_is_closed_leaves_no_mark_so_that_its_end_is_the_answer(
    line, answered, capfd
):
    own, other = line
    other.close()
    assert answered(own) == (0, 1)
    assert "BrokenPipeError" in capfd.readouterr().err


def test_an_error_whose_words_cannot_be_had_is_named():
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    assert worker.words(Mute()) == "Mute, whose words cannot be had: ValueError"
    assert worker.words(ValueError("first\nmore")) == "ValueError: first"
    assert worker.words(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_process_whose_import_starts_threads_begins_anew_for_no_fork_has_them(monkeypatch):
    begun = []
    monkeypatch.setattr(worker.os, "execve", lambda *how: begun.append(how))
    monkeypatch.setattr(worker.sys, "argv", ["worker.py", "5", '{"order": [0]}'])
    monkeypatch.delattr(torch._C, "_cuda_isInBadFork", raising=False)
    number = [1]
    monkeypatch.setattr(worker, "threads", lambda: number[0])
    sides = SimpleNamespace(in_forks=False, origins=lambda path: {"files": [path]})
    assert worker.imported(sides, "nets:one") == {"files": ["nets:one"]}
    assert begun == []

    def origins(path):
        number[0] += 1
        return {"files": [path]}

    sides.origins = origins
    worker.imported(sides, "nets:one")
    ((_, command, environment),) = begun
    assert command[1:4] == ["-P", "worker.py", "5"]
    assert json.loads(command[4]) == {"order": [0], "importing": "nets:one"}
    assert environment is worker.STARTED_WITH
    monkeypatch.setenv("LD_PRELOAD", "/usr/libexec/valgrind/vgpreload_core-amd64-linux.so")
    worker.imported(sides, "nets:one")
    assert len(begun) == 1  # valgrind would not go on with it
    sides.in_forks = True
    monkeypatch.setattr(worker, "from_a_fork", lambda function: {"forked": function()})
    assert worker.imported(sides, "nets:one") == {"forked": {"files": ["nets:one"]}}


def test_a_file_that_is_missing_is_known_also_behind_another_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        try:
            Path("weights.pt").read_bytes()
        except OSError as error:
            raise ValueError("no weights") from error
    except ValueError as caught:
        assert worker.missing_file(caught) == str(tmp_path / "weights.pt")
    assert worker.missing_file(ValueError("no")) == ""
    assert worker.missing_file(FileNotFoundError("no name")) == ""
