"""The lines of a run's file: their checksums, its seal, and what is whole of a damaged one.

Each line ends in a checksum of its own, so that of a part file only what is damaged is lost. Files
written before 2026-11-26 have none: of those, everything behind a damaged line is given up.
"""

import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import StoreError
from ..records.measurements import Record
from ..records.validation import Misfit
from .record_rows import record_of, row_of

LONGEST_LINE_BYTES: Final = 32 * 2**20

_CHECKSUM: Final = re.compile(rb',"crc32":"([0-9a-f]{8})"\}$')


class BrokenSeal(StoreError):
    """A sealed file that is not what was sealed."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{str(path)!r} is not what was sealed, its count or hash is wrong: quarantined, no "
            "figure of it is used (gradbench runs --quarantine moves such files away)"
        )


@dataclass(frozen=True, slots=True)
class Dropped:
    """Bytes of a part file that are no record: of one line, or of all from it on."""

    line: int
    nbytes: int
    why: Misfit
    and_behind: bool
    was_being_written: bool

    def __str__(self) -> str:
        where = f"from line {self.line} on" if self.and_behind else f"in line {self.line}"
        return f"dropped {self.nbytes:,} bytes {where}: {self.why}"


def line_of(record: Record) -> str:
    """Return the line of a record, without its end."""
    line = json.dumps(row_of(record), separators=(",", ":"))
    checksum = zlib.crc32(line.encode("ascii"))
    return f'{line[:-1]},"crc32":"{checksum:08x}"}}'


def seal_of(content: bytes) -> str:
    """Return the line, without its end, that seals a file of this content."""
    seal = {
        "kind": "sealed",
        "records": content.count(b"\n"),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return json.dumps(seal)


def read_sealed(content: bytes, path: Path) -> list[Record]:
    """Return the records of a sealed file.

    Raise `BrokenSeal` where they are not what was sealed, and `StoreError` for what no record can
    be.
    """
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
    records = []
    for number, line in enumerate(body.splitlines(), 1):
        try:
            records.append(_record(line))
        except Misfit as error:
            raise _refused(path, number, error) from error
    return records


def read_part(content: bytes, path: Path) -> tuple[list[Record], list[Dropped]]:
    """Return the records of a part file's lines that are whole, and what was dropped.

    Raise `StoreError` where its first line is none, or for a line that was written so and that no
    record can be.
    """
    records: list[Record] = []
    dropped: list[Dropped] = []
    lines = content.splitlines(keepends=True)
    checked = any(map(_carries_checksum, lines))  # the first line itself may be damaged
    for number, line in enumerate(lines, 1):
        if _is_seal(line):  # sealed, and then not renamed
            continue
        try:
            records.append(_whole_record(line, checked=checked))
        except Misfit as error:
            if not records:
                raise StoreError(
                    f"{str(path)!r} holds no run: its first line is cut or damaged: {error}"
                ) from error
            cut = not line.endswith(b"\n")
            if not cut and _is_checked(line):  # written so, by another gradbench or by hand
                raise _refused(path, number, error) from error
            behind = not checked  # nothing says whether the lines there are what was written
            lost = lines[number - 1 :] if behind else [line]
            dropped.append(Dropped(number, sum(map(len, lost)), error, behind and not cut, cut))
            if behind:
                break
    return records, dropped


def _refused(path: Path, number: int, error: Misfit) -> StoreError:
    return StoreError(f"{str(path)!r}, line {number}, {error}: no figure of this run is used")


def _record(line: bytes) -> Record:
    """Return the record of a line; raise `Misfit` for what no record can be."""
    if len(line) > LONGEST_LINE_BYTES:
        raise Misfit(f"it has {len(line):,} bytes, and no record has")
    return record_of(line)


def _whole_record(line: bytes, *, checked: bool) -> Record:
    if not line.endswith(b"\n"):  # cut, be it at a brace
        raise Misfit("it is cut")
    if checked and not _is_checked(line):
        raise Misfit("its checksum is wrong")
    return _record(line)


def _carries_checksum(line: bytes) -> bool:
    """Return whether a line was written with a checksum, be it wrong now."""
    return _checksum(line.rstrip(b"\n")) is not None


def _checksum(line: bytes) -> re.Match[bytes] | None:
    return _CHECKSUM.search(line[-30:])


def _is_checked(line: bytes) -> bool:
    """Return whether a line ends in the checksum of what stands before."""
    line = line.rstrip(b"\n")
    match = _checksum(line)
    if match is None:
        return False
    body = line[: len(line) - len(match[0])] + b"}"
    return zlib.crc32(body) == int(match[1], 16)


def _is_seal(line: bytes) -> bool:
    return line.startswith(b'{"kind": "sealed"') and line.endswith(b"}\n")
