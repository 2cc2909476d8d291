"""Many runs as one Parquet dataset, here or in a bucket: a row a figure, sorted to be found."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Self

from ..experiment.matrix import AXES
from ..records.run import Run
from . import figures
from .dataset_store import DatasetStore, File, Range, Vanished, listing_anew
from .parquet_file import MARK, SCHEMA, Footer, SparseFile, footers, pyarrow, unreadable

RUNS_A_FILE: Final = 100
ROWS_A_FILE: Final = 2**17
ROWS_A_GROUP: Final = 2**13
"""Rows that are read together: of one model or a few, as they are sorted."""
SMALL_FILES: Final = 16
"""Of a month, from which on they are put together into larger ones."""
LONGEST_NAME: Final = 48
"""Letters of a run's name in that of its file, which may have 255 bytes: four for each of these."""

_SORTED_BY: Final = ("model", "meter", "workload")
_DICTIONARY_BYTES: Final = 2**24
"""A column's texts up to which each is written once: the facts of a hundred runs are many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What `pack` did: the files it wrote, runs and rows in them, runs that were there before."""

    files: tuple[str, ...]
    runs: int
    rows: int
    before: int


def pack(runs: Iterable[Run], destination: str, *, rounds: bool = True) -> Packed:
    """Add runs to the dataset at a folder or URL, those that it has already left out.

    Runs cut short are left out. Raise `NeedsPyarrow`, or `StoreError` where it cannot be written.
    """
    with Packer(destination, rounds=rounds) as packer:
        for run in runs:
            packer.add(run)
    return packer.packed


class Packer:
    """Adds runs to the dataset at a folder or URL; use it as a context manager.

    A row is a figure of a cell (see `figures.Figure`); ``values`` and ``iterations`` have the raw
    rounds, unless ``rounds`` is False. Files are written whole, then given their name, so that
    whoever reads them beside a writer sees whole ones only. Runs are kept until they fill a file.
    Small files of a month are put together when there are many: the larger one is written first,
    so whoever reads meanwhile finds a run twice, which counts once, and never not at all.
    """

    def __init__(self, destination: str, *, rounds: bool = True) -> None:
        pyarrow()
        self._store, self._rounds = DatasetStore(destination), rounds
        self._opened = ExitStack()
        self._have: set[str] = set()
        self._month = ""
        self._untidy: dict[str, None] = {}  # months, in order: those that have a run twice
        self._written: dict[str, None] = {}
        self._waiting: list[Any] = []
        self._names: list[str] = []
        self.packed = Packed(files=(), runs=0, rows=0, before=0)

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(self._store.alone())
            self._have, self._untidy = listing_anew(lambda: _found(self._store))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._opened:
            if kind is None:
                self._write()
                for month in self._untidy | self._written:
                    _put_together(self._store, month)

    def has(self, name: str) -> bool:
        """Return whether the dataset has a run, which is then counted as one that was there."""
        if name in self._have:
            self._count(before=1)
        return name in self._have

    def add(self, run: Run) -> None:
        """Add a run, unless it was cut short or is there already."""
        if not run.sealed or self.has(run.name):
            return
        month = run.header.started_at[:7]
        table = _table(run, rounds=self._rounds)
        if month != self._month or self._is_full(table.num_rows):
            self._write()
        self._month = month
        self._have.add(run.name)
        self._names.append(run.name)
        self._waiting.append(table)

    def _is_full(self, more: int) -> bool:
        rows = sum(table.num_rows for table in self._waiting) + more
        return len(self._waiting) == RUNS_A_FILE or rows > ROWS_A_FILE

    def _write(self) -> None:
        if not self._waiting:
            return
        name, rows = _put(self._store, self._month, self._names, self._waiting)
        self._count(files=(self._store.say(name),), runs=len(self._names), rows=rows)
        self._waiting, self._names = [], []
        self._written[self._month] = None

    def _count(
        self, *, files: tuple[str, ...] = (), runs: int = 0, rows: int = 0, before: int = 0
    ) -> None:
        was = self.packed
        self.packed = Packed(
            files=was.files + files,
            runs=was.runs + runs,
            rows=was.rows + rows,
            before=was.before + before,
        )


def _put(
    store: DatasetStore, month: str, names: Sequence[str], tables: Sequence[Any]
) -> tuple[str, int]:
    """Write runs as one file; return its name and its rows."""
    table = _sorted(_joined(tables))
    mark = {"schema": SCHEMA, "axes": list(AXES), "runs": list(names)}
    table = table.replace_schema_metadata({MARK: json.dumps(mark).encode()})
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    name = f"month={month}/{_utf8(names[0])[:LONGEST_NAME]}-{digest}.parquet"
    store.write(name, _bytes(table))
    return name, table.num_rows


