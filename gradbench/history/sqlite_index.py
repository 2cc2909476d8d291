"""A disposable SQLite cache over a folder of runs: figures without reading every file again.

It lies with its user's other caches, not in the folder: a folder of runs may come from anybody, and
an index that came with it would be believed. It is read and written as a whole, behind a hash.
"""

import hashlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from ..errors import StoreError
from ..experiment.matrix import AXES
from ..plurals import counted
from ..printable import brief, printable
from ..records.run import Run
from ..store.jsonl import PART, QUARANTINE, SEALED, load, read_content
from . import figures

CACHE: Final = "GRADBENCH_CACHE"
"""Names a folder for indexes, instead of ``gradbench`` among the user's caches."""
MAGIC: Final = b"gradbench index 2\n"
VERSION: Final = 2
"""Raised with every change of the tables below; an index of another version is built anew."""
MOST_SEEN: Final = 100_000
"""Files and folders that are looked at for runs: a second or two."""
SEEN_A_RUN: Final = 100
"""Or so many for each run that is found, where these are more."""
SETTLED_NS: Final = 2_000_000_000
"""A file changed this shortly before it was read may change again within one tick of its clock."""

_TABLES: Final = """
CREATE TABLE axes (name TEXT);
CREATE TABLE runs (id INTEGER PRIMARY KEY, path TEXT UNIQUE, size INTEGER, mtime_ns INTEGER,
                   ctime_ns INTEGER, inode INTEGER, read_ns INTEGER, sha256 TEXT, run TEXT,
                   started TEXT, facts TEXT);
CREATE TABLE cells (id INTEGER PRIMARY KEY, key TEXT UNIQUE);
CREATE TABLE figures (run INTEGER, cell INTEGER, meter TEXT, unit TEXT, exact INTEGER,
                      value REAL, ratio REAL, reference TEXT);
CREATE INDEX figures_of_run ON figures (run);
CREATE VIEW first AS SELECT * FROM runs WHERE path IN (SELECT MIN(path) FROM runs GROUP BY run);
"""
COLUMNS: Final = ("run", "cell", "meter", "unit", "exact", "value", "ratio", "reference")
"""What a history needs of each figure; ``cell`` is its key."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of many runs: a frame of `COLUMNS`, their origins, and what was left out and why."""

    frame: pd.DataFrame
    origins: dict[str, figures.Origin]
    warnings: list[str]


