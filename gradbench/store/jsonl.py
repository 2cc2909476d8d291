"""Runs on disk: one JSON-lines file a run, streamed to a part file, sealed when complete.

A run is written to ``NAME.jsonl.part``, a line a record, flushed as they come. When it has come
to its end, a last line with the count and hash of what stands above is added and the file is
renamed to ``NAME.jsonl``. Names sort by time.

A suffix does not make a file a run: its first bytes do. Of any other file nothing more is read,
and nothing is moved. Line ends may have become CRLF on the way, by git's autocrlf: count and hash
are of the lines as they were written, and no record contains either byte.
"""

import os
import re
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final, Self

from ..errors import StoreError
from ..printable import printable
from ..records.measurements import Reading, Record, Started
from ..records.run import Run
from . import file_lock, name_lookup
from .run_lines import (
    LONGEST_LINE_BYTES,
    BrokenSeal,
    line_of,
    read_part,
    read_sealed,
    seal_of,
)

SEALED: Final = ".jsonl"
PART: Final = ".jsonl.part"
DRAFT: Final = ".new"
QUARANTINE: Final = "quarantine"
STUDIES: Final = "studies"

_OPENING: Final = re.compile(rb'\s*\{\s*"kind"\s*:\s*"started"\s*[,}]')
_OPENING_BYTES: Final = 256

LARGEST_FILE_BYTES: Final = 2**30


class Writer:
    """An open part file, ``path``, that this process alone writes; use it as a context manager.

    Leaving it without `seal` keeps the part file, to be resumed.
    """

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path, self._file = path, file

    @property
    def name(self) -> str:
        """The run's name."""
        return _stem(self.path)

    def write(self, record: Record) -> None:
        """Append one record and hand it to the operating system; raise `StoreError` if it cannot.

        What was written before is then kept, as after any other end.
        """
        with self._as_store_errors():
            print(line_of(record), file=self._file, flush=True)

    def seal(self) -> Path:
        """Add count and hash, rename the part file, and return the run's file."""
        with self._as_store_errors():
            self._file.flush()
            print(seal_of(self.path.read_bytes()), file=self._file, flush=True)
            os.fsync(self._file.fileno())
            final = self.path.with_name(self.name + SEALED)
            self.path.rename(final)
            self._file.close()
        return final

    @property
    def is_empty(self) -> bool:
        """Whether the part file is there and nothing was written to it."""
        try:
            return self.path.stat().st_size == 0
        except OSError:
            return False

    def discard(self) -> None:
        """Remove the part file, which holds nothing to go on with."""
        with suppress(OSError):
            self.path.unlink()

    @contextmanager
    def _as_store_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write {str(self.path)!r}: {error.strerror}; what was written before is "
                f"kept: fix that, then gradbench run --resume {shlex.quote(str(self.path))}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written was said, and closing tries again
            self._file.close()


