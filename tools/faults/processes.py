"""A command under attack: all of its processes, whatever sessions they make, found by a mark."""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

MARK = "GRADBENCH_UNDER_ATTACK"
QUIET_S = 2.0
"""How long after a kill processes may live, on a machine without other work."""
PATIENCE_S = 60.0
"""How long they are waited for all the same, to know how long it took."""


class Attacked:
    """A gradbench command whose every process carries a mark in its environment."""

    def __init__(self, arguments: Sequence[str], folder: Path, *, own_group: bool = False) -> None:
        self._mark = secrets.token_hex(8)
        tree = Path(__file__).resolve().parents[2]
        path = [str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
        scratch = folder / "tmp"
        scratch.mkdir(exist_ok=True)
        self.began = time.monotonic()
        with (folder / "said").open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gradbench", *arguments],
                cwd=folder,
                env={
                    **os.environ,
                    MARK: self._mark,
                    "PYTHONPATH": os.pathsep.join(path),
                    "TMPDIR": str(scratch),
                },
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                process_group=0 if own_group else None,
            )

    def living(self) -> list[psutil.Process]:
        """Return every process that carries the mark and is no zombie."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                marked = process.environ().get(MARK) == self._mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def below(self, depth: int) -> list[int]:
        """Return the processes that many steps below the command: 2 is a fork server."""
        level = [self.process.pid]
        for _ in range(depth):
            children = [psutil.Process(pid).children() for pid in level if psutil.pid_exists(pid)]
            level = [child.pid for family in children for child in family]
        return level

    def seconds_until_gone(self) -> float:
        """Wait until no process of the command lives; return how long that took."""
        began = time.monotonic()
        while self.living() and time.monotonic() - began < PATIENCE_S:
            time.sleep(0.02)
        return time.monotonic() - began

    def end(self) -> None:
        """Leave nothing behind, whatever became of it."""
        for process in self.living():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
