"""The command line: parse, call, print, return a status; one module a group of commands."""

from . import ci, compare, exports, gate, history, machine, measure, predict, read, semantics
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
