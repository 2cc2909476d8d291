"""Many runs as one Parquet dataset, here or on object storage, and its figures back."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Final, get_args

import pandas as pd

from ..errors import GradbenchError, StoreError
from ..experiment.matrix import AXES
from ..plurals import counted
from ..records.measurements import Fact, Unit
from ..records.run import Run
from ..records.validation import Misfit, parse, reader
from ..store import file_lock
from . import figures
from .parquet_pages import unpacked_bytes
from .sqlite_index import COLUMNS, Figures

SCHEMA: Final = 1
"""Of the columns below; a file of a newer one is refused, not misread."""
MARK: Final = b"gradbench"
RUNS_A_FILE: Final = 100

MOST_ROWS: Final = 5_000_000
"""Of a dataset: a few kilobytes of Parquet can stand for any number of equal rows."""
MOST_BYTES: Final = 2**29
"""Of one file, packed or not."""

_ORIGIN: Final = ("run", "started", "facts")
_TEXTS: Final = ("run", "cell", "meter", "unit", "reference", "started", "facts")
_NUMBERS: Final = ("value", "ratio")


class NeedsPyarrow(GradbenchError):
    """Parquet was asked for where pyarrow is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What `pack` did: the files it wrote, runs and rows in them, runs that were there before."""

    files: tuple[str, ...]
    runs: int
    rows: int
    before: int


def pack(runs: Iterable[Run], destination: str, *, rounds: bool = True) -> Packed:
    """Add runs to the dataset at a folder or URL, those that it has already left out.

    A row is a figure of a cell (see `run_figures.Figure`); ``values`` and ``iterations`` have the
    raw rounds, unless ``rounds`` is False. Files are written whole, then given their name, in
    folders ``month=2026-11``, so that whoever reads them beside a writer sees whole ones only. Runs
    cut short are left out. Raise `NeedsPyarrow`, or `StoreError` where it cannot be written.
    """
    _pyarrow()
    place = _Dataset(destination)
    with place.alone():
        have = {run for name in place.files() for run in _runs_in(place, name)}
        files: list[str] = []
        added, rows, before = 0, 0, 0

        def unknown() -> Iterator[Run]:
            nonlocal before
            for run in runs:
                if run.sealed and run.name in have:
                    before += 1
                elif run.sealed:
                    have.add(run.name)
                    yield run

        for month, members in groupby(unknown(), key=_month):
            while part := list(islice(members, RUNS_A_FILE)):
                name = f"month={month}/{part[0].name}-{_digest(part)}.parquet"
                table = _joined([_table(run, rounds=rounds) for run in part])
                place.put(name, _bytes(table))
                files.append(place.say(name))
                added += len(part)
                rows += table.num_rows
    return Packed(files=tuple(files), runs=added, rows=rows, before=before)


def read(source: str) -> Figures:
    """Return the figures of a dataset that `pack` wrote, in a folder or at a URL.

    A file that cannot be read, or not by this gradbench, is named, left out and left alone. A run
    that two files have counts once.
    Raise `NeedsPyarrow`, or `StoreError` where there is no dataset.
    """
    pa, _ = _pyarrow()
    place = _Dataset(source)
    tables: list[Any] = []
    warnings: list[str] = []
    origins: dict[str, figures.Origin] = {}
    names = place.files()
    if not names:
        raise StoreError(f"no Parquet file in {source!r}: write some with gradbench pack")
    rows = MOST_ROWS
    for name in names:
        try:
            file = _opened(place.get(name), place.say(name), rows=rows)
            rows -= file.metadata.num_rows
            table = _checked(file.read([*COLUMNS]))
            file_origins = _origins(file.read([*_ORIGIN]))
        except StoreError as error:
            warnings.append(str(error))
            continue
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            first_line = (str(error).splitlines() or ["unreadable"])[0]
            warnings.append(
                f"{place.say(name)}: {first_line}; it is left out (gradbench pack of the same "
                "runs writes a damaged file anew)"
            )
            continue
        twice = sorted(file_origins.keys() & origins.keys())
        if twice:
            keep = pa.compute.invert(pa.compute.is_in(table["run"], pa.array(twice)))
            table = table.filter(keep)
        tables.append(table)
        origins = file_origins | origins
    if not tables:
        return Figures(pd.DataFrame(columns=[*COLUMNS]), {}, warnings)
    return Figures(_joined(tables).to_pandas(), origins, warnings)


def is_pack(source: str) -> bool:
    """Return whether a name is a URL, or a folder with Parquet files and none of runs."""
    if "://" in source:
        return True
    folder = Path(source)
    return folder.is_dir() and next(folder.glob("month=*/*.parquet"), None) is not None


class _Dataset:
    """A folder of this machine or a URL, as fsspec sees it."""

    def __init__(self, where: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise NeedsPyarrow(
                "Parquet needs fsspec: pip install 'torch-gradbench[parquet]'"
            ) from error
        try:
            self._files, self._root = url_to_fs(where)
        except (ImportError, ValueError, OSError) as error:
            raise StoreError(f"cannot reach {where!r}: {error}") from error
        self._where = where.rstrip("/")
        self._local = Path(self._root) if "://" not in where else None

    def say(self, name: str) -> str:
        """Return a file's name as its user would write it."""
        return f"{self._where}/{name}"

    def files(self) -> list[str]:
        """Return the names of the dataset's files, in order."""
        try:
            paths = self._files.glob(f"{self._root}/month=*/*.parquet")
        except OSError as error:
            raise StoreError(f"cannot read {self._where!r}: {error}") from error
        return sorted("/".join(path.rsplit("/", 2)[-2:]) for path in paths)

    def get(self, name: str) -> bytes:
        """Return a file's content."""
        path = f"{self._root}/{name}"
        size = self._files.size(path) or 0
        if size > MOST_BYTES:
            raise StoreError(f"{self.say(name)} has {size:,} bytes: no file of gradbench has")
        return bytes(self._files.cat_file(path))

    def put(self, name: str, content: bytes) -> None:
        """Write a file that is there whole or not at all, as object stores do by themselves."""
        try:
            if self._local is None:
                self._files.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
                self._files.pipe_file(f"{self._root}/{name}", content)
                return
            path = self._local / name
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
        except OSError as error:
            raise StoreError(
                f"cannot write {self.say(name)!r}: {error.strerror or error}; "
                "what was packed before is whole, pack again for the rest"
            ) from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second packer of this machine out, which would pack the same runs."""
        if self._local is None:
            with nullcontext():
                yield
            return
        try:
            self._local.mkdir(parents=True, exist_ok=True)
            lock = (self._local / ".lock").open("a")  # a file of that name keeps what it has
        except OSError as error:
            raise StoreError(f"cannot write in {self._where!r}: {error.strerror}") from error
        with lock:
            file_lock.hold(lock)
            yield


def _table(run: Run, *, rounds: bool) -> Any:
    """Return a run's figures, a row each."""
    pa, _ = _pyarrow()
    kinds = _kinds()
    rows = list(_rows(run, tuple(kinds), rounds=rounds))
    arrays = [_array([row[i] for row in rows], kind) for i, kind in enumerate(kinds.values())]
    metadata = json.dumps({"schema": SCHEMA, "axes": list(AXES)}).encode()
    fields = [pa.field(column, kind) for column, kind in kinds.items()]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata={MARK: metadata}))