class Store:
    """A folder of runs."""

    def __init__(self, folder: str | Path = "results") -> None:
        self.folder = Path(folder)

    @property
    def studies(self) -> "Store":
        """The short runs of one model: apart, for none of them is anybody's latest run."""
        return Store(self.folder / STUDIES)

    def create(self) -> Writer:
        """Open a new run of its own name; raise `StoreError` where it cannot be written."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        path = self.folder / f"{stamp}-{secrets.token_hex(2)}{PART}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.with_name(path.name.removesuffix(PART) + SEALED).exists():
                return self.create()
            file = path.open("x", encoding="utf-8", newline="\n")
        except OSError as error:
            if isinstance(error, FileExistsError) and self.folder.is_dir():
                return self.create()
            raise StoreError(
                f"cannot write results in {str(self.folder)!r}: {error.strerror}; "
                "choose another folder with --results"
            ) from error
        _lock(file, path)
        return Writer(path, file)

    def save(self, records: Iterable[Record]) -> Run:
        """Write records as they come, seal the run and return it."""
        with self.create() as writer:
            for record in records:
                writer.write(record)
            path = writer.seal()
        return load(path)

    def resume(self, name: str) -> tuple[Writer, Run]:
        """Open a run that was cut short; return it with what it holds.

        Rounds of a block that was cut while being written are dropped: they have no partners.
        Where more is damaged than the line that was being written, the file is kept beside the new
        one, and ``dropped`` says where. Raise `StoreError` for a run that is complete, or that
        another process writes.
        """
        path = self.find(name)
        if not path.name.endswith(PART):
            raise StoreError(f"run {name!r} is complete: only a run cut short can be resumed")
        with path.open("r+", encoding="utf-8") as old:
            _lock(old, path)
            if not os.path.samestat(os.fstat(old.fileno()), path.stat()):
                raise StoreError(f"{path.name} is being written by another process")
            run, damaged = _load_part(path)
            if damaged:
                run = replace(run, dropped=f"{run.dropped}; {_copied(path)}")
            draft = path.with_name(path.name + DRAFT)
            _remove_draft(draft)
            file = draft.open("x", encoding="utf-8", newline="\n")
            _lock(file, path)
            writer = Writer(path, file)
            for record in run.records:
                partial = (
                    isinstance(record, Reading) and (record.cell, record.meter) not in run.done
                )
                if not partial:
                    writer.write(record)
            os.fsync(file.fileno())
            draft.replace(path)
        return writer, run

    def find(self, name: str) -> Path:
        """Return the file of a run given by path, by name or by its beginning, or ``latest``.

        Raise `StoreError` where that is none, or several.
        """
        name_lookup.check_named(name, "run")
        path = Path(name)
        try:
            if path.is_file():
                return path
            there = "it is no regular file" if path.exists() else "there is no such file"
        except OSError as error:  # a name that no file can have
            raise StoreError(f"no run {name!r}: {error.strerror}") from error
        if path.parent != Path():
            raise StoreError(f"no run in {name!r}: {there}")
        files = {run_name(path): path for path in self._files()}
        wanted = run_name(path)
        if wanted in files:
            return files[wanted]
        runs = [stem for stem in sorted(files) if _has_a_first_record(files[stem])]
        chosen = name_lookup.meant(name, runs, beginning=wanted, kind="run", folder=self.folder)
        return files[chosen]

    def before(self, run: Run) -> str:
        """Return the name of the latest complete run before one, with a cell of its, or ``""``.

        By name, and so by time.
        """
        cells = set(run.header.cells)
        earlier = (path for path in self._files() if path.name.endswith(SEALED))
        for path in sorted(earlier, key=run_name, reverse=True):
            if run_name(path) < run.name:
                with suppress(StoreError):
                    if not cells.isdisjoint(load(path).header.cells):
                        return run_name(path)
        return ""

    def load_all(self) -> tuple[list[Run], list[str]]:
        """Return the readable runs by time, and in words what is wrong with the other files."""
        loaded, warnings = self.load_files()
        return [*loaded.values()], warnings

    def load_files(self) -> tuple[dict[Path, Run], list[str]]:
        """Return the same, each run under its file."""
        loaded, warnings = {}, []
        for path in self._files():
            try:
                loaded[path] = load(path)
            except StoreError as error:
                warnings.append(str(error))
        return loaded, warnings

    def set_broken_aside(self) -> list[str]:
        """Move the runs that are not what was sealed to ``quarantine/``; say where each is now."""
        return [f"{path.name}: {_set_aside(path)}" for path in self._files() if _is_broken(path)]

    def _files(self) -> Iterator[Path]:
        return (
            path
            for path in sorted(self.folder.glob("[!.]*"))  # not what `write` was killed over
            if path.name.endswith((SEALED, PART)) and path.is_file()
        )


class NoRun(StoreError):
    """Something that is no run, whatever its name: not ours to touch."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{str(path)!r} is no run of gradbench: {why}; it is left alone")


def load(path: Path) -> Run:
    """Read one run.

    Of a part file, every line that is whole is returned, and what was dropped is said. Raise
    `NoRun` for what does not open like a run, `BrokenSeal` for a sealed file that was changed or
    cut, `StoreError` for one that cannot be read, holds what no record can, or was written by a
    newer gradbench. A part file that its writer seals meanwhile is read as what it became.
    """
    if path.name.endswith(PART):
        try:
            return _load_part(path)[0]
        except StoreError:
            sealed = path.with_name(_stem(path) + SEALED)
            if path.exists() or not sealed.exists():
                raise
            path = sealed
    return _run(path, read_sealed(read_content(path), path), sealed=True)


def _run(path: Path, records: list[Record], *, sealed: bool, dropped: str = "") -> Run:
    if _stem(path) in ("", ".", ".."):  # pages and figures are named after their run
        raise NoRun(path, "without its suffix its name is none")
    if not records or not isinstance(records[0], Started):
        raise StoreError(f"{str(path)!r} holds no run: its first line is cut or damaged")
    return Run(run_name(path), tuple(records), sealed, dropped)


def _load_part(path: Path) -> tuple[Run, bool]:
    """Return the run of a part file, and whether more of it is damaged than its last line."""
    records, dropped = read_part(read_content(path), path)
    words = "; ".join(map(str, dropped[:3]))
    more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
    run = _run(
        path, records, sealed=False, dropped=f"{path.name}: {words}{more}" if dropped else ""
    )
    return run, any(not one.was_being_written for one in dropped)


