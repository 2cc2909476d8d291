"""Git, as far as gradbench asks it: one way to run it, and its answer or its own words why not."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .errors import GradbenchError

LIMIT_S: Final = 10.0  # a network drive must not hold a measurement up for ever
_OF_ONE_REPOSITORY: Final = frozenset(
    {
        *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX"),
        *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE"),
    }
)
"""Variables that git sets for a hook. From whichever folder, they would lead to its repository, and
a worktree that is added would be written into that one's index."""

_SETTINGS: Final = {
    "core.hooksPath": os.devnull,
    "submodule.recurse": "false",
    "log.follow": "false",
}
"""What a user may have set for checkouts and logs of their own: a hook that installs packages, or
fails without a tool, submodules that are fetched, another history of a path that was renamed."""


class GitError(GradbenchError):
    """Git cannot be run, or refuses: the message is its last line."""


def git(*arguments: str, folder: Path | None = None, limit_s: float | None = LIMIT_S) -> str:
    """Run git in a folder, or where we are; return what it prints. Raise `GitError`."""
    answer = _asked(arguments, folder=folder, limit_s=limit_s)
    return answer.decode("utf-8", "replace").removesuffix("\n")


def paths(*arguments: str, folder: Path, limit_s: float | None = LIMIT_S) -> list[Path]:
    """Return the paths that git prints, each before a zero byte, or one before a line's end."""
    answer = _asked(arguments, folder=folder, limit_s=limit_s).removesuffix(b"\n")
    return [Path(os.fsdecode(name)) for name in answer.split(b"\0") if name]


def environment_elsewhere() -> dict[str, str]:
    """Return this process's environment for what is to ask git of the folder that it stands in."""
    return {name: one for name, one in os.environ.items() if name not in _OF_ONE_REPOSITORY}


def _asked(arguments: tuple[str, ...], *, folder: Path | None, limit_s: float | None) -> bytes:
    where = ["-C", str(folder)] if folder is not None else []
    environment = dict(os.environ) if folder is None else environment_elsewhere()
    try:
        answer = subprocess.run(
            ["git", *where, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_with_settings(environment) | {"GIT_OPTIONAL_LOCKS": "0"},  # of status: no index
            check=False,
            timeout=limit_s,
            start_new_session=True,  # Ctrl-C is for us: git may be putting things in order
        )
    except OSError as error:
        raise GitError(f"git cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise GitError(f"git {arguments[0]} gave no answer in {limit_s:g} s") from error
    if answer.returncode:
        lines = answer.stderr.decode("utf-8", "replace").strip().splitlines()
        raise GitError(lines[-1] if lines else f"git {arguments[0]} failed")
    return answer.stdout


def _with_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which git has our settings, after those that it has already."""
    try:
        first = int(environment.get("GIT_CONFIG_COUNT") or 0)
    except ValueError:  # git itself says what is wrong
        return dict(environment)
    ours: dict[str, str] = {"GIT_CONFIG_COUNT": str(first + len(_SETTINGS))}
    for number, (name, value) in enumerate(_SETTINGS.items(), start=first):
        ours |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return dict(environment) | ours
