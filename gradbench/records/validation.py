"""Plain JSON in, dataclasses out: every value is held against its field's annotation, once.

Files of runs, self-checks and verdicts may come from anybody. What is read here has the types that
its annotations say, its numbers are finite and fit 64 bits, its texts have a sane length; so
nothing behind has to ask again. (Validators of other packages were tried on paper: those that are
fast enough refuse text that is no UTF-8, which command lines and hosts' names may hold.)
"""

import json
import math
import stat
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache, lru_cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Final,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ..errors import GradbenchError, StoreError
from ..experiment.axis import MOST
from ..experiment.matrix import AXES, Cell
from ..printable import brief, one_line

LONGEST_TEXT: Final = 1_000_000
LARGEST_FILE_BYTES: Final = 64 * 2**20
"""Of a file that is read whole as one JSON value."""

Made = TypeVar("Made")
Read = Callable[[Any, str], Any]
"""A plain value, and where it stands, in; the value as a field has it out, or `Misfit` raised."""


class Misfit(ValueError):
    """A value that its field cannot have; the message names the field."""

    def __init__(self, words: str, *, where: str = "", must: str = "") -> None:
        super().__init__(words)
        self.where, self.must = where, must


def misfit(where: str, must: str, value: object) -> Misfit:
    """Return the complaint about a value."""
    words = f"{where or 'it'} must be {must}, not {_shown(value)}"
    return Misfit(words, where=where, must=must)


def parse(content: bytes | str) -> Any:
    """Return what a JSON text holds; raise `Misfit` for what is none, NaN and the like included."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise Misfit("it is nested too deeply") from None
    except Misfit:
        raise
    except ValueError as error:  # of the parser, of UTF-8, or an integer of thousands of digits
        words = str(error).partition(";")[0]
        raise Misfit(f"it is no JSON: {one_line(words, longest=200)}") from None


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; raise `StoreError` for one that cannot be read as such."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for its writer
            raise StoreError(f"{str(path)!r} is no regular file")
        if status.st_size > LARGEST_FILE_BYTES:
            raise StoreError(
                f"{str(path)!r} has {status.st_size:,} bytes: no file of gradbench has"
            )
        return parse(path.read_bytes())
    except OSError as error:
        raise StoreError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except Misfit as error:
        raise StoreError(f"{str(path)!r}: {error}") from error


def fill(kind: type[Made], row: Any, where: str = "") -> Made:
    """Return a dataclass filled from an object's members; others are passed over.

    Raise `Misfit` for a member that is missing or does not fit.
    """
    if not isinstance(row, dict):
        raise misfit(where, "an object", row)
    values = {}
    for name, read, required in _members(kind):  # type: ignore[arg-type] # a class has a hash
        place = f"{where}.{name}" if where else name
        if name in row:
            values[name] = read(row[name], place)
        elif required:
            raise Misfit(f"{place} is missing")
    try:
        return kind(**values)
    except GradbenchError as error:  # what it checks itself
        raise Misfit(f"{where or kind.__name__}: {error}") from None


@cache
def reader(hint: Any) -> Read:
    """Return what reads values of an annotation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is Literal:
        return partial(_one_of, arguments)
    if isinstance(hint, type) and origin is None:
        return partial(_member if issubclass(hint, Enum) else fill, hint)
    parts = tuple(reader(part) for part in arguments if part is not Ellipsis)
    of_containers: Mapping[Any, Callable[..., Any]] = {
        tuple: _sequence if Ellipsis in arguments else _row,
        Mapping: _mapping,
        Union: _any_of,
        UnionType: _any_of,
    }
    return partial(of_containers[origin], parts)


@cache
def _members(kind: type[Any]) -> tuple[tuple[str, Read, bool], ...]:
    """Return a dataclass's fields: name, what reads it, and whether it must be there."""
    hints = get_type_hints(kind)
    return tuple(
        (
            field.name,
            reader(hints[field.name]),
            field.default is MISSING and field.default_factory is MISSING,
        )
        for field in fields(kind)
    )


def _whole(value: Any, where: str) -> int:
    if type(value) is not int:
        raise misfit(where, "a whole number", value)
    if abs(value) > MOST:
        raise misfit(where, "a number of 64 bits", value)
    return value


