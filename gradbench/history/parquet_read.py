"""Reads from a dataset the figures that are wanted, and no other file, row group or column."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import pandas as pd

from ..errors import StoreError
from ..plurals import counted
from ..records.measurements import Fact, Unit
from ..records.validation import Misfit, parse, reader
from . import figures, parquet_file
from .chosen import Chosen
from .dataset_store import DatasetStore, File, Range, Vanished, listing_anew, merged
from .parquet_file import Footer, SparseFile, footers, pyarrow, unreadable
from .sqlite_index import COLUMNS, Figures

AT_ONCE_BYTES: Final = 2**26
"""Fetched before it is unpacked and let go of."""
NAMED: Final = 3
"""Files with one and the same thing wrong that are named; the others are counted."""

_ORIGIN: Final = ("run", "started", "facts")
_PLAIN: Final = (str, int, float)
_NUMBERS: Final = ("value", "ratio")
_NOT_TEXTS: Final = ("exact", *_NUMBERS)
_TEXTS: Final = tuple(
    dict.fromkeys(name for name in (*COLUMNS, *_ORIGIN) if name not in _NOT_TEXTS)
)


def is_pack(source: str) -> bool:
    """Return whether a name is a URL, or a folder with the files of a dataset."""
    if "://" in source:
        return True
    folder = Path(source)
    return folder.is_dir() and next(folder.glob("month=*/*.parquet"), None) is not None


def read(source: str, chosen: Chosen | None = None) -> Figures:
    """Return figures of a dataset that `pack` wrote, in a folder or at a URL: all that are chosen.

    There may be others among them. A file that cannot be read, or not by this gradbench, is named,
    left out and left alone. A run that two files have counts once.
    Raise `NeedsPyarrow`, or `StoreError` where there is no dataset.
    """
    pyarrow()
    store = DatasetStore(source)
    return listing_anew(lambda: _read(store, source, chosen or Chosen()))


def _read(store: DatasetStore, source: str, chosen: Chosen) -> Figures:
    files = store.files()
    if not files:
        store.check_there()
        raise StoreError(f"no Parquet file in {source!r}: write some with gradbench pack")
    month = chosen.since[: len("2026-11")]
    wanted = [file for file in files if file.month >= month]
    read = _Read(store, chosen)
    for batch in _batches(read.parts(footers(store, wanted))):
        read.take(batch)
    return read.figures()


@dataclass(frozen=True, slots=True)
class _Part:
    """Row groups of a file that are wanted, and where their columns lie."""

    footer: Footer
    groups: tuple[int, ...]
    ranges: tuple[Range, ...]

    @property
    def nbytes(self) -> int:
        return sum(one.end - one.start for one in self.ranges)


class _Read:
    """What was read of a dataset so far."""

    def __init__(self, store: DatasetStore, chosen: Chosen) -> None:
        self._store, self._since = store, chosen.since
        self._wanted = chosen.columns()
        self._tables: list[Any] = []
        self._origins: dict[str, figures.Origin] = {}
        self._facts = _Facts()
        self._left_out: list[tuple[str, str]] = []  # name and what is wrong
        self._rows = self._nbytes = 0  # that were unpacked

    def parts(self, of: Iterable[tuple[File, Footer | Exception]]) -> Iterator[_Part]:
        """Yield of each file what is wanted of it, if anything is."""
        for file, footer in of:
            if isinstance(footer, Exception):
                self._leave_out(file, footer)
                continue
            try:
                groups = footer.row_groups(self._wanted, since=self._since)
                ranges = merged(footer.ranges(groups, self._columns(footer)))
            except unreadable() as error:
                self._leave_out(file, error)
                continue
            if groups:
                yield _Part(footer, tuple(groups), tuple(ranges))

    def take(self, parts: Sequence[_Part]) -> None:
        """Read parts of files, all of them fetched at once."""
        contents = iter(self._store.read([one for part in parts for one in part.ranges]))
        for part in parts:
            sparse = SparseFile(part.footer.file.nbytes)
            for one in part.ranges:
                sparse.fill(one.start, next(contents))
            try:
                self._take(part, sparse)
            except unreadable() as error:
                self._leave_out(part.footer.file, error)

    def figures(self) -> Figures:
        """Return all of it."""
        words = [*_folded(self._left_out)]
        if not self._tables:
            return Figures(pd.DataFrame(columns=[*COLUMNS]), {}, words)
        pa, _ = pyarrow()
        table = pa.concat_tables(self._tables).unify_dictionaries()
        return Figures(table.to_pandas(), self._origins, words)

    def _take(self, part: _Part, sparse: SparseFile) -> None:
        pa, _ = pyarrow()
        footer, groups, columns = part.footer, [*part.groups], self._columns(part.footer)
        with sparse.content as content:
            self._check_sums(footer, *footer.check(content, groups, columns))
        texts = [name for name in columns if name not in _NOT_TEXTS]
        file = sparse.open(footer.metadata, names=texts)
        table = file.read_row_groups(groups, columns=[*columns])
        origins = _origins(table.select([*_ORIGIN]), self._facts)
        for column, wanted in self._wanted.items():
            if column in columns:
                kept = pa.compute.is_in(table[column], pa.array(sorted(wanted)))
                table = table.filter(kept)
        table = _checked(table.select([*COLUMNS]))
        twice = sorted(origins.keys() & self._origins.keys())
        if twice:
            keep = pa.compute.invert(pa.compute.is_in(table["run"], pa.array(twice)))
            table = table.filter(keep)
        self._tables.append(table)
        self._origins = origins | self._origins

    def _columns(self, footer: Footer) -> tuple[str, ...]:
        """Return the columns to read: of those to filter by, what an older file does not have is
        left to its keys."""
        there = footer.schema.names
        filters = (name for name in self._wanted if name in there)
        return tuple(dict.fromkeys((*_TEXTS, *_NOT_TEXTS, *filters)))

    def _check_sums(self, footer: Footer, rows: int, nbytes: int) -> None:
        """Add what a file is about to unpack to; raise `StoreError` where it is too much in all."""
        for so_far, more, most, unit in (
            (self._rows, rows, parquet_file.MOST_ROWS, "row"),
            (self._nbytes, nbytes, parquet_file.MOST_BYTES, "byte"),
        ):
            if so_far + more > most:
                raise StoreError(
                    f"{footer.said} makes more than {counted(most, unit)}: it is left out; ask for "
                    "less, by --model, --meter or --since"
                )
        self._rows += rows
        self._nbytes += nbytes

    def _leave_out(self, file: File, error: Exception) -> None:
        name = self._store.say(file.name)
        if isinstance(error, Vanished):
            raise error
        words = str(error)
        if not isinstance(error, StoreError):
            first_line = (words.splitlines() or ["unreadable"])[0]
            words = (
                f"{name}: {first_line}; it is left out (gradbench pack of the same runs writes a "
                "damaged file anew)"
            )
        self._left_out.append((name, words))


class _Facts:
    """Reads the facts of runs, of which most are the same in all: those are checked once."""

    def __init__(self) -> None:
        self._check = reader(Mapping[str, Fact])
        self._checked: set[tuple[str, type, Any]] = set()

    def read(self, text: str) -> Mapping[str, Fact]:
        """Return facts from JSON; raise `Misfit` for what is none."""
        content = parse(text)
        if not isinstance(content, dict):
            return dict(self._check(content, "facts"))  # says what is wrong
        known = self._checked
        new = {
            name: value
            for name, value in content.items()
            if not isinstance(value, _PLAIN) or (name, type(value), value) not in known
        }
        checked: dict[str, Fact] = self._check(new, "facts")
        as_is = checked.items() & new.items()
        known |= {(name, type(value), value) for name, value in as_is}
        return content | checked


def _batches(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Yield parts that are not too large together."""
    batch: list[_Part] = []
    nbytes = 0
    for part in parts:
        if batch and nbytes + part.nbytes > AT_ONCE_BYTES:
            yield batch
            batch, nbytes = [], 0
        batch.append(part)
        nbytes += part.nbytes
    if batch:
        yield batch


