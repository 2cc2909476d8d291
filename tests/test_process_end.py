"""How a process ended: its signal or status, and of all it printed the line that says why."""

import signal
import subprocess
import sys

import pytest

from gradbench.process_end import (
    TAIL_BYTES,
    ended_by_others,
    how_it_ended,
    last_words,
    says_others_ended,
    tail,
)


@pytest.mark.parametrize(
    ("code", "output", "end"),
    [
        (0, "", "ended early with exit status 0"),
        (3, "it is over\n", "ended early with exit status 3 (it is over)"),
        (-11, "", "killed by SIGSEGV"),
        (-62, "", "killed by signal 62"),  # real-time signals have no name of their own
        (
            1,
            "==7== Callgrind\nValueError: no\n\n==7==\n",
            "ended early with exit status 1 (ValueError: no)",
        ),
    ],
)
def test_an_end_is_a_signal_or_a_status_with_the_last_words(code, output, end):
    assert how_it_ended(code, output) == end


@pytest.mark.parametrize(
    ("code", "output"), [(-9, ""), (-15, "bye"), (-62, ""), (-11, ""), (-6, "what(): no"), (1, "")]
)
def test_words_say_as_well_as_the_code_whether_others_ended_a_process(code, output):
    assert says_others_ended(how_it_ended(code, output)) is ended_by_others(code)
    assert not says_others_ended(how_it_ended(1, "killed by SIGKILL"))


CRASH = """\
nets.py:3: UserWarning: this will be removed
Fatal Python error: Segmentation fault

Current thread 0x00007f (most recent call first):
  File "nets.py", line 7 in forward
"""


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", ""),
        ("\nUSDT: probes\n \n", ""),
        ("a warning\nRuntimeError: the error\n", "RuntimeError: the error"),
        (CRASH, "Fatal Python error: Segmentation fault"),
        ("terminate called\n  what():  CUDA error\n" + CRASH, "CUDA error"),
    ],
)
def test_neither_a_warning_before_nor_a_stack_after_hides_the_error(output, words):
    assert last_words(output) == words


def test_real_processes_are_reported_as_they_ended():
    def how(program):
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", program],
            capture_output=True,
            text=True,
            check=False,
        )
        return how_it_ended(done.returncode, done.stderr)

    assert how("import os; os.abort()") == "killed by SIGABRT (Fatal Python error: Aborted)"
    assert how("1 / 0") == "ended early with exit status 1 (ZeroDivisionError: division by zero)"
    killed = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    assert how(killed) == "killed by SIGKILL"


def test_of_a_long_log_the_end_is_read_and_nothing_before_the_position(tmp_path):
    with (tmp_path / "log").open("w+b") as log:
        log.write(b"early\n" * TAIL_BYTES + b"late\n")
        log.flush()
        end = log.tell()
        assert last_words(tail(log.fileno())) == "late"
        assert len(tail(log.fileno())) == TAIL_BYTES
        assert tail(log.fileno(), since=end) == ""
        log.write(b"later\n")
        log.flush()
        assert tail(log.fileno(), since=end) == "later\n"


@pytest.mark.parametrize(
    ("code", "by_others"),
    [(0, False), (9, False), (-11, False), (-6, False), (-9, True), (-15, True), (-14, True)],
)
def test_a_signal_that_others_send_says_nothing_of_what_a_process_does(code, by_others):
    assert ended_by_others(code) is by_others
