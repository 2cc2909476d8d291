"""One Parquet file of a dataset: what its footer says, and those of its bytes that are wanted.

Files may come from anybody. What a file says of itself may be a lie, so nothing is unpacked before
the headers of its pages were asked what they unpack to (`parquet_pages`), and only bytes that were
asked are fetched and read. That is why pyarrow reads files here and no dataset of its own.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import StoreError
from ..experiment.matrix import AXES
from ..plurals import counted
from ..records.validation import parse
from .dataset_store import LARGEST_FILE_BYTES, DatasetStore, File, NeedsPyarrow, Range
from .parquet_pages import place_of, unpacked_bytes

SCHEMA: Final = 1
"""Of the columns; a file of a newer one is refused, not misread."""
MARK: Final = b"gradbench"
"""Names our own metadata of a file: JSON with ``schema``, ``axes`` and, since 2026-11, ``runs``."""

MOST_ROWS: Final = 5_000_000
"""That one answer reads: a few kilobytes of Parquet can stand for any number of equal rows."""
MOST_BYTES: Final = 2**29
"""To which all that one answer reads may unpack."""

FOOTER_BYTES: Final = 2**17
"""Fetched of a file's end at first: more than the footer of a file that `pack` writes."""
LONGEST_FOOTER_BYTES: Final = 2**25
FOOTERS_AT_ONCE: Final = 256
_ENDING_BYTES: Final = 8  # the footer's length, and the format's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """What a file says of itself, read from its end alone."""

    file: File
    said: str  # the file's name as its user would write it
    metadata: Any
    schema: Any
    runs: tuple[str, ...] | None  # None in a file written before the footer had them

    def row_groups(self, wanted: Mapping[str, Collection[str]], *, since: str = "") -> list[int]:
        """Return the row groups that may hold a row whose columns have one of the texts wanted.

        By the least and the greatest text of a column; rows are sorted, so most groups are out.
        """
        columns = {*wanted, "started"}
        return [
            number
            for number in range(self.metadata.num_row_groups)
            if _may_hold(_edges(self.metadata.row_group(number), columns), wanted, since)
        ]

    def ranges(self, groups: Iterable[int], columns: Collection[str]) -> list[Range]:
        """Return where these columns lie; raise ValueError where that is beyond the file's end."""
        return [
            _range(self.file, chunk)
            for number in groups
            for chunk in _chunks(self.metadata.row_group(number), columns)
        ]

    def check(
        self, content: memoryview, groups: Sequence[int], columns: Collection[str]
    ) -> tuple[int, int]:
        """Return the rows and the bytes that these columns of groups unpack to.

        Raise `StoreError` where they are more than any history has.
        """
        parts = [self.metadata.row_group(number) for number in groups]
        unpacked = sum(
            unpacked_bytes(content, chunk) for part in parts for chunk in _chunks(part, columns)
        )
        number: int = sum(part.num_rows for part in parts)
        if number > MOST_ROWS or unpacked > MOST_BYTES:
            raise StoreError(
                f"{self.said} unpacks to {counted(number, 'row')} of {unpacked:,} bytes, more than "
                "a history has: it is left out"
            )
        return number, unpacked


class SparseFile:
    """A file of which only some bytes are here, in memory of Arrow's own.

    Memory that is never written takes none. It is Arrow's, whose threads let go of it a moment
    after a table is there: where that takes Python, and the interpreter ends in that moment, the
    process is aborted (https://github.com/apache/arrow/issues/33975).
    """

    def __init__(self, nbytes: int) -> None:
        self._buffer = pyarrow()[0].allocate_buffer(nbytes)

    @property
    def content(self) -> memoryview:
        """The bytes; of those that were not filled nothing may be read."""
        return memoryview(self._buffer).cast("B")

    def fill(self, start: int, part: bytes) -> None:
        """Put bytes where they stand in the file."""
        self.content[start : start + len(part)] = part

    def open(self, metadata: Any = None, *, names: Sequence[str] = ()) -> Any:
        """Return the file as pyarrow reads it, columns of names with each kept once."""
        pa, pq = pyarrow()
        return pq.ParquetFile(
            pa.BufferReader(self._buffer), metadata=metadata, read_dictionary=[*names]
        )


