"""The command line: parse, call, print, return a status; one module a group of commands."""

import sys
import traceback

from ..exit_status import ExitStatus
from . import ci, compare, exports, gate, history, machine, measure, predict, read, semantics
from .app import app, sort_commands

__all__ = [
    "app",
    "ci",
    "compare",
    "exports",
    "gate",
    "history",
    "machine",
    "main",
    "measure",
    "predict",
    "read",
    "semantics",
]

sort_commands()


def main() -> None:
    """Run the command line; a crash and a reader that is gone have statuses of their own."""
    try:
        app(prog_name="gradbench")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # which the library reports as 1
            sys.exit(ExitStatus.NO_READER)
        raise
    except Exception:  # noqa: BLE001 # whatever it is, it must not read as a regression
        traceback.print_exc()
        sys.exit(ExitStatus.BROKEN)
