"""What tests ask of processes that are started for it, each anew: nothing here brings torch."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator


def counted(most: int) -> Iterator[int]:
    print("what a job prints is no answer")  # noqa: T201 # it must not meet the items
    yield from range(most)
    yield os.getpid()


def raising() -> Iterator[int]:
    yield 1
    raise ValueError("no such luck")


def exiting(status: int) -> Iterator[int]:
    yield 1
    print("last words", file=sys.stderr, flush=True)  # noqa: T201 # the log has them
    os._exit(status)


def killed() -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), 9)


def hanging() -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child.pid
    time.sleep(600)
