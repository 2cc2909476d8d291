"""Temporary folders that say whose they are, so that what a killed process left can be removed.

A folder has an owner as long as somebody holds the lock on a file in it, and locks end with the
process. Only folders with such a file are ever removed: a name that looks like ours proves nothing.
"""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from .store import file_lock

PREFIX: Final = "gradbench-"
OWNER: Final = "gradbench-owner.json"


@contextmanager
def folder(**notes: str) -> Iterator[Path]:
    """Make a temporary folder and remove it in the end; the notes are for whoever finds it."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        path = Path(name)
        draft = path / f"{OWNER}.new"
        with draft.open("w", encoding="utf-8") as file:
            file_lock.hold(file)
            json.dump({"pid": os.getpid(), **notes}, file)
            file.flush()
            draft.rename(path / OWNER)  # there is never an owner's file without its lock
            yield path


def abandoned() -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Yield this user's folders that nobody owns any more, with the notes in them."""
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        notes = _notes_of_the_dead(path)
        if notes is not None:
            yield path, notes


def remove(path: Path) -> None:
    """Remove what was found to be abandoned."""
    shutil.rmtree(path, ignore_errors=True)


def _notes_of_the_dead(path: Path) -> Mapping[str, str] | None:
    """Return the notes of a folder whose owner is gone; None of any other."""
    with suppress(OSError, ValueError):
        there = path.lstat()
        mine = not hasattr(os, "getuid") or there.st_uid == os.getuid()
        owner = path / OWNER
        if not (stat.S_ISDIR(there.st_mode) and mine and stat.S_ISREG(owner.lstat().st_mode)):
            return None
        with owner.open("rb") as file:
            if file_lock.held(file):
                return None
            notes = json.load(file)
        if isinstance(notes, dict):
            return {key: value for key, value in notes.items() if isinstance(value, str)}
    return None
