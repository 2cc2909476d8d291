"""The command line: parse, call, print, return a status; one module a group of commands."""

from . import measure, read, gate, compare, machine  # isort: skip # the order of commands in --help
from .app import INTERRUPTED, USAGE, app

__all__ = ["INTERRUPTED", "USAGE", "app", "compare", "gate", "machine", "main", "measure", "read"]


def main() -> None:
    """Run the command line."""
    app(prog_name="gradbench")