def _put_together(store: DatasetStore, month: str) -> None:
    """Remove a month's copies, and put its small files together where there are many.

    Whatever cannot be read, or has other columns than today's, stays as it is; so does all of it
    where another packer is at the same files.
    """
    of_month = [file for file in store.files() if file.month == month]
    with suppress(Vanished):
        found = [footer for _, footer in footers(store, of_month) if isinstance(footer, Footer)]
        small = [footer for footer in _without_copies(store, found) if _is_small(footer)]
        if len(small) < SMALL_FILES:
            return
        for group in _filling(small):
            if len(group) > 1:
                _replace(store, month, group)


def _without_copies(store: DatasetStore, found: Iterable[Footer]) -> list[Footer]:
    """Remove the files all of whose rows another one has; return the others by name.

    A pack that is killed leaves them beside the larger file that it had written. Of equal ones
    every packer keeps the same.
    """
    kept: list[Footer] = []
    holders: dict[str, list[Footer]] = {}  # by run
    copies: dict[str, list[Footer]] = {}  # by the name of the file that has their runs
    for footer in sorted(found, key=lambda one: (-len(one.runs or ()), one.file.name)):
        runs = footer.runs or ()
        having = holders.get(runs[0], []) if runs else []
        whole = next((one for one in having if set(runs) <= set(one.runs or ())), None)
        if whole is not None:
            copies.setdefault(whole.file.name, []).append(footer)
            continue
        kept.append(footer)
        for run in runs:
            holders.setdefault(run, []).append(footer)
    by_name = {one.file.name: one for one in kept}
    for name, of_it in copies.items():
        kept += _not_removed(store, by_name[name], of_it)
    return sorted(kept, key=lambda one: one.file.name)


def _not_removed(store: DatasetStore, whole: Footer, copies: Sequence[Footer]) -> list[Footer]:
    """Remove copies of parts of a file; return those that are none, for their rows differ."""
    table, *others = _tables(store, [whole, *copies])
    equal = {
        footer.file.name
        for footer, other in zip(copies, others, strict=True)
        if table is not None and other is not None and _is_copy(other, table)
    }
    store.remove(sorted(equal))
    return [one for one in copies if one.file.name not in equal]


def _is_small(footer: Footer) -> bool:
    few = footer.metadata.num_rows <= ROWS_A_FILE // 2
    return few and footer.runs is not None and 0 < len(footer.runs) <= RUNS_A_FILE // 2


def _filling(small: Sequence[Footer]) -> Iterator[list[Footer]]:
    """Yield files that fill one together."""
    group: list[Footer] = []
    for footer in small:
        runs = sum(len(one.runs or ()) for one in (*group, footer))
        rows = sum(one.metadata.num_rows for one in (*group, footer))
        if group and (runs > RUNS_A_FILE or rows > ROWS_A_FILE):
            yield group
            group = []
        group.append(footer)
    if group:
        yield group


def _replace(store: DatasetStore, month: str, group: Sequence[Footer]) -> None:
    """Put the files of a group into one, and remove them."""
    tables: list[Any] = []
    names: list[str] = []
    replaced: list[str] = []
    for footer, table in zip(group, _tables(store, group), strict=True):
        runs = footer.runs or ()
        if table is not None and set(runs).isdisjoint(names):
            tables.append(table)
            names += runs
            replaced.append(footer.file.name)
    if len(replaced) > 1:
        kept, _ = _put(store, month, names, tables)
        store.remove([name for name in replaced if name != kept])


def _tables(store: DatasetStore, of: Sequence[Footer]) -> list[Any]:
    """Return all of each file; None where it is damaged, or its columns are not today's."""
    contents = store.read([Range(one.file.name, 0, one.file.nbytes) for one in of])
    return [_whole(content, one) for one, content in zip(of, contents, strict=True)]


def _is_copy(table: Any, of: Any) -> bool:
    """Return whether another table has as many rows of a table's runs, and as many raw rounds."""
    pa, _ = pyarrow()
    runs = pa.array(table["run"].unique().to_pylist(), pa.string())
    same = of.filter(pa.compute.is_in(of["run"], runs))
    there = (same.num_rows, same["values"].null_count)
    return there == (table.num_rows, table["values"].null_count)


def _whole(content: bytes, footer: Footer) -> Any:
    """Return all of a file; None as above."""
    sparse = SparseFile(len(content))
    sparse.fill(0, content)
    kinds = _kinds()
    names = [name for name, kind in kinds.items() if _is_names(kind)]
    try:
        table = sparse.open(footer.metadata, names=names).read()
    except unreadable():
        return None
    table = table.replace_schema_metadata(None)
    named = set(table["run"].unique().to_pylist()) <= {_utf8(run) for run in footer.runs or ()}
    return table if named and table.schema.equals(_schema()) else None


