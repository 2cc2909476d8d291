"""Runs on disk: one JSON-lines file a run, streamed to a part file, sealed when complete.

A run is written to ``NAME.jsonl.part``, a line a record, flushed as they come. When it has come
to its end, a last line with the count and hash of what stands above is added and the file is
renamed to ``NAME.jsonl``. Names sort by time.

A suffix does not make a file a run: its first bytes do. Of any other file nothing more is read,
and nothing is moved. Line ends may have become CRLF on the way, by git's autocrlf: count and hash
are of the lines as they were written, and no record contains either byte.
"""

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Final, Self

from ..errors import GradbenchError, StoreError
from ..experiment.matrix import AXES, Cell
from ..experiment.model_source import ModelSource
from ..records.measurements import (
    Breakdown,
    Ended,
    Environment,
    Measurement,
    Reading,
    Record,
    Skipped,
    Started,
)
from ..records.run import Run
from . import file_lock

SCHEMA: Final = 1
SEALED: Final = ".jsonl"
PART: Final = ".jsonl.part"
QUARANTINE: Final = "quarantine"

_OPENING: Final = re.compile(rb'\s*\{\s*"kind"\s*:\s*"started"\s*[,}]')
_OPENING_BYTES: Final = 256

_KINDS: Final[Mapping[str, type[Record]]] = {
    "started": Started,
    "environment": Environment,
    "measurement": Measurement,
    "breakdown": Breakdown,
    "skipped": Skipped,
    "ended": Ended,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}
_FIELDS: Final = {kind: {field.name for field in fields(kind)} for kind in _KINDS.values()}


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
        line = json.dumps(_plain(record), separators=(",", ":"))
        with self._as_store_errors():
            print(line, file=self._file, flush=True)

    def seal(self) -> Path:
        """Add count and hash, rename the part file, and return the run's file."""
        with self._as_store_errors():
            self._file.flush()
            content = self.path.read_bytes()
            seal = {
                "kind": "sealed",
                "records": content.count(b"\n"),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            print(json.dumps(seal), file=self._file, flush=True)
            os.fsync(self._file.fileno())
            final = self.path.with_name(self.name + SEALED)
            self.path.rename(final)
            self._file.close()
        return final

    @contextmanager
    def _as_store_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write {str(self.path)!r}: {error.strerror}; what was written before is "
                f"kept: fix that, then gradbench run --resume {self.name}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # what could not be written was said, and closing tries again
            self._file.close()


class Store:
    """A folder of runs."""

    def __init__(self, folder: str | Path = "results") -> None:
        self.folder = Path(folder)

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
        """
        path = self.find(name)
        if not path.name.endswith(PART):
            raise StoreError(f"run {name!r} is complete: only a run cut short can be resumed")
        with path.open("r+", encoding="utf-8") as old:
            _lock(old, path)
            if not os.path.samestat(os.fstat(old.fileno()), path.stat()):
                raise StoreError(f"{path.name} is being written by another process")
            run = load(path)
            draft = path.with_name(path.name + ".new")
            file = draft.open("w", encoding="utf-8", newline="\n")
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
        """Return the file of a run given by path, by name or by its beginning, or ``latest``."""
        if not name.strip():
            raise StoreError(f"{name!r} names no run: give its name, its beginning or latest")
        path = Path(name)
        if path.is_file():
            return path
        if path.parent != Path():
            there = "it is no regular file" if path.exists() else "there is no such file"
            raise StoreError(f"no run in {name!r}: {there}")
        files = {_stem(path): path for path in self._files()}
        wanted = _stem(path)
        if wanted in files:
            return files[wanted]
        runs = [stem for stem in sorted(files) if opens_like_a_run(files[stem])]
        if name == "latest" and runs:
            return files[runs[-1]]
        close = [stem for stem in runs if stem.startswith(wanted)]
        if len(close) == 1:
            return files[close[0]]
        if close:
            raise StoreError(f"{name!r} fits several runs: {', '.join(close)}")
        raise StoreError(
            f"no run {name!r} in {str(self.folder)!r}; "
            f"the latest there: {', '.join(runs[-5:]) or 'none'}"
        )

    def load_all(self) -> tuple[list[Run], list[str]]:
        """Return the readable runs by time, and in words what is wrong with the other files."""
        runs, warnings = [], []
        for path in self._files():
            try:
                runs.append(load(path))
            except StoreError as error:
                warnings.append(str(error))
        return runs, warnings

    def set_broken_aside(self) -> list[str]:
        """Move the runs that are not what was sealed to ``quarantine/``; say where each is now."""
        return [f"{path.name}: {_set_aside(path)}" for path in self._files() if _is_broken(path)]

    def _files(self) -> Iterator[Path]:
        return (
            path
            for path in sorted(self.folder.glob("*"))
            if path.name.endswith((SEALED, PART)) and path.is_file()
        )


class BrokenSeal(StoreError):
    """A sealed file that is not what was sealed."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{str(path)!r} is not what was sealed, its count or hash is wrong: quarantined, no "
            "figure of it is used (gradbench runs --quarantine moves such files away)"
        )


