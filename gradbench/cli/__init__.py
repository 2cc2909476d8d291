"""The command line: parse, call, print, return a status; one module a group of commands."""

from . import (  # isort: skip # the order of commands in --help
    measure,
    predict,
    read,
    history,
    exports,
    ci,
    machine,
    semantics,
)
from .app import INTERRUPTED, USAGE, app

_COMMANDS = (measure, predict, read, history, exports, ci, machine, semantics)

__all__ = ["INTERRUPTED", "USAGE", "app", "main"]


def main() -> None:
    """Run the command line."""
    app(prog_name="gradbench")
