"""Locks of a host: who holds one holds it alone, for as long as the process lives."""

import errno
import multiprocessing
import os
import signal
import threading
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from patience import PATIENCE_S

from gradbench import host_locks, supervisor
from gradbench.errors import GradbenchError
from gradbench.host_locks import Held, holding


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(host_locks.VARIABLE, str(tmp_path / "locks"))
    return tmp_path / "locks"


def test_what_is_held_is_not_had_a_second_time_and_is_named():
    with (
        holding(["core-0", "core-1"], wait_s=0.1),
        pytest.raises(Held, match=r"core-1 was held by another run for 0\.1 s"),
        holding(["core-1", "core-2"], wait_s=0.1),
    ):
        pytest.fail("it was had twice")


def test_what_has_no_name_in_common_is_held_at_once():
    with holding(["core-0"], wait_s=0.1), holding(["core-1", "device-0"], wait_s=0.1):
        pass


def test_what_could_not_all_be_had_is_given_back():
    with holding(["core-1"], wait_s=0.1):
        with pytest.raises(Held), holding(["core-0", "core-1"], wait_s=0.0):
            pass
        with holding(["core-0"], wait_s=0.1):
            pass


def _hold_until_killed(ready):
    try:
        with holding(["core-0"], wait_s=0.1):
            ready.set()
            signal.pause()
    finally:
        os._exit(1)  # in no case does a second process go on with the tests


def test_a_lock_ends_with_the_process_that_held_it():
    ready = multiprocessing.Event()
    child = os.fork()
    if child == 0:
        _hold_until_killed(ready)
    try:
        assert ready.wait(PATIENCE_S)
        with pytest.raises(Held), holding(["core-0"], wait_s=0.0):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with holding(["core-0"], wait_s=0.1):
        pass


def test_locks_of_other_users_can_be_held(folder):
    with holding(["core-0"], wait_s=0.1):
        pass
    assert folder.stat().st_mode & 0o1777 == 0o1777
    (folder / "core-0.lock").chmod(0o444)
    with holding(["core-0"], wait_s=0.1):
        pass


def test_a_system_that_refuses_what_one_holds_already_lets_it_be_held(monkeypatch):
    asked = []

    def refuse_twice(file, *, wait):
        if file in asked:
            raise PermissionError("one holds it already")
        asked.append(file)

    monkeypatch.setattr(host_locks.file_lock, "hold", refuse_twice)
    with holding(["core-0", "core-1"], wait_s=0.0):
        assert len(asked) == 4  # each lock, and whose turn it is


@pytest.mark.parametrize(
    "number",
    [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EIO],
    ids=errno.errorcode.get,
)
def test_a_file_system_without_locks_is_an_error_and_not_waited_for(number, monkeypatch):
    def refuse(_file, *, wait):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(host_locks.file_lock, "hold", refuse)
    with pytest.raises(GradbenchError, match=host_locks.VARIABLE), holding(["core-0"]):
        pytest.fail("it was had")


def test_a_folder_that_cannot_be_is_an_error_of_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(host_locks.VARIABLE, str(tmp_path / "file" / "locks"))
    with pytest.raises(GradbenchError, match="no lock can be had in") as why, holding(["core-0"]):
        pytest.fail("it was had")
    assert "\n" not in str(why.value)


def _ask_in_a_fork(refused):
    """Ask for the lock in a process below this one; why it was refused goes to the file."""
    child = os.fork()
    if child == 0:
        try:
            with holding(["core-0"], wait_s=PATIENCE_S):
                pass
        except GradbenchError as why:
            refused.write_text(str(why), "utf-8")
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def test_a_process_below_the_one_that_holds_a_lock_is_refused_and_does_not_wait(tmp_path):
    """As of a model that measures while it is measured: it would wait for its own end."""
    refused = tmp_path / "refused"
    with holding(["core-0"]):
        _ask_in_a_fork(refused)
    started_by = f"core-0 is held by the run that started this one (process {os.getpid()})"
    assert refused.read_text("utf-8").startswith(started_by)


def test_a_pipe_in_the_place_of_a_lock_is_not_waited_for(folder):
    """Any user of the host may put one there."""
    folder.mkdir()
    os.mkfifo(folder / "core-0.lock")
    with holding(["core-0"], wait_s=0.0), pytest.raises(Held), holding(["core-0"], wait_s=0.0):
        pytest.fail("it was had twice")


def _in_a_thread(act):
    """Start a thread; return it when what it waits for is held by others."""
    waits = threading.Event()
    thread = threading.Thread(target=act, args=(waits,))
    thread.start()
    return thread, waits


def test_who_gives_a_lock_back_and_wants_it_again_comes_behind_who_waits():
    """As a node of a cluster does between two blocks: another on its host would wait for ever."""
    had = []

    def once(waits):
        with holding(["core-0"], waiting=waits.set):
            had.append("who waited")

    with holding(["core-0"]):
        thread, waits = _in_a_thread(once)
        assert waits.wait(PATIENCE_S)
    with holding(["core-0"]):
        had.append("who had it before")
    thread.join()
    assert had == ["who waited", "who had it before"]


def test_all_who_wait_for_locks_in_common_have_them_in_the_end():
    had = []

    def often(_, names, own):
        for _ in range(5):
            with holding(names, wait_s=PATIENCE_S):
                had.append(own)

    wanted = [["core-0", "core-1"], ["core-1", "device-0"], ["core-0", "device-0"]]
    with holding(["core-0", "core-1", "device-0"]):
        started = [
            _in_a_thread(partial(often, names=names, own=own)) for own, names in enumerate(wanted)
        ]
    for thread, _ in started:
        thread.join()
    assert Counter(had) == {0: 5, 1: 5, 2: 5}


def test_a_process_below_the_one_that_holds_a_lock_is_refused_though_another_has_the_turn(tmp_path):
    refused = tmp_path / "refused"
    with holding(["core-0"]):
        over = threading.Event()
        thread, waits = _in_a_thread(partial(_wait_until, over=over))
        assert waits.wait(PATIENCE_S)
        _ask_in_a_fork(refused)
        over.set()
        thread.join()
    assert "is held by the run that started this one" in refused.read_text("utf-8")


def test_a_file_of_the_same_number_on_another_file_system_is_another(folder, tmp_path, monkeypatch):
    """As a run's records may be, which the process that started this one holds meanwhile."""
    with holding(["core-0"]), (folder / "core-0.lock").open("rb") as lock:
        assert supervisor.holders_of_lock(lock.fileno()) == [os.getpid()]
        number, pid = os.fstat(lock.fileno()).st_ino, str(os.getpid())
        listed = Path("/proc/locks").read_text("ascii").splitlines()
        rows = [line.split() for line in listed if line.endswith(f":{number} 0 EOF")]
        (own,) = (row for row in rows if row[4] == pid)
        proc = tmp_path / "proc"
        proc.mkdir()
        (proc / "self").symlink_to("/proc/self")
        monkeypatch.setattr(supervisor, "_PROC", proc)
        for place, holders in ((own[5], [os.getpid()]), (f"ff:ff:{number}", [])):
            (proc / "locks").write_text(" ".join([*own[:5], place, *own[6:]]), "ascii")
            assert supervisor.holders_of_lock(lock.fileno()) == holders


def _wait_until(waits, over):
    with suppress(Held), holding(["core-0"], waiting=waits.set, given_up=over.is_set):
        pass