class NoRun(StoreError):
    """Something that is no run, whatever its name: not ours to touch."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{str(path)!r} is no run of gradbench: {why}; it is left alone")


def load(path: Path) -> Run:
    """Read one run.

    Of a part file, everything before the first unreadable line is returned, and what was dropped
    is said. Raise `NoRun` for what does not open like a run, `BrokenSeal` for a sealed file that
    was changed or cut, `StoreError` for one that cannot be read or was written by a newer
    gradbench.
    """
    content = read_content(path)
    if path.name.endswith(PART):
        records, dropped = _read_part(content, path)
        sealed = False
    else:
        records, dropped, sealed = _read_sealed(content, path), "", True
    if not records or not isinstance(records[0], Started):
        raise StoreError(f"{str(path)!r} holds no run: its first line is cut or damaged")
    return Run(_stem(path), tuple(records), sealed, dropped)


def read_content(path: Path) -> bytes:
    """Return the bytes of a run's file, with the line ends that they were written with.

    Raise `NoRun` where its first bytes are none of a run's, of which no more is then read, and
    `StoreError` where it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for its writer
            raise NoRun(path, "it is no regular file")
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


def _read_sealed(content: bytes, path: Path) -> list[Record]:
    body, newline, last = content.rstrip(b"\n").rpartition(b"\n")
    body += newline
    try:
        seal = json.loads(last)
        intact = (
            seal["kind"] == "sealed"
            and seal["sha256"] == hashlib.sha256(body).hexdigest()
            and seal["records"] == body.count(b"\n")
        )
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise BrokenSeal(path)
    try:
        return [_record(json.loads(line), path) for line in body.splitlines()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{str(path)!r} holds what this gradbench does not know, {error}: upgrade"
        ) from error


def _read_part(content: bytes, path: Path) -> tuple[list[Record], str]:
    records: list[Record] = []
    read = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            row = json.loads(line if line.endswith(b"\n") else b"")  # cut, be it at a brace
            if row["kind"] != "sealed":  # sealed, and then not renamed
                records.append(_record(row, path))
        except (ValueError, TypeError, KeyError, AttributeError):
            rest = len(content) - read
            return (
                records,
                f"{path.name}: dropped {rest} bytes from line {number} on: cut or damaged",
            )
        read += len(line)
    return records, ""


def _plain(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": _NAMES[type(record)]}
    if isinstance(record, Started):
        row["schema"] = SCHEMA
    return row | asdict(record)


def _record(row: dict[str, Any], path: Path) -> Record:
    schema = row.pop("schema", SCHEMA)
    if schema > SCHEMA:
        raise StoreError(
            f"{str(path)!r} has schema {schema}, this gradbench reads {SCHEMA}: upgrade"
        )
    kind: Any = _KINDS[row.pop("kind")]
    if "cell" in row:
        row["cell"] = _cell(row["cell"], path)
    if kind is Breakdown:
        row["timeline"] = {part: tuple(line) for part, line in row["timeline"].items()}
    if kind is Started:
        row["cells"] = tuple(_cell(cell, path) for cell in row["cells"])
        if "started" in row:  # as runs up to 2026-11-26 call it
            row["started_at"] = row.pop("started")
        sources = {name: ModelSource.read(one) for name, one in row.get("sources", {}).items()}
        for build, shape in row.pop("inputs", {}).items():  # as runs up to 2026-11-26 say it
            sources[build] = ModelSource(build=build, input=(",".join(map(str, ("B", *shape))),))
        row["sources"] = sources
    known = _FIELDS[kind]
    record: Record = kind(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k in known}
    )
    return record


def _cell(axes: Mapping[str, Any], path: Path) -> Cell:
    unknown = sorted(axes.keys() - set(AXES))
    if unknown:
        raise StoreError(
            f"{str(path)!r} has axes unknown to this gradbench, {', '.join(unknown)}: upgrade"
        )
    try:
        return _made(tuple(axes.items()))
    except GradbenchError as error:
        raise StoreError(f"{str(path)!r}: {error}; or upgrade") from error


@lru_cache(maxsize=4096)
def _made(axes: tuple[tuple[str, Any], ...]) -> Cell:
    """Return the cell of these axes; a file names each of its cells many times."""
    return Cell(**dict(axes))


def write(records: Iterable[Record], path: Path) -> Path:
    """Write a complete run to a file of any name ending in ``.jsonl``; return it.

    It may take a run's place, and that of nothing else. Raise `StoreError` where it cannot be
    written; what was there before is then untouched.
    """
    if not path.name.endswith(SEALED):
        raise StoreError(f"{str(path)!r} is no name for a run: let it end in {SEALED}")
    if path.exists() and not (path.is_file() and opens_like_a_run(path)):
        raise StoreError(f"{str(path)!r} is there and is no run of gradbench: choose another name")
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
    """Find out before measuring, not after; the complaint names the option to choose another."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(
            f"cannot write in {str(folder)!r}: {error.strerror}; choose another with {option}"
        ) from error


def being_written(path: Path) -> bool:
    """Return whether a writer holds the part file right now."""
    with path.open("rb") as file:
        return file_lock.held(file)


def _lock(file: IO[str], path: Path) -> None:
    try:
        file_lock.hold(file, wait=False)
    except OSError as error:
        file.close()
        raise StoreError(f"{path.name} is being written by another process") from error


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
