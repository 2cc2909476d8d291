"""Files that commands write: there whole or not at all, and never in the place of another's.

A name is no proof of who wrote a file: what stands where a page or an export is to go must open
like one. A link is followed to what it leads to, and that is what must.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from .errors import StoreError

JSON: Final = re.compile(rb"\s*[\[{]")
"""How every JSON file of ours opens."""
OPENING_BYTES: Final = 4096
"""Of what is there already: as much is looked at."""
NO_PLACE_BESIDE: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV)
"""Errors of a folder that takes no second file, where the file itself may still be written."""


def write(
    path: Path, content: bytes, *, like: re.Pattern[bytes], what: str, remedy: str = ""
) -> Path:
    """Write a file and return its path; raise `StoreError` where that cannot be.

    It may take the place of a file that opens ``like`` it, or that is empty, and of no other;
    ``what`` names such a file in a complaint, which ends with the ``remedy``. What was there before
    is kept until the new one is whole. Into what is no file, a pipe say, it goes as it is.
    """
    with _as_store_errors(path, what, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            _pour(path, content)
            return path
        _check(path, like, what, exists=mode is not None)
        target = path.resolve()
        draft = target.with_name(f".{secrets.token_hex(8)}.new")
        try:
            with draft.open("xb") as file:
                file.write(content)
            if mode is not None:
                shutil.copymode(target, draft)
            draft.replace(target)
        except OSError as error:
            if mode is None or error.errno not in NO_PLACE_BESIDE:
                raise
            target.write_bytes(content)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
    return path


def check(path: Path, *, like: re.Pattern[bytes], what: str) -> None:
    """Raise `StoreError` where `write` would for what is there: before work, and not after it."""
    with _as_store_errors(path, what, ""):
        mode = _mode(path)
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if mode is not None and not stat.S_ISREG(mode):
            return
        _check(path, like, what, exists=mode is not None)
        _check_folder(path, exists=mode is not None)


def remove(path: Path, *, like: re.Pattern[bytes]) -> None:
    """Remove a file that opens ``like`` one of ours; leave any other, and a link.

    Raise `StoreError` where the system does not let it be removed.
    """
    try:
        if stat.S_ISREG(path.lstat().st_mode) and like.match(_opening(path)):
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"cannot remove {str(path)!r}: {error.strerror}") from error


def _mode(path: Path) -> int | None:
    """Return the mode of what is there, at the end of links; None where there is nothing."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _check(path: Path, like: re.Pattern[bytes], what: str, *, exists: bool) -> None:
    if not exists:
        if path.is_symlink():
            raise StoreError(f"{str(path)!r} is a link to nothing: remove it, or choose another")
        return
    opening = _opening(path)
    if opening and not like.match(opening):
        raise StoreError(
            f"{str(path)!r} is there and is no {what} of gradbench: choose another name, or "
            "remove it"
        )


def _check_folder(path: Path, *, exists: bool) -> None:
    """Raise `OSError` where a file's folder, or the one to make it in, takes no file."""
    folder = next(one for one in path.absolute().parents if one.exists())
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        in_its_place = exists and error.errno in NO_PLACE_BESIDE and os.access(path, os.W_OK)
        if not in_its_place:
            raise


def _opening(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(OPENING_BYTES)


def _pour(path: Path, content: bytes) -> None:
    """Write into a device or a pipe; one that nobody reads is not waited for."""
    descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "wb") as file:
        os.set_blocking(descriptor, True)
        file.write(content)


@contextmanager
def _as_store_errors(path: Path, what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter of links that lead in a circle
        why = error.strerror if isinstance(error, OSError) else os.strerror(errno.ELOOP)
        end = f"; {remedy}" if remedy else ""
        raise StoreError(f"cannot write the {what} {str(path)!r}: {why}{end}") from error
