"""Bisections on disk: one JSON file each, written anew after every measurement.

A file is replaced in one piece, so an interruption leaves what was measured before. What is read
is checked here, once, for all behind: it may come from anybody.
"""

import json
import os
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Self

from ..errors import GradbenchError, StoreError
from ..experiment.matrix import Cell
from ..records.bisection import MOST_COMMITS, Bisection, CellCounts, CountedInstructions
from ..records.validation import Misfit, fill, misfit, read_json
from . import file_lock, name_lookup

FOLDER: Final = "bisections"
SUFFIX: Final = ".json"
KIND: Final = "bisection"
SCHEMA: Final = 2

LARGEST_LOG: Final = 50.0
"""Of a ratio of times: beyond it there is none."""
MOST_REPLICATES: Final = 4
"""Replicates of a cell, as a multiple of those that are made at first."""
_ID: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_DATE: Final = re.compile(r"[-+:.TZ0-9]{0,40}")
"""As git prints it: a history may hold the year 10000, a zone of 51 hours, or no date at all."""


class BisectionFile:
    """The file of one bisection, which this process alone writes; use it as a context manager."""

    def __init__(self, path: Path, held: IO[Any] | None = None) -> None:
        self.path, self._held = path, held

    def save(self, record: Bisection) -> None:
        """Write the record in place of what was there; raise `StoreError` where it cannot be."""
        draft = self.path.with_name(f".{self.path.name}.new")
        content = {"kind": KIND, "schema": SCHEMA, **asdict(record)}
        try:
            file = draft.open("w", encoding="utf-8", newline="\n")
            try:
                file_lock.hold(file)
                json.dump(content, file, separators=(",", ":"), allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
                draft.replace(self.path)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise StoreError(
                f"cannot write {str(self.path)!r}: {error.strerror}; "
                "what was written before is kept"
            ) from error
        self._let_go()
        self._held = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()


def create(results: Path) -> BisectionFile:
    """Return the file of a new bisection in a folder of results; nothing is written yet.

    Raise `StoreError` where the folder cannot be made.
    """
    folder = results / FOLDER
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot write results in {str(folder)!r}: {error.strerror}; "
            "choose another folder with --results"
        ) from error
    return BisectionFile(folder / f"{stamp}-{secrets.token_hex(2)}{SUFFIX}")


def resume(results: Path, name: str) -> tuple[BisectionFile, Bisection]:
    """Return the file of a bisection to go on with, and what it holds.

    Raise `StoreError` where there is no such one, or another process goes on with it.
    """
    path = find(results, name)
    record = load(path)
    file = path.open("rb")
    try:
        file_lock.hold(file, wait=False)
    except OSError as error:
        file.close()
        raise StoreError(f"{path.name} is being written by another process") from error
    return BisectionFile(path, file), record


def find(results: Path, name: str) -> Path:
    """Return the file of a bisection given by path, by name or its beginning, or ``latest``.

    Raise `StoreError` where that is none, or several.
    """
    name_lookup.check_named(name, "bisection")
    path, folder = Path(name), results / FOLDER
    try:
        if path.exists() and not path.is_dir():
            return path
    except OSError as error:  # a name that no file can have
        raise StoreError(f"no bisection {name!r}: {error.strerror}") from error
    names = sorted(one.name.removesuffix(SUFFIX) for one in folder.glob(f"[!.]*{SUFFIX}"))
    chosen = name_lookup.meant(
        name, names, beginning=name.removesuffix(SUFFIX), kind="bisection", folder=folder
    )
    return folder / f"{chosen}{SUFFIX}"


def load(path: Path) -> Bisection:
    """Read one bisection; raise `StoreError` for a file that holds none, or what none can hold."""
    row = read_json(path)
    try:
        return _record(row)
    except Misfit as error:
        raise StoreError(f"{str(path)!r}: {error}: nothing of it is used") from error


def _record(row: Any) -> Bisection:
    if not isinstance(row, dict) or row.get("kind") != KIND:
        raise Misfit("it is no bisection of gradbench")
    if row.get("schema") != SCHEMA:
        raise Misfit(
            f"it has schema {row.get('schema')!r:.40}, this gradbench reads {SCHEMA}: begin anew"
        )
    record = fill(Bisection, row)
    _check_time(record.started_at, "started_at")
    _check_commits(record)
    _check_effort(record)
    _check_measured(record)
    return record