class Index:
    """The figures of every sealed run under a folder, kept at ``path``.

    The run files are the truth: what the index says of one is believed while its size, times and
    inode are those it was read at, else its hash decides. An index that is not as it was written,
    or of another version, or made when there were other axes, is thrown away. Where none can be
    kept it is made in memory each time.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise StoreError(f"no folder {str(folder)!r}: name one that holds runs")
        self.folder = folder
        self.path = place_of(folder)

    def read(self) -> Figures:
        """Bring the index up to date and return all its figures."""
        try:
            return self._read(self._kept())
        except (sqlite3.Error, ValueError, _Outdated):  # or JSON that is none
            return self._read(b"")

    def _read(self, image: bytes) -> Figures:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            if image:
                connection.deserialize(image)
            connection.execute("BEGIN")
            _prepare(connection)
            before = connection.total_changes
            warnings = self._refresh(connection)
            changed = connection.total_changes > before
            connection.execute("COMMIT")
            read = Figures(_frame(connection), _origins(connection), warnings)
            if changed:
                self._keep(connection.serialize())
            return read

    def _kept(self) -> bytes:
        """Return the database that was kept, or nothing where it is not what was written."""
        try:
            content = b"" if self.path is None else self.path.read_bytes()
        except OSError:
            return b""
        mark, rest, head = content[:_MARK_BYTES], content[_MARK_BYTES:], _head(self.folder)
        is_whole = mark == _mark(rest) and rest.startswith(head)
        return rest[len(head) :] if is_whole else b""

    def _keep(self, image: bytes) -> None:
        """Write the database whole or not at all; where that cannot be, there is none.

        Indexes of folders that are gone are removed: nobody would ever look for them again.
        """
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=self.path.parent, prefix=_DRAFT)
            try:
                with os.fdopen(handle, "wb") as file:
                    rest = _head(self.folder) + image
                    file.write(_mark(rest) + rest)
                Path(draft).replace(self.path)
            finally:
                Path(draft).unlink(missing_ok=True)
            _remove_what_nobody_reads(self.path.parent)
        except OSError:
            return

    def _refresh(self, connection: sqlite3.Connection) -> list[str]:
        rows = connection.execute(f"SELECT path, {', '.join(_STAMP)}, sha256 FROM runs")  # noqa: S608 # names from below
        known = {row[0]: (row[1:-1], row[-1]) for row in rows}
        warnings: list[str] = []
        for path in run_files(self.folder, warnings):
            name = str(path.relative_to(self.folder))
            if path.name.endswith(PART):
                warnings.append(f"{name} is not complete: it is left out until it is")
                continue
            try:
                stamp = _stamp(path)
                if name not in known or not _same(stamp, known[name][0]):
                    digest = hashlib.sha256(read_content(path)).hexdigest()
                    if name not in known or digest != known[name][1]:
                        _forget(connection, name)
                        _add(connection, load(path), name, digest)
                    columns = ", ".join(f"{column} = ?" for column in _STAMP)
                    connection.execute(
                        f"UPDATE runs SET {columns} WHERE path = ?",  # noqa: S608 # names from below
                        (*stamp, name),
                    )
                known.pop(name, None)
            except UnicodeEncodeError:
                warnings.append(f"{name!a} is no name in UTF-8: rename it")
            except (StoreError, OSError) as error:
                warnings.append(str(error))
        for gone in known:
            _forget(connection, gone)
        twice = connection.execute(
            "SELECT run, COUNT(*) FROM runs GROUP BY run HAVING COUNT(DISTINCT sha256) > 1"
        )
        warnings += [
            f"{counted(count, 'file')} differ and are all run {run}: one counts"
            for run, count in twice
        ]
        return warnings


class _Outdated(Exception):
    """An index that was made by another gradbench."""


_STAMP: Final = ("size", "mtime_ns", "ctime_ns", "inode", "read_ns")
"""What says that a file is the one that was read: the time it was read at last."""
_DIGEST_BYTES: Final = 32
_MARK_BYTES: Final = len(MAGIC) + _DIGEST_BYTES
_LENGTH_BYTES: Final = 4
_LONGEST_NAME: Final = 2**16
_DRAFT: Final = "draft-"
_DRAFT_S: Final = 3600
"""A draft that is older was left by a process that was killed."""


def place_of(folder: Path) -> Path | None:
    """Return where the index of a folder is kept, or None where there is no place for it."""
    if not hasattr(sqlite3.Connection, "deserialize"):  # an SQLite built without it
        return None
    try:
        users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        caches = Path(os.environ.get(CACHE) or users / "gradbench")
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    except (OSError, RuntimeError):  # a loop of links, or nobody's home
        return None
    return caches / "history" / f"{name}.index"


def _mark(content: bytes) -> bytes:
    return MAGIC + hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _head(folder: Path) -> bytes:
    """Return what says whose index it is, before the database."""
    name = os.fsencode(folder.resolve())
    return len(name).to_bytes(_LENGTH_BYTES, "big") + name


def _folder_of(index: Path) -> Path | None:
    """Return the folder that an index says it is of; None where it says nothing of the kind."""
    with index.open("rb") as file:
        if not file.read(_MARK_BYTES).startswith(MAGIC):
            return None
        name = file.read(min(int.from_bytes(file.read(_LENGTH_BYTES), "big"), _LONGEST_NAME))
    return Path(os.fsdecode(name))


def _remove_what_nobody_reads(indexes: Path) -> None:
    """Remove the indexes of folders that are gone, and drafts of writers that were killed."""
    for path in indexes.iterdir():
        with suppress(OSError):
            if path.name.startswith(_DRAFT):
                gone = time.time() - path.stat().st_mtime > _DRAFT_S
            else:
                folder = _folder_of(path)
                gone = folder is not None and not folder.is_dir()
            if gone:
                path.unlink()


def _stamp(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, time.time_ns())


def _prepare(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        for statement in _TABLES.split(";"):
            connection.execute(statement)
        connection.executemany("INSERT INTO axes VALUES (?)", [(axis,) for axis in AXES])
        connection.execute(f"PRAGMA user_version = {VERSION}")
        return
    axes = () if version != VERSION else connection.execute("SELECT name FROM axes").fetchall()
    if tuple(axis for (axis,) in axes) != tuple(AXES):
        raise _Outdated


def run_files(folder: Path, warnings: list[str] | None = None) -> Iterator[Path]:
    """Yield the files of runs in a folder and below it, as artifacts are unpacked, by name.

    Raise `StoreError` for one that cannot be read, and for one that holds much else: nobody means
    the whole disk. A folder below it that cannot be read is named in the warnings.
    """
    found: list[Path] = []
    seen, folders = 0, [folder]
    while folders:  # and no recursion: a folder may lie a thousand deep
        here = folders.pop()
        try:
            for entry in os.scandir(here):
                seen += 1
                if entry.is_dir(follow_symlinks=False):
                    folders += [here / entry.name] if entry.name != QUARANTINE else []
                elif _is_a_runs_name(entry.name) and (path := here / entry.name).is_file():
                    found.append(path)
        except OSError as error:
            words = f"cannot read the folder {brief(str(here))}: {error.strerror}"
            if here == folder:
                raise StoreError(words) from error
            if warnings is not None and not isinstance(error, FileNotFoundError):  # gone meanwhile
                warnings.append(f"{words}: its runs are left out")
        if seen > max(MOST_SEEN, SEEN_A_RUN * len(found)):
            raise StoreError(
                f"{seen:,} files and folders or more lie in {str(folder)!r}, with "
                f"{counted(len(found), 'run')} among them: name the folder that holds the runs"
            )
    return iter(sorted(found))


def _is_a_runs_name(name: str) -> bool:
    return name.endswith((SEALED, PART)) and not name.startswith(".")  # which drafts do


def _same(stamp: tuple[int, ...], was: tuple[int, ...]) -> bool:
    """Return whether a file is as it was when it was read, and had not just been written then."""
    return was[:-1] == stamp[:-1] and was[-1] - was[1] > SETTLED_NS


def _add(connection: sqlite3.Connection, run: Run, path: str, digest: str) -> None:
    row = {
        "path": path,
        "sha256": digest,
        "run": run.name,
        "started": run.header.started_at,
        "facts": json.dumps(dict(run.environment.facts)),
    }
    added = connection.execute(
        f"INSERT INTO runs ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",  # noqa: S608 # names from above
        list(row.values()),
    )
    cells: dict[str, int] = {}
    for figure in figures.figures(run):
        if figure.value is None:
            continue
        name = figures.key(figure.cell)
        if name not in cells:
            connection.execute("INSERT OR IGNORE INTO cells (key) VALUES (?)", [name])
            row_id = connection.execute("SELECT id FROM cells WHERE key = ?", [name])
            (cells[name],) = row_id.fetchone()
        connection.execute(
            "INSERT INTO figures VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                added.lastrowid,
                cells[name],
                printable(figure.meter),  # a text that is no UTF-8 SQLite does not take
                figure.unit,
                figure.exact,
                figure.value,
                figure.ratio,
                figure.reference,
            ),
        )


def _forget(connection: sqlite3.Connection, path: str) -> None:
    connection.execute(
        "DELETE FROM figures WHERE run IN (SELECT id FROM runs WHERE path = ?)", [path]
    )
    connection.execute("DELETE FROM runs WHERE path = ?", [path])


def _frame(connection: sqlite3.Connection) -> pd.DataFrame:
    rows = connection.execute(
        "SELECT first.run, cells.key AS cell, meter, unit, exact, value, ratio, reference "
        "FROM figures JOIN first ON first.id = figures.run JOIN cells ON cells.id = figures.cell"
    )
    return pd.DataFrame(rows.fetchall(), columns=[*COLUMNS])


def _origins(connection: sqlite3.Connection) -> dict[str, figures.Origin]:
    rows = connection.execute("SELECT run, started, facts FROM first")
    return {run: figures.origin_of(run, started, json.loads(facts)) for run, started, facts in rows}
