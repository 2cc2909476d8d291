"""Where a dataset's files lie: a folder of this machine, or a URL of any store fsspec reaches."""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from ..errors import GradbenchError, StoreError, in_one_line
from ..printable import one_line
from ..store import file_lock

LOCK: Final = ".gradbench-pack.lock"
"""Of a folder that is packed into, as long as that lasts."""
LARGEST_FILE_BYTES: Final = 2**29
"""Of one file; no file of gradbench has more."""
GAP_BYTES: Final = 2**16
"""Ranges of a file that lie closer are asked for at once: a request costs more than these bytes."""
TRIES: Final = 3
"""A dataset is listed so often where another pack has put files of it into a larger one."""

T = TypeVar("T")


class NeedsPyarrow(GradbenchError):
    """Parquet was asked for where pyarrow, or fsspec, is not installed."""


class Vanished(StoreError):
    """A file that was listed is gone: another pack has put its runs into a larger one."""


@dataclass(frozen=True, slots=True, order=True)
class File:
    """A file of a dataset: its name below the dataset's root, ``month=2026-11/x.parquet``."""

    name: str
    nbytes: int

    @property
    def month(self) -> str:
        """Which month its runs began in, ``2026-11``."""
        return self.name.partition("/")[0].removeprefix("month=")


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Bytes of a file, from ``start`` up to before ``end``."""

    name: str
    start: int
    end: int


class DatasetStore:
    """The files of one dataset.

    A file belongs to it that lies in a folder ``month=…`` and ends in ``.parquet``. It is there
    whole or not at all, so whoever reads beside a writer, or after one that was killed, reads a
    dataset.
    """

    def __init__(self, where: str) -> None:
        try:
            from fsspec.core import url_to_fs
            from fsspec.implementations.local import LocalFileSystem
        except ImportError as error:
            raise NeedsPyarrow(
                "Parquet needs fsspec: pip install 'torch-gradbench[parquet]'"
            ) from error
        self._where = where.rstrip("/")
        with self._as_store_errors("reach"):
            try:
                self._files, self._root = url_to_fs(where)
            except ImportError as error:
                raise StoreError(f"cannot reach {where!r}: {error}{_package(where)}") from error
        self._local = Path(self._root) if isinstance(self._files, LocalFileSystem) else None

    def say(self, name: str) -> str:
        """Return a file's name as its user would write it."""
        return f"{self._where}/{name}"

    def files(self) -> list[File]:
        """Return the dataset's files by name, none where nothing was packed yet."""
        with self._as_store_errors("read"):
            self._files.invalidate_cache()  # another process may have written since
            found = self._files.glob(f"{escape(self._root)}/month=*/*.parquet", detail=True)
        return sorted(
            File("/".join(path.rsplit("/", 2)[-2:]), int(about.get("size") or 0))
            for path, about in found.items()
        )

    def check_there(self) -> None:
        """Raise `StoreError` where there is no such bucket, or it is closed to us."""
        if self._local is not None:
            return
        with self._as_store_errors("read"):
            try:
                self._files.ls(self._bucket())
            except FileNotFoundError as error:
                raise StoreError(
                    f"cannot read {self._where!r}: there is no such bucket or folder"
                ) from error

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of ranges, of a store elsewhere many at a time.

        Raise `Vanished` where a file is no longer there.
        """
        if not ranges:
            return []
        with self._as_store_errors("read"):
            try:
                return self._read(ranges)
            except FileNotFoundError as error:
                raise Vanished(f"{self._where!r} changed while it was read: {error}") from error

    def _read(self, ranges: Sequence[Range]) -> list[bytes]:
        parts = self._files.cat_ranges(
            [f"{self._root}/{one.name}" for one in ranges],
            [one.start for one in ranges],
            [one.end for one in ranges],
            on_error="raise",
        )
        for one, part in zip(ranges, parts, strict=True):
            if isinstance(part, BaseException):  # as fsspec returned it before 2026
                raise part
            if len(part) != one.end - one.start:
                raise Vanished(f"{self.say(one.name)} became shorter while it was read")
        return [bytes(part) for part in parts]

    def write(self, name: str, content: bytes) -> None:
        """Write a file that is there whole or not at all, as object stores do by themselves.

        Raise `StoreError` where that cannot be.
        """
        try:
            with self._as_store_errors("write"):
                if self._local is None:
                    self._put(f"{self._root}/{name}", content)
                else:
                    _write_whole(self._local / name, content)
        except StoreError as error:
            raise StoreError(
                f"{error}; what was packed before is whole, pack again for the rest"
            ) from error

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, of which some may be gone."""
        with self._as_store_errors("tidy up"):
            for name in names:
                try:
                    self._files.rm_file(f"{self._root}/{name}")
                except FileNotFoundError:
                    continue

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second packer of this machine out, which would pack the same runs.

        Elsewhere nothing can: two may pack one run at a time, and it counts once where it is read.
        Raise `StoreError` where the folder cannot be written in.
        """
        if self._local is None:
            yield
            return
        while True:
            try:
                self._local.mkdir(parents=True, exist_ok=True)
                lock = open(self._local / LOCK, "a", opener=_itself)  # noqa: SIM115 # closed below
            except OSError as error:
                raise StoreError(f"cannot write in {self._where!r}: {error.strerror}") from error
            with lock:
                file_lock.hold(lock)
                if not _is_there(lock, self._local / LOCK):  # another packer has removed it
                    continue
                try:
                    yield
                finally:
                    _leave_nothing_empty(self._local)
                return

    def _put(self, path: str, content: bytes) -> None:
        try:
            self._files.pipe_file(path, content)
        except FileNotFoundError:  # a store with folders; or there is no bucket, and we make none
            self.check_there()
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, content)

    def _bucket(self) -> str:
        """Return the first part of the path: of an object store its bucket."""
        root: str = self._root
        head, slash, tail = root.partition("/")
        return head or slash + tail.partition("/")[0]

    @contextmanager
    def _as_store_errors(self, doing: str) -> Iterator[None]:
        """Turn what a store raises into one line that says of which place it is."""
        try:
            yield
        except GradbenchError:
            raise
        except Exception as error:
            raise StoreError(f"cannot {doing} {self._where!r}: {_words(error)}") from error


def listing_anew(ask: Callable[[], T]) -> T:
    """Return what is asked of a dataset; ask again where a file vanished meanwhile."""
    for _ in range(TRIES - 1):
        with suppress(Vanished):
            return ask()
    return ask()


def merged(ranges: Sequence[Range]) -> list[Range]:
    """Return ranges that cover these, with those of a file in one that lie close together."""
    joined: list[Range] = []
    for one in sorted(ranges):
        last = joined[-1] if joined else None
        if last and last.name == one.name and one.start <= last.end + GAP_BYTES:
            joined[-1] = Range(one.name, last.start, max(last.end, one.end))
        else:
            joined.append(one)
    return joined


def _itself(path: str, flags: int) -> int:
    """Open a file, through no link, and wait for no reader of a FIFO."""
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags | careful, 0o666)


def _is_there(file: IO[str], path: Path) -> bool:
    """Return whether a file that is open still is the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _leave_nothing_empty(folder: Path) -> None:
    """Remove the lock's file, which is held, and the folder where that was all that it had."""
    with suppress(OSError):  # Windows removes no file that is open
        (folder / LOCK).unlink()
        folder.rmdir()


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _words(error: Exception) -> str:
    """Return what a store's error says; its kind where that is no error of the system's."""
    if isinstance(error, OSError | ValueError):
        words = getattr(error, "strerror", None) or str(error)
    else:
        words = in_one_line(error)
    return one_line(words or type(error).__name__)


def _package(where: str) -> str:
    """Return which package brings what reads these URLs, where fsspec knows one."""
    from fsspec.registry import known_implementations

    known: dict[str, Any] = known_implementations.get(where.partition("://")[0], {})
    package = str(known.get("class", "")).partition(".")[0]
    return f" (pip install {package})" if package not in ("", "fsspec") else ""