def _folded(left_out: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield what is wrong with files: of one thing the first few, and how many more there are."""
    alike: dict[str, int] = {}
    for name, words in left_out:
        reason = words.replace(name, "", 1)
        alike[reason] = alike.get(reason, 0) + 1
        if alike[reason] <= NAMED:
            yield words
    for reason, number in alike.items():
        if number > NAMED:
            yield f"and {counted(number - NAMED, 'more file')}{reason}"


def _checked(table: Any) -> Any:
    """Return the rows with a number; raise ValueError where a column is not what `pack` wrote."""
    pa, _ = pyarrow()
    if table.schema.field("value").type == pa.float64():  # a reason has no value, and no unit
        table = table.filter(pa.compute.is_finite(table["value"]))
    for name in COLUMNS:
        kind, column = table.schema.field(name).type, table[name]
        if name in _NUMBERS:
            fits = kind == pa.float64()
        elif name == "exact":
            fits = kind == pa.bool_() and not column.null_count
        else:
            fits = pa.types.is_dictionary(kind) and kind.value_type == pa.string()
            fits = fits and not column.null_count
        if not fits:
            raise ValueError(f"the column {name} is not what gradbench pack writes")
    unknown = set(table["unit"].unique().to_pylist()) - set(get_args(Unit))
    if unknown:
        raise ValueError(f"the unit {min(unknown)!r} is none of gradbench's")
    return table


def _origins(table: Any, facts: "_Facts") -> dict[str, figures.Origin]:
    """Return the origin of each run in a table of `_ORIGIN`; raise `Misfit` for what is none."""
    first = table.unify_dictionaries().to_pandas().drop_duplicates("run")
    origins = {}
    for row in first.itertuples():
        if not isinstance(row.started, str) or not isinstance(row.facts, str):
            raise Misfit(f"run {row.run!r} says neither when it started nor where")
        origins[row.run] = figures.origin_of(row.run, row.started, facts.read(row.facts))
    return origins
