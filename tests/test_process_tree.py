"""A command and all that it starts: it ends as it ends, and nothing of it is left."""

import signal
import subprocess
import sys

import psutil
import pytest
from patience import PATIENCE_S, is_gone, wait_until

from gradbench import process_tree
from gradbench.process_tree import ProcessTree

FAMILY = """
import os, sys, time
if os.fork() == 0:
    {session}
    print(os.getpid(), flush=True)
    time.sleep(600)
time.sleep(600)
"""


def python(code):
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
    ],
)
def test_a_command_ends_with_its_own_status_or_signal(code, status):
    with ProcessTree(python(code)) as process:
        assert process.wait(PATIENCE_S) == status


@pytest.mark.parametrize("linux", [True, False])
def test_a_command_that_is_not_there_is_an_error_at_once(linux, monkeypatch):
    monkeypatch.setattr(process_tree, "LINUX", linux)
    with pytest.raises(FileNotFoundError):
        ProcessTree(["no-such-command-at-all"])


@pytest.mark.parametrize(
    ("linux", "session"), [(True, "os.setsid()"), (True, "pass"), (False, "pass")]
)
def test_the_end_of_a_command_is_that_of_what_it_started(linux, session, monkeypatch):
    """Elsewhere than on Linux, of what is still of its family."""
    monkeypatch.setattr(process_tree, "LINUX", linux)
    with ProcessTree(python(FAMILY.format(session=session)), stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        assert psutil.pid_exists(child)
    wait_until(lambda: is_gone(child))


def test_a_request_to_end_reaches_the_command_itself():
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\ntime.sleep(600)"
    )
    with ProcessTree(python(code), stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.terminate()
        assert process.wait(PATIENCE_S) == 5
