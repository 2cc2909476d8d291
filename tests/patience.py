"""Waiting for what must come, however busy the machine is: a condition decides, never a time."""

import time
from collections.abc import Callable
from typing import Final

import psutil

PATIENCE_S: Final = 300
"""When to give up what will never come. On a busy machine a start of torch takes minutes."""
LOOK_S: Final = 0.02
"""Between two looks."""


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fail where it does not come to that."""
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends, "it did not come to that"
        time.sleep(LOOK_S)


def is_gone(process: int | psutil.Process) -> bool:
    """Return whether a process has ended, be it that its parent has not heard of it yet."""
    try:
        one = psutil.Process(process) if isinstance(process, int) else process
        return one.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
