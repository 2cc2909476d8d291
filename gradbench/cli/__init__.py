"""The command line: parse, call, print, return a status; one module a group of commands."""

import sys
import traceback
from pathlib import Path

from ..exit_status import ExitStatus
from ..printable import one_line, printable_lines, without_commands
from . import (
    advise,
    ci,
    compare,
    explain,
    exports,
    gate,
    history,
    machine,
    measure,
    predict,
    read,
    semantics,
    signals,
    standard_streams,
)
from .app import app, sort_commands, unwrap_help

__all__ = [
    "advise",
    "app",
    "ci",
    "compare",
    "explain",
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
unwrap_help()


def main() -> None:
    """Run the command line.

    A crash has a status of its own, for it must not read as a regression; so has output that nobody
    has read, or that could not be written.
    """
    with signals.unwinding() as heard:
        with standard_streams.lasting():
            status = _status_of_command(heard)
            if status != ExitStatus.BROKEN and (error := standard_streams.lost()) is not None:
                status = standard_streams.status_of(error)
        sys.exit(status)


def _status_of_command(heard: signals.Heard) -> int | str | None:
    try:
        Path.cwd()
    except OSError as error:
        words = f"the current folder cannot be had: {error.strerror}: change to another"
        print(f"gradbench: {words}", file=sys.stderr)
        return ExitStatus.USAGE
    try:
        app(prog_name="gradbench")
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except Exception as error:  # noqa: BLE001 # whatever it is, it must not read as a regression
        if heard.status is not None:  # an import that was interrupted raises what it likes
            return heard.status
        lacks = _shortage(error)
        text = f"gradbench: {one_line(lacks)}" if lacks else traceback.format_exc()
        print(without_commands(printable_lines(text)), file=sys.stderr)
        return ExitStatus.USAGE if lacks else ExitStatus.BROKEN
    return ExitStatus.OK


def _shortage(error: Exception) -> str:
    """Return what the machine or the installation lacks, if an error says that."""
    match error:
        case MemoryError():
            return "memory ran out: free some, or ask for less"
        case RuntimeError() if "start new thread" in str(error):
            return "the system starts no more threads: end other processes, or raise the limit"
        case ImportError(name=str(name)) if name.partition(".")[0] != "gradbench":
            return f"{name} cannot be loaded: {error}: install it anew, or free memory"
        case OSError(errno=None, filename=None) if ".so" in str(error):
            return f"a library cannot be loaded: {error}: install it anew, or free memory"
    return ""