def _number(value: Any, where: str) -> float:
    if type(value) is float:
        if not math.isfinite(value):
            raise misfit(where, "a finite number", value)
        return value
    if type(value) is not int:
        raise misfit(where, "a number", value)
    return _whole(value, where)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise misfit(where, "text", value)
    if len(value) > LONGEST_TEXT:
        raise misfit(where, f"at most {LONGEST_TEXT:,} characters", value)
    return _utf8(value)


def _utf8(text: str) -> str:
    """Return text that pandas, SQLite and Parquet take: lone surrogates stand as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise misfit(where, "true or false", value)
    return value


def _nothing(value: Any, where: str) -> None:
    if value is not None:
        raise misfit(where, "null", value)


def _anything(value: Any, _where: str) -> Any:
    return value


def _one_of(known: tuple[object, ...], value: Any, where: str) -> Any:
    if not isinstance(value, str) or value not in known:
        raise misfit(where, f"one of {', '.join(map(str, known))}, or this gradbench newer", value)
    return value


def _member(kind: type[Enum], value: Any, where: str) -> Enum:
    try:
        return kind(value)
    except ValueError:
        raise misfit(where, f"one of {', '.join(str(one.value) for one in kind)}", value) from None


def _sequence(parts: tuple[Read, ...], value: Any, where: str) -> tuple[Any, ...]:
    (read,) = parts
    if not isinstance(value, list):
        raise misfit(where, "a list", value)
    if read is _whole and set(map(type, value)) <= {int}:  # a million rounds, without a call each
        if value and not -MOST <= min(value) <= max(value) <= MOST:
            raise misfit(where, "numbers of 64 bits", max(value, key=abs))
        return tuple(value)
    return tuple(read(one, f"{where}[{number}]") for number, one in enumerate(value))


def _row(reads: tuple[Read, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) != len(reads):
        raise misfit(where, f"a list of {len(reads)}", value)
    return tuple(
        read(one, f"{where}[{number}]")
        for number, (read, one) in enumerate(zip(reads, value, strict=True))
    )


def _mapping(parts: tuple[Read, ...], value: Any, where: str) -> dict[str, Any]:
    _, read = parts
    if not isinstance(value, dict):
        raise misfit(where, "an object", value)
    filled = {}
    for name, one in value.items():
        try:
            filled[_text(name, "")] = read(one, "")
        except Misfit:  # to say where costs more than to read, and is asked of few
            filled[_text(name, f"a name in {where}")] = read(one, f"{where}[{_shown(name)}]")
    return filled


def _any_of(reads: tuple[Read, ...], value: Any, where: str) -> Any:
    complaints: list[Misfit] = []
    for read in reads:
        try:
            return read(value, where)
        except Misfit as error:
            complaints.append(error)
    closest = max(complaints, key=lambda error: len(error.where))
    if closest.where != where:  # inside the value
        raise closest
    raise misfit(where, " or ".join(error.must for error in complaints), value)


def cell(value: Any, where: str) -> Cell:
    """Return a cell of its axes; raise `Misfit` for one that this gradbench does not know."""
    if not isinstance(value, dict):
        raise misfit(where, "an object", value)
    unknown = sorted(value.keys() - set(AXES))
    if unknown:
        raise Misfit(f"{where} has axes unknown to this gradbench, {', '.join(unknown)}: upgrade")
    try:
        axes = ((axis, _utf8(one) if isinstance(one, str) else one) for axis, one in value.items())
        return _made(tuple(axes))
    except GradbenchError as error:
        raise Misfit(f"{where}: {error}; or upgrade") from None
    except TypeError:  # a list in place of a value, or an axis left out that has no default
        raise misfit(
            where, "a cell: model, workload, grad_mode and values of axes", value
        ) from None


@lru_cache(maxsize=4096)
def _made(axes: tuple[tuple[str, Any], ...]) -> Cell:
    """Return the cell of these axes; a file names each of its cells many times."""
    return Cell(**dict(axes))


_PLAIN: Final[Mapping[Any, Read]] = {
    int: _whole,
    float: _number,
    str: _text,
    bool: _truth,
    NoneType: _nothing,
    Any: _anything,
    Cell: cell,
}


def _shown(value: object) -> str:
    """Return a value as a complaint shows it: of a container, how much it holds."""
    if isinstance(value, dict | list) and value:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return brief(value)


def _no_number(name: str) -> NoReturn:
    raise Misfit(f"it holds {name}, which is no number of JSON")
