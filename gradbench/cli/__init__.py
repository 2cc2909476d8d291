"""The command line: parse, call, print, return a status; one module a group of commands."""

from . import (  # isort: skip # the order of commands in --help
    measure,
    predict,
    read,
    gate,
    compare,
    history,
    exports,
    ci,
    machine,
    semantics,
)
from .app import INTERRUPTED, USAGE, app

__all__ = [
    "INTERRUPTED",
    "USAGE",
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


def main() -> None:
    """Run the command line."""
    app(prog_name="gradbench")