def read_content(path: Path) -> bytes:
    """Return the bytes of a run's file, with the line ends that they were written with.

    Raise `NoRun` where its first bytes are none of a run's, of which no more is then read, and
    `StoreError` where it cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for its writer
            raise NoRun(path, "it is no regular file")
        if status.st_size > LARGEST_FILE_BYTES:
            raise NoRun(path, f"it has {status.st_size:,} bytes, and no run has")
        with path.open("rb") as file:
            opening = file.read(_OPENING_BYTES)
            if not _OPENING.match(opening):
                raise NoRun(path, "it does not open like one")
            return (opening + file.read()).replace(b"\r\n", b"\n")
    except OSError as error:
        raise StoreError(f"cannot read {str(path)!r}: {error.strerror}") from error


def opens_like_a_run(path: Path) -> bool:
    """Return whether a file's first bytes are a run's; what cannot be read is left to `load`."""
    try:
        with path.open("rb") as file:
            return _OPENING.match(file.read(_OPENING_BYTES)) is not None
    except OSError:
        return True


def _has_a_first_record(path: Path) -> bool:
    """Return whether a file opens like a run and its first line was written to its end."""
    if not opens_like_a_run(path):
        return False
    try:
        with path.open("rb") as file:
            return file.readline(LONGEST_LINE_BYTES).endswith(b"\n")
    except OSError:
        return True


def run_name(path: Path) -> str:
    """Return a run's name: its file's, which may hold anything but a slash, as it can be seen."""
    return printable(_stem(path))


def _stem(path: Path) -> str:
    return path.name.removesuffix(PART).removesuffix(SEALED)


def _is_broken(path: Path) -> bool:
    try:
        load(path)
    except BrokenSeal:
        return True
    except StoreError:
        return False
    return False


def check_name(path: Path) -> None:
    """Raise `StoreError` for a file that no run may be written to."""
    if not path.name.endswith(SEALED):
        raise StoreError(f"{str(path)!r} is no name for a run: let it end in {SEALED}")
    if path.exists() and not (path.is_file() and opens_like_a_run(path)):
        raise StoreError(f"{str(path)!r} is there and is no run of gradbench: choose another name")


def write(records: Iterable[Record], path: Path) -> Path:
    """Write a complete run to a file of any name ending in ``.jsonl``; return it.

    It may take a run's place, and that of nothing else. Raise `StoreError` where it cannot be
    written; what was there before is then untouched.
    """
    check_name(path)
    records = list(records)  # whatever they come from may fail: better now than half written
    draft = path.with_name(f".{secrets.token_hex(8)}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Writer(draft, draft.open("x", encoding="utf-8", newline="\n")) as writer:
            for record in records:
                writer.write(record)
            return writer.seal().replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {str(path)!r}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def check_writable(folder: Path, option: str) -> None:
    """Raise `StoreError` where a folder cannot be written in; it names the ``option`` for another.

    So that it is found out before measuring, and not after.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(
            f"cannot write in {str(folder)!r}: {error.strerror}; choose another with {option}"
        ) from error


def being_written(path: Path) -> bool:
    """Return whether a writer holds the part file right now: not one that was sealed meanwhile.

    Raise `StoreError` where the file is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file_lock.held(file)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"cannot read {str(path)!r}: {error.strerror}") from error


def _lock(file: IO[str], path: Path) -> None:
    try:
        file_lock.hold(file, wait=False)
    except OSError as error:
        file.close()
        raise StoreError(f"{path.name} is being written by another process") from error


def _remove_draft(draft: Path) -> None:
    """Remove what a resume that was killed has left; raise `StoreError` for anything else there."""
    try:
        status = draft.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode) or (status.st_size and not opens_like_a_run(draft)):
        raise StoreError(f"{str(draft)!r} is in the way, and no file of gradbench: remove it")
    draft.unlink()


def _copied(path: Path) -> str:
    """Keep a damaged part file as it is, under a name of its own; say which."""
    numbers = count(1)
    while True:
        copy = path.with_name(f"{path.name}.damaged-{next(numbers)}")
        try:
            with path.open("rb") as source, copy.open("xb") as target:
                shutil.copyfileobj(source, target)
            return f"the damaged file is kept as {copy.name!r}"
        except FileExistsError:
            continue
        except OSError as error:
            raise StoreError(
                f"{path.name} is damaged, and no copy of it can be kept: {error.strerror}; "
                "make room first, so that nothing is lost"
            ) from error


def _set_aside(path: Path) -> str:
    """Move a file to ``quarantine/``, over no other; say in words where it is now."""
    if path.is_symlink():
        return "left where it is (a link)"
    folder = path.parent / QUARANTINE
    try:
        folder.mkdir(exist_ok=True)
        target = _linked(path, folder)
        path.unlink()
    except OSError as error:
        return f"left where it is ({error.strerror})"
    return f"moved to {str(target)!r}"


def _linked(path: Path, folder: Path) -> Path:
    """Link a file into a folder under the first name that is free; unlike a rename, over none."""
    numbers = count(2)
    target = folder / path.name
    while True:
        try:
            target.hardlink_to(path)
            return target
        except FileExistsError:
            target = folder / f"{path.name}.{next(numbers)}"