def footers(
    store: DatasetStore, files: Sequence[File]
) -> Iterator[tuple[File, Footer | Exception]]:
    """Yield of each file its footer, or why there is none: `StoreError`, or what pyarrow raises."""
    for start in range(0, len(files), FOOTERS_AT_ONCE):
        yield from _footers(store, files[start : start + FOOTERS_AT_ONCE])


def _footers(
    store: DatasetStore, files: Sequence[File]
) -> Iterator[tuple[File, Footer | Exception]]:
    there = [file for file in files if file.nbytes]
    ends = store.read([_end(file, FOOTER_BYTES) for file in there])
    parts = dict(zip(there, ends, strict=True))
    longer = [
        file
        for file, part in parts.items()
        if len(part) < _footer_bytes(part) <= min(file.nbytes, LONGEST_FOOTER_BYTES)
    ]
    more = store.read([_end(file, _footer_bytes(parts[file])) for file in longer])
    parts |= zip(longer, more, strict=True)
    for file in files:
        try:
            yield file, _footer(file, parts.get(file, b""), store.say(file.name))
        except unreadable() as error:
            yield file, error


def unreadable() -> tuple[type[Exception], ...]:
    """Return what reading a damaged file raises, beside what `pack` never wrote."""
    pa, _ = pyarrow()
    return (StoreError, pa.ArrowException, OSError, ValueError, KeyError, TypeError)


def pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and its module for Parquet; raise `NeedsPyarrow`."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise NeedsPyarrow(
            "Parquet needs pyarrow: pip install 'torch-gradbench[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet


def _end(file: File, nbytes: int) -> Range:
    return Range(file.name, max(file.nbytes - nbytes, 0), file.nbytes)


def _footer_bytes(end: bytes) -> int:
    """Return how long a footer with its ending is, as a file's end says."""
    return int.from_bytes(end[-_ENDING_BYTES:-4], "little") + _ENDING_BYTES


def _footer(file: File, end: bytes, said: str) -> Footer:
    if file.nbytes > LARGEST_FILE_BYTES:
        raise StoreError(f"{said} has {file.nbytes:,} bytes: no file of gradbench has")
    sparse = SparseFile(file.nbytes)
    sparse.fill(file.nbytes - len(end), end)
    opened = sparse.open()
    schema = opened.schema_arrow
    mark = _checked_mark(schema.metadata or {}, said)
    runs = mark.get("runs")
    known = isinstance(runs, list) and all(isinstance(run, str) for run in runs)
    return Footer(
        file=file,
        said=said,
        metadata=opened.metadata,
        schema=schema,
        runs=tuple(runs or ()) if known else None,
    )


def _checked_mark(metadata: dict[bytes, bytes], said: str) -> dict[str, Any]:
    """Return what `pack` wrote of a file; raise `StoreError` where we would misread it."""
    if MARK not in metadata:
        raise StoreError(f"{said} was not written by gradbench pack: it is left out")
    mark: dict[str, Any] = parse(metadata[MARK])
    if mark["schema"] > SCHEMA:
        raise StoreError(
            f"{said} has schema {mark['schema']}, this gradbench reads {SCHEMA}: upgrade"
        )
    unknown = sorted(set(mark["axes"]) - set(AXES))
    if unknown:
        raise StoreError(
            f"{said} has axes unknown to this gradbench, {', '.join(unknown)}: upgrade"
        )
    return mark


def _chunks(group: Any, columns: Collection[str]) -> Iterator[Any]:
    chunks = (group.column(at) for at in range(group.num_columns))
    return (chunk for chunk in chunks if chunk.path_in_schema in columns)


def _range(file: File, chunk: Any) -> Range:
    return Range(file.name, *place_of(chunk, file.nbytes))


def _edges(group: Any, columns: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the least and the greatest text of each of these columns that says them."""
    edges = {}
    for chunk in _chunks(group, columns):
        about = chunk.statistics
        if about is not None and about.has_min_max and isinstance(about.min, str):
            edges[chunk.path_in_schema] = (about.min, about.max)
    return edges


def _may_hold(
    edges: Mapping[str, tuple[str, str]], wanted: Mapping[str, Collection[str]], since: str
) -> bool:
    if "started" in edges and edges["started"][1] < since:
        return False
    return all(
        any(edges[column][0] <= text <= edges[column][1] for text in texts)
        for column, texts in wanted.items()
        if column in edges
    )