def _kinds() -> dict[str, Any]:
    """Return the columns in order, and the type of each."""
    pa, _ = _pyarrow()
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


def _rows(run: Run, columns: Sequence[str], *, rounds: bool) -> Iterator[list[object]]:
    """Yield the values of these columns for each figure of a run."""
    origin = figures.origin(run)
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
            "machine": origin.machine(device),
            "build": origin.build(device, figure.unit or ""),
            "cell": figures.key(figure.cell),
            **figure.cell.axes(),
            "values": raw.values if raw else None,
            "iterations": [steps] if isinstance(steps, int) else steps,
        }
        values = (row[name] if name in row else getattr(figure, name) for name in columns)
        yield [_utf8(value) if isinstance(value, str) else value for value in values]


def _array(values: Sequence[object], kind: Any) -> Any:
    """Return a column; names are kept once each."""
    pa, _ = _pyarrow()
    if pa.types.is_dictionary(kind):
        return pa.array(values, pa.string()).dictionary_encode()
    return pa.array(values, kind)


def _utf8(text: str) -> str:
    """Return text that Parquet takes: bytes that never were UTF-8 stand as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _joined(tables: Sequence[Any]) -> Any:
    pa, _ = _pyarrow()
    return pa.concat_tables(tables).unify_dictionaries()


def _bytes(table: Any) -> bytes:
    pa, pq = _pyarrow()
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _runs_in(place: _Dataset, name: str) -> set[str]:
    """Return the runs that a file has; none where it cannot be read, so that they are packed."""
    pa, _ = _pyarrow()
    try:
        file = _opened(place.get(name), place.say(name), rows=MOST_ROWS)
        return set(file.read(["run"])["run"].unique().to_pylist())
    except (StoreError, pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return set()


def _opened(content: bytes, name: str, *, rows: int) -> Any:
    """Return a file of which nothing but its metadata is read yet.

    It is read from memory of Arrow's own, whose threads let go of it a moment after a table is
    there: where that takes Python, and the interpreter ends in that moment, the process is aborted
    (https://github.com/apache/arrow/issues/33975).
    Raise `StoreError` where it is not ours, or would unpack to more than any history has.
    """
    pa, pq = _pyarrow()
    copy = pa.BufferOutputStream()
    copy.write(content)
    file = pq.ParquetFile(pa.BufferReader(copy.getvalue()), read_dictionary=[*_TEXTS])
    _check(file.schema_arrow.metadata or {}, name)
    metadata = file.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(at) for group in groups for at in range(group.num_columns)]
    wanted = (*COLUMNS, *_ORIGIN)
    unpacked = sum(unpacked_bytes(content, c) for c in columns if c.path_in_schema in wanted)
    number = max(metadata.num_rows, sum(group.num_rows for group in groups))
    if number > rows or unpacked > MOST_BYTES:
        raise StoreError(
            f"{name} unpacks to {counted(number, 'row')} of {unpacked:,} bytes, more than a "
            "history has: it is left out"
        )
    return file


def _checked(table: Any) -> Any:
    """Return the rows with a number; raise ValueError where a column is not what `pack` wrote."""
    pa, _ = _pyarrow()
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


def _origins(table: Any) -> dict[str, figures.Origin]:
    """Return the origin of each run in a table of `_ORIGIN`; raise `Misfit` for what is none."""
    facts = reader(Mapping[str, Fact])
    first = table.to_pandas().drop_duplicates("run")
    origins = {}
    for row in first.itertuples():
        if not isinstance(row.started, str) or not isinstance(row.facts, str):
            raise Misfit(f"run {row.run!r} says neither when it started nor where")
        known = facts(parse(row.facts), "facts")
        origins[row.run] = figures.origin_of(row.run, row.started, known)
    return origins


def _check(metadata: dict[bytes, bytes], name: str) -> None:
    """Raise `StoreError` unless a file is ours and says nothing that we would misread."""
    if MARK not in metadata:
        raise StoreError(f"{name} was not written by gradbench pack: it is left out")
    content = parse(metadata[MARK])
    if content["schema"] > SCHEMA:
        raise StoreError(
            f"{name} has schema {content['schema']}, this gradbench reads {SCHEMA}: upgrade"
        )
    unknown = sorted(set(content["axes"]) - set(AXES))
    if unknown:
        raise StoreError(
            f"{name} has axes unknown to this gradbench, {', '.join(unknown)}: upgrade"
        )


def _month(run: Run) -> str:
    return run.header.started_at[:7]


def _digest(runs: Sequence[Run]) -> str:
    return hashlib.sha256("\n".join(run.name for run in runs).encode()).hexdigest()[:8]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise NeedsPyarrow(
            "Parquet needs pyarrow: pip install 'torch-gradbench[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet
