"""What a command prints and nobody can read: one line or none, and never a verdict's status."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE_S

from gradbench.cli import signals, standard_streams
from gradbench.exit_status import ExitStatus

FULL = Path("/dev/full")
COMMAND = (sys.executable, "-m", "gradbench", "list", "--preset", "tiny", "--model", "mlp_tiny")
STREAMED = """
import sys
from gradbench import cli
from gradbench.cli import standard_streams

def app(**_):
    for number in range(2000):
        print("line", number, chr(0x2192))
    print("went on", file=sys.stderr)
    raise SystemExit(1)

cli.app = app
cli.main()
"""


def streamed(stdout, **environment):
    """Return the status and errors of a command that prints much and then finds a regression."""
    with subprocess.Popen(
        [sys.executable, "-c", STREAMED],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    ) as process:
        if process.stdout is not None:
            process.stdout.close()
        _, said = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said.decode()


def test_a_reader_that_is_gone_ends_neither_the_command_nor_makes_it_a_regression():
    assert streamed(subprocess.PIPE) == (ExitStatus.NO_READER, "went on\n")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
def test_a_full_disk_under_the_output_is_one_line():
    with FULL.open("w") as full:
        status, said = streamed(full)
    assert status == ExitStatus.USAGE
    assert said == "went on\ngradbench: cannot print: No space left on device\n"


def test_characters_that_the_output_cannot_hold_are_spelled_in_those_it_can(tmp_path):
    with (tmp_path / "out").open("w") as out:
        status, said = streamed(out, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (status, said) == (ExitStatus.REGRESSION, "went on\n")
    assert (tmp_path / "out").read_text("ascii").startswith("line 0 ->\n")


def test_streams_that_others_have_put_in_place_are_theirs(capsys):
    before = sys.stdout
    with standard_streams.lasting():
        assert sys.stdout is before
        assert standard_streams.lost() is None


@pytest.mark.parametrize(
    ("number", "raised", "status"),
    [
        (signal.SIGINT, KeyboardInterrupt, ExitStatus.INTERRUPTED),
        (signal.SIGTERM, SystemExit, ExitStatus.TERMINATED),
        (signal.SIGHUP, SystemExit, ExitStatus.HUNG_UP),
    ],
)
def test_a_signal_unwinds_a_command_and_a_second_one_does_not_disturb_that(number, raised, status):
    signal.signal(number, signal.SIG_DFL)
    unwound = []
    with signals.unwinding() as heard:
        with pytest.raises(raised):
            try:
                os.kill(os.getpid(), number)
                time.sleep(PATIENCE_S)
            finally:
                os.kill(os.getpid(), number)
                unwound.append(number)
        assert heard.status == status
    assert unwound == [number]
    os.kill(os.getpid(), number)  # at the very end: nothing is left to be unwound


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    with signals.unwinding():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
