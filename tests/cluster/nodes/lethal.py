"""Models of the tests' that end the worker of Ray that they are measured for."""

import os
import signal
import time
from pathlib import Path

import psutil
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)


def kill_worker() -> None:
    """Kill the worker that this process is below."""
    for process in psutil.Process(os.getpid()).parents():
        if process.name().startswith("ray::") or "ray::" in " ".join(process.cmdline()):
            process.send_signal(signal.SIGKILL)
            return
    raise RuntimeError("no worker of Ray is above this process")


def once() -> nn.Module:
    """Build the model, but for the first time, at which the worker dies."""
    mark = Path(os.environ["TEST_MARK"])
    if not mark.exists():
        mark.touch()
        kill_worker()
    return Net()


def always() -> nn.Module:
    """Build no model: each time the worker dies."""
    kill_worker()
    return Net()


def waits_on_the_right() -> nn.Module:
    """Build the model; on the node of that name, say that it is being built, and never end."""
    if os.environ["TEST_HOST"] == "right":
        Path(os.environ["TEST_MARK"]).touch()
        time.sleep(600)
    return Net()