def _found(store: DatasetStore) -> tuple[set[str], dict[str, None]]:
    """Return the runs of a dataset, and the months in which one is in two files."""
    have: set[str] = set()
    twice: dict[str, None] = {}
    for file, footer in footers(store, store.files()):
        runs = _runs_of(store, file, footer)
        if not have.isdisjoint(runs):
            twice[file.month] = None
        have |= runs
    return have, twice


def _runs_of(store: DatasetStore, file: File, footer: Footer | Exception) -> set[str]:
    """Return the runs that a file has; none where it cannot be read, so that they are packed."""
    if isinstance(footer, Exception):
        return set()
    if footer.runs is not None:
        return set(footer.runs)
    groups = range(footer.metadata.num_row_groups)
    try:
        sparse = SparseFile(file.nbytes)
        ranges = footer.ranges(groups, ["run"])
        for one, part in zip(ranges, store.read(ranges), strict=True):
            sparse.fill(one.start, part)
        with sparse.content as content:
            footer.check(content, groups, ["run"])
        file_of = sparse.open(footer.metadata)
        return set(file_of.read(["run"])["run"].unique().to_pylist())
    except Vanished:
        raise
    except unreadable():
        return set()


def _table(run: Run, *, rounds: bool) -> Any:
    """Return a run's figures, a row each."""
    pa, _ = pyarrow()
    schema = _schema()
    rows = list(_rows(run, schema.names, rounds=rounds))
    arrays = [_array([row[i] for row in rows], kind) for i, kind in enumerate(schema.types)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _schema() -> Any:
    pa, _ = pyarrow()
    return pa.schema([pa.field(column, kind) for column, kind in _kinds().items()])


def _kinds() -> dict[str, Any]:
    """Return the columns in order, and the type of each."""
    pa, _ = pyarrow()
    name = pa.dictionary(pa.int32(), pa.string())
    axes = {axis.name: pa.int64() if axis.number else name for axis in AXES.values()}
    return {
        **dict.fromkeys(("run", "started", "git_commit", "machine", "build"), name),
        "git_dirty": pa.bool_(),
        "cell": name,
        **axes,
        **dict.fromkeys(("meter", "unit"), name),
        "exact": pa.bool_(),
        **dict.fromkeys(("value", "low", "high"), pa.float64()),
        "rounds": pa.int64(),
        "reference": name,
        **dict.fromkeys(("ratio", "ratio_low", "ratio_high"), pa.float64()),
        **dict.fromkeys(("cause", "reason", "facts"), name),
        **dict.fromkeys(("values", "iterations"), pa.list_(pa.int64())),
    }


def _is_names(kind: Any) -> bool:
    pa, _ = pyarrow()
    return bool(pa.types.is_dictionary(kind))


def _rows(run: Run, columns: Sequence[str], *, rounds: bool) -> Iterator[list[object]]:
    """Yield the values of these columns for each figure of a run."""
    origin = figures.origin(run)
    machine, build = cache(origin.machine), cache(origin.build)
    of_run = {
        "run": run.name,
        "started": origin.started,
        "git_commit": origin.commit,
        "git_dirty": origin.dirty,
        "facts": json.dumps(dict(origin.facts)),
    }
    for figure in figures.figures(run):
        raw = figure.measurement if rounds else None
        steps = raw.iterations if raw else None
        device = figure.cell.device
        row = {
            **of_run,
            "machine": machine(device),
            "build": build(device, figure.unit or ""),
            "cell": figures.key(figure.cell),
            **figure.cell.axes(),
            "values": raw.values if raw else None,
            "iterations": [steps] if isinstance(steps, int) else steps,
        }
        values = (row[name] if name in row else getattr(figure, name) for name in columns)
        yield [_utf8(value) if isinstance(value, str) else value for value in values]


def _array(values: Sequence[object], kind: Any) -> Any:
    """Return a column; names are kept once each."""
    pa, _ = pyarrow()
    if _is_names(kind):
        return pa.array(values, pa.string()).dictionary_encode()
    return pa.array(values, kind)


def _utf8(text: str) -> str:
    """Return text that Parquet takes: bytes that never were UTF-8 stand as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _joined(tables: Sequence[Any]) -> Any:
    pa, _ = pyarrow()
    return pa.concat_tables(tables).unify_dictionaries()


def _sorted(table: Any) -> Any:
    """Return the rows by what queries ask for; of equal ones those of a run stay together."""
    pa, _ = pyarrow()
    keys = pa.table({name: table[name].cast(pa.string()) for name in _SORTED_BY})
    order = pa.compute.sort_indices(keys, sort_keys=[(name, "ascending") for name in _SORTED_BY])
    return table.take(order)


def _bytes(table: Any) -> bytes:
    pa, pq = pyarrow()
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=ROWS_A_GROUP,
        dictionary_pagesize_limit=_DICTIONARY_BYTES,
    )
    return bytes(sink.getvalue())
