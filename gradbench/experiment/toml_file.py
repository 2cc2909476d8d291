"""A TOML file, and where in it a key or a value stands, which the parser does not tell."""

import re
import stat
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

from ..errors import BadConfig

LARGEST_BYTES: Final = 16 * 2**20
_HEADER: Final = re.compile(r"""\s*(\[\[?)\s*([\w.'"/-]+)\s*(\]\]?)\s*(#.*)?$""")
_KEY: Final = re.compile(r"""\s*(["']?)([^\s"'=#\[]+)\1\s*=""")


@dataclass(frozen=True, slots=True)
class _Line:
    """One line that is no comment: the table that it stands in, and the key that it belongs to."""

    number: int
    header: str  # "[plan]" or "[[matrix]]", "" at the top
    table: int  # which of the tables of that header, from 0
    key: str  # of a value over several lines, on each of them; "" of a header
    opens: bool  # is it the header, or the key's first line?
    text: str


@dataclass(frozen=True)
class TomlFile:
    """A file's text, and what the parser made of it."""

    path: Path
    text: str
    tree: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file; raise `BadConfig` where it cannot be read or is no TOML."""
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device be endless
                raise BadConfig(f"{path}: it is no regular file: write it to one")
            if status.st_size > LARGEST_BYTES:
                raise BadConfig(f"{path}: it has {status.st_size:,} bytes: no configuration has")
            text = path.read_text("utf-8-sig")  # some editors begin a file with a mark of that
            return cls(path, text, tomllib.loads(text))
        except FileNotFoundError as error:
            raise BadConfig(
                f"{path}: there is no such file: give the path of a TOML file"
            ) from error
        except OSError as error:
            raise BadConfig(f"{path}: {error.strerror}: give a file that can be read") from error
        except UnicodeDecodeError as error:
            raise BadConfig(f"{path}: not UTF-8 text ({error.reason})") from error
        except RecursionError:
            raise BadConfig(f"{path}: it is nested too deeply") from None
        except ValueError as error:  # no TOML, or an integer of thousands of digits
            raise BadConfig(f"{path}: {str(error).partition(';')[0]}") from error

    def at(self, key: str, *, header: str, table: int = 0) -> str:
        """Return ``file, line N, key: `` for a key of the table of that header and index.

        A key at the top has the header ``""``, and may be a table's header itself.
        """
        line = self.line(key, header=header, table=table)
        return f"{self.path}, line {line}, {key}: " if line else f"{self.path}, {key}: "

    def line(self, key: str, *, header: str, table: int = 0) -> int | None:
        """Return the number of the line that `at` names, or None where none is found."""
        for line in self._lines:
            if not line.opens:
                continue
            if not line.key:
                if not header and line.header.strip("[]") == key:
                    return line.number
            elif (line.header, line.key) == (header, key) and (not header or line.table == table):
                return line.number
        return None

    def tables(self, header: str) -> list[int]:
        """Return the lines of the headers that read so."""
        return [one.number for one in self._lines if one.header == header and not one.key]

    def at_value(self, value: str, *, key: str) -> str:
        """Return ``file, line N, key: `` of the first line that quotes a value, or ``""``.

        ``key`` stands in where the line has none.
        """
        for line in self._lines:
            if f'"{value}"' in line.text or f"'{value}'" in line.text:
                return f"{self.path}, line {line.number}, {line.key or key}: "
        return ""

    @cached_property
    def _lines(self) -> list[_Line]:
        return list(_scan(self.text))


def _scan(text: str) -> Iterator[_Line]:
    header, key = "", ""
    tables: Counter[str] = Counter()
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        opens = True
        if match := _HEADER.match(line):
            header, key = match[1] + re.sub(r"""["']""", "", match[2]) + match[3], ""
            tables[header] += 1
        elif match := _KEY.match(line):
            key = match[2]
        else:
            opens = False
        yield _Line(number, header, max(0, tables[header] - 1), key, opens, line)
