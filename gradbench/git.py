"""Git, as far as gradbench asks it: one way to run it, and its answer or its own words why not."""

import subprocess
from pathlib import Path
from typing import Final

from .errors import GradbenchError

LIMIT_S: Final = 10.0  # a network drive must not hold a measurement up for ever


class GitError(GradbenchError):
    """Git cannot be run, or refuses: the message is its last line."""


def git(*arguments: str, folder: Path | None = None, limit_s: float | None = LIMIT_S) -> str:
    """Run git in a folder, or where we are; return what it prints. Raise `GitError`."""
    where = ["-C", str(folder)] if folder is not None else []
    try:
        answer = subprocess.run(
            ["git", *where, *arguments],
            capture_output=True,
            text=True,
            errors="replace",  # a path may hold any bytes
            check=False,
            timeout=limit_s,
            start_new_session=True,  # Ctrl-C is for us: git may be putting things in order
        )
    except OSError as error:
        raise GitError(f"git cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise GitError(f"git {arguments[0]} gave no answer in {limit_s:g} s") from error
    if answer.returncode:
        lines = answer.stderr.strip().splitlines()
        raise GitError(lines[-1] if lines else f"git {arguments[0]} failed")
    return answer.stdout.strip()