def _check_time(text: str, where: str) -> None:
    try:
        known = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        known = False
    if not known:
        raise misfit(where, "a time with its zone as 2026-01-02T03:04:05+00:00", text)


def _check_commits(record: Bisection) -> None:
    """Raise `Misfit` unless the commits are a history: git is asked for each by its name."""
    known: set[str] = set()
    if len(record.commits) > MOST_COMMITS:
        raise misfit("commits", f"{MOST_COMMITS:,} at most", list(record.commits))
    for where, rows in (("border", record.border), ("commits", record.commits)):
        for number, commit in enumerate(rows):
            place = f"{where}[{number}]"
            _check_ids([commit.id, *commit.parents], place)
            if _DATE.fullmatch(commit.authored_at) is None:
                raise misfit(f"{place}.authored_at", "a date of git's", commit.authored_at)
            if commit.id in known:
                raise Misfit(f"{place} stands there twice")
            if where == "commits" and not known.issuperset(commit.parents):
                raise Misfit(f"{place} has a parent that does not stand before it")
            known.add(commit.id)
    _check_ids([record.good, record.bad], "the range")
    if not record.border or record.border[0].id != record.good:
        raise Misfit("border[0] must be the good commit")
    if not record.commits or record.commits[-1].id != record.bad:
        raise Misfit("the last of commits must be the bad one")


def _check_ids(ids: Iterable[str], where: str) -> None:
    for one in ids:
        if _ID.fullmatch(one) is None:
            raise misfit(where, "named by whole hashes", one)


def _check_effort(record: Bisection) -> None:
    if not record.cells or len(set(record.cells)) != len(record.cells):
        raise Misfit("cells must be one or more, each once")
    if not 0 < record.threshold < 1:
        raise misfit("threshold", "a share", record.threshold)
    if not 3 <= record.processes <= 1000:
        raise misfit("processes", "from 3 to 1000", record.processes)
    if record.seed < 0:
        raise misfit("seed", "0 or more", record.seed)
    try:
        for source in record.sources.values():
            _ = source.inputs  # each is parsed, or raises
    except GradbenchError as error:
        raise Misfit(f"sources: {error}") from None
    if record.sources.keys() - {cell.model for cell in record.cells}:
        raise Misfit("sources must be those of the cells' models")


def _check_measured(record: Bisection) -> None:
    known = {commit.id for commit in (*record.border, *record.commits)}
    cells = set(record.cells)
    for number, counted in enumerate(record.counted):
        where = f"counted[{number}]"
        if counted.commit not in known:
            raise Misfit(f"{where} is of a commit that is not in the range")
        if not cells.issuperset(one.cell for one in counted.cells):
            raise Misfit(f"{where} is of a cell that was not asked for")
        if any(count < 0 for one in counted.cells for count in _numbers(one)):
            raise Misfit(f"{where} has a count below 0")
    _check_instructions(record.instruction_counts, known=known, cells=cells)
    for number, timed in enumerate(record.timed):
        where = f"timed[{number}]"
        if not known.issuperset((timed.base, timed.commit)):
            raise Misfit(f"{where} is of a commit that is not in the range")
        if timed.cell not in cells:
            raise Misfit(f"{where} is of a cell that was not asked for")
        if len(timed.logs) > MOST_REPLICATES * record.processes:
            raise Misfit(f"{where} has more replicates than are ever made")
        if len(timed.means) not in (0, len(timed.logs)):
            raise Misfit(f"{where} must have a mean for each replicate")
        if any(abs(log) > LARGEST_LOG for log in (*timed.logs, *timed.means)):
            raise Misfit(f"{where} has a ratio that no times have")


def _check_instructions(
    rows: Iterable[CountedInstructions], *, known: Collection[str], cells: Collection[Cell]
) -> None:
    for number, row in enumerate(rows):
        where = f"instruction_counts[{number}]"
        if row.commit not in known:
            raise Misfit(f"{where} is of a commit that is not in the range")
        if row.cell not in cells:
            raise Misfit(f"{where} is of a cell that was not asked for")
        if (row.counts is None) == (not row.why):
            raise Misfit(f"{where} must have counts, or say why not")
        if row.counts is not None and min(row.counts) < 1:
            raise Misfit(f"{where} has a count below 1")


def _numbers(counts: CellCounts) -> list[int]:
    numbers = [counts.nodes, counts.saved_bytes, counts.peak_bytes]
    return [one for one in numbers if one is not None] + list((counts.operators or {}).values())
