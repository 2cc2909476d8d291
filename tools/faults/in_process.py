"""Commands called in one process, as often as an attack needs, and what is wrong with an answer."""

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.printable import printable

LIMIT_S = 120
"""Seconds after which a command hangs."""

_COMMAND = re.compile(r"^\s*::|##\[|##vso\[|##teamcity\[", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """What a command came to; ``wrong`` names what it should not have done, or is empty."""

    arguments: tuple[str, ...]
    status: int
    out: str
    err: str
    seconds: float
    wrong: str = ""


def call(arguments: Sequence[str], *, limit_s: int = LIMIT_S) -> Answer:
    """Run a command here; a traceback and a hang are wrong whatever was asked."""
    began = time.monotonic()
    wrong = ""
    runner = CliRunner(env={"COLUMNS": "200", "GITHUB_ACTIONS": "true"})
    with _limit(limit_s):
        answer = runner.invoke(app, [*arguments], prog_name="gradbench")
    error = answer.exception
    if isinstance(error, TimeoutError) and "hangs" in str(error):
        wrong = "hang"
    elif error is not None and not isinstance(error, SystemExit):
        wrong = f"traceback: {type(error).__name__}: {str(error)[:200]}"
    elif answer.exit_code == 2 and len(answer.stderr.strip().splitlines()) > 3:
        wrong = "more than a line or two"
    return Answer(
        tuple(arguments),
        answer.exit_code,
        answer.stdout,
        answer.stderr,
        time.monotonic() - began,
        wrong,
    )


def raw_controls(text: str) -> list[str]:
    """Return the characters of a text that are not to be in it: those that nobody can see."""
    return sorted({c for line in text.split("\n") for c in line if printable(f"|{c}|") != f"|{c}|"})


def workflow_commands(text: str) -> list[str]:
    """Return the lines of a text that a CI system would obey."""
    return [line for line in text.splitlines() if _COMMAND.search(line)]


def today() -> str:
    """Return the date for a file of figures."""
    return datetime.now(UTC).date().isoformat()


@contextmanager
def standing_in(folder: Path) -> Iterator[None]:
    """Give commands from a folder, and keep what they cache there."""
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    os.environ["GRADBENCH_CACHE"] = str(folder / "caches")
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
