"""Builds a version that was checked out, by the user's own command, before anything imports it."""

import tempfile
from pathlib import Path

from ..errors import GradbenchError
from ..git import environment_elsewhere
from ..process_end import how_it_ended, tail
from ..process_tree import ProcessTree


class CannotBuild(GradbenchError):
    """The user's command failed in a version's tree; the message has its last words."""


def build(command: str, folder: Path) -> None:
    """Run a command of the shell in a folder, if there is one; raise `CannotBuild`."""
    if not command:
        return
    with tempfile.TemporaryFile() as log:
        with ProcessTree(
            ["sh", "-c", command],
            env=environment_elsewhere(),
            cwd=folder,
            stdout=log,
            stderr=log,
        ) as process:
            status = process.wait()
        if status:
            end = how_it_ended(status, tail(log.fileno()))
            raise CannotBuild(f"the build command {command!r} {end}")
