"""A disposable SQLite cache over a folder of runs: figures without reading every file again."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from ..errors import StoreError
from ..experiment.matrix import AXES
from ..records.run import Run
from ..store.jsonl import PART, QUARANTINE, SEALED, load, opens_like_a_run, read_content
from . import figures

FILE: Final = ".index.sqlite3"
VERSION: Final = 1
"""Raised with every change of the tables below; an index of another version is built anew."""
SETTLED_NS: Final = 2_000_000_000
"""A file changed this shortly before it was read may change again within one tick of its clock."""

_TABLES: Final = """
CREATE TABLE axes (name TEXT);
CREATE TABLE runs (id INTEGER PRIMARY KEY, path TEXT UNIQUE, size INTEGER, mtime_ns INTEGER,
                   read_ns INTEGER, sha256 TEXT, run TEXT, started TEXT, facts TEXT);
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
    """The figures of every sealed run under a folder, kept in ``FILE`` there.

    The run files are the truth: what the index says of one is believed while its size and time
    are those it was read at, else its hash decides. An index that SQLite cannot read, or of another
    version, or made when there were other axes, is thrown away. Where the folder cannot be
    written, or holds no run and so is not ours, it is made in memory.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise StoreError(f"no folder {str(folder)!r}: name one that holds runs")
        self.folder = folder
        self.path = folder / FILE

    def read(self) -> Figures:
        """Bring the index up to date and return all its figures."""
        if self._is_no_place_for_it():
            return self._read(":memory:")
        try:
            return self._read(str(self.path))
        except sqlite3.OperationalError as error:
            if _damaged(error):
                return self._anew()
            return self._read(":memory:")  # locked for long, or in a folder that is not ours
        except (sqlite3.DatabaseError, ValueError, _Outdated):  # or JSON that is none
            return self._anew()

    def _is_no_place_for_it(self) -> bool:
        """Return whether its place is another's: a link, or a folder without any run."""
        if self.path.exists() or self.path.is_symlink():
            return self.path.is_symlink() or not self.path.is_file()
        return not any(map(opens_like_a_run, run_files(self.folder)))

    def _anew(self) -> Figures:
        try:
            self.path.unlink(missing_ok=True)
            return self._read(str(self.path))
        except (OSError, sqlite3.DatabaseError):
            return self._read(":memory:")

    def _read(self, database: str) -> Figures:
        with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # a cache need not outlive a power cut
            connection.execute("BEGIN IMMEDIATE")
            _prepare(connection)
            warnings = self._refresh(connection)
            connection.execute("COMMIT")
            return Figures(_frame(connection), _origins(connection), warnings)

    def _refresh(self, connection: sqlite3.Connection) -> list[str]:
        rows = connection.execute("SELECT path, size, mtime_ns, read_ns, sha256 FROM runs")
        known = {row[0]: row[1:] for row in rows}
        warnings: list[str] = []
        for path in run_files(self.folder):
            name = str(path.relative_to(self.folder))
            if path.name.endswith(PART):
                warnings.append(f"{name} is not complete: it is left out until it is")
                continue
            try:
                stat = path.stat()
                stamp = (stat.st_size, stat.st_mtime_ns, time.time_ns())
                if name not in known or not _same(stamp, known[name]):
                    digest = hashlib.sha256(read_content(path)).hexdigest()
                    if name not in known or digest != known[name][3]:
                        _forget(connection, name)
                        _add(connection, load(path), name, digest)
                    connection.execute(
                        "UPDATE runs SET size = ?, mtime_ns = ?, read_ns = ? WHERE path = ?",
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
            f"{count} files differ and are all run {run}: one counts" for run, count in twice
        ]
        return warnings


class _Outdated(Exception):
    """An index that was made by another gradbench."""


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


def run_files(folder: Path) -> Iterator[Path]:
    """Yield the files of runs in a folder and below it, as artifacts are unpacked, by name."""
    paths = (path for path in folder.rglob("*.jsonl*") if path.name.endswith((SEALED, PART)))
    inside = (path for path in paths if QUARANTINE not in path.relative_to(folder).parts[:-1])
    return iter(sorted(path for path in inside if path.is_file()))


def _same(stamp: tuple[int, int, int], was: tuple[int, int, int, str]) -> bool:
    return was[:2] == stamp[:2] and was[2] - was[1] > SETTLED_NS


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
                figure.meter,
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


def _damaged(error: sqlite3.OperationalError) -> bool:
    words = str(error)
    return "no such" in words or "has no column" in words or "malformed" in words
