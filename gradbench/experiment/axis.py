"""What an axis is: the row that annotates its field in `Cell`, read by all who deal with axes."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, Final, get_args

from ..errors import Impossible, UnknownName
from ..plurals import counted
from ..printable import brief, one_line

Value = str | int
MOST: Final = 2**63 - 1
"""The largest whole number of a file, an option or an axis: 64 bits, as Parquet and SQLite keep."""
LONGEST_NAME: Final = 1000


def as_given(value: Value) -> Value:
    """Return the value: it is written in one way only."""
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One thing that varies; the field that it annotates adds ``name``, ``number``, ``default``."""

    plural: str  # of a matrix: its argument, and the key in a TOML file
    help: str  # of the command-line option
    values: tuple[str, ...] = ()  # all there are; () where only a catalogue with torch knows them
    label: str = "{}"  # how an id says a value
    labels: Mapping[Value, str] = field(default_factory=dict)  # of values that it says otherwise
    renamed: Mapping[Value, Value] = field(default_factory=dict)  # as older records say -> today's
    swept: tuple[str, ...] = ()  # what a matrix takes if left out, where a cell has no default
    canonical: Callable[[Value], Value] = as_given  # of several ways to write a value, the one kept
    name: str = ""
    number: bool = False  # whole numbers from 1 up; names otherwise
    default: Value | None = None  # None: each cell must say it

    @property
    def option(self) -> str:
        """The command-line option that narrows or widens a preset along this axis."""
        return f"--{self.name.replace('_', '-')}"

    def labelled(self, value: Value) -> str:
        """Return how an id says a value."""
        return self.labels.get(value) or self.label.format(value)

    def parse(self, text: str) -> Value:
        """Return a value that was given as text, on a command line."""
        return whole_number(self.name, text) if self.number else text

    def check(self, value: object) -> None:
        """Raise `UnknownName` or `Impossible` unless a cell can have this value."""
        if self.number:
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
                raise Impossible(
                    f"{self.name} must be a whole number from 1 up, not {brief(value)}"
                )
        elif self.values:
            if value not in self.values:
                known = value if isinstance(value, str) else brief(value)
                raise UnknownName(self.name, known, self.values)
        elif not isinstance(value, str) or not value.strip():
            raise Impossible(f"{self.name} must be a name, not {brief(value)}")
        elif len(value) > LONGEST_NAME:
            raise Impossible(
                f"{self.name} has {counted(len(value), 'character')}: {LONGEST_NAME} at most"
            )


def axes_of(cell: type[Any]) -> Mapping[str, Axis]:
    """Return the axes of a dataclass, by name, in the order of its fields."""
    return {one.name: _row(one) for one in fields(cell)}


def _row(one: Field[Any]) -> Axis:
    kind, row = get_args(one.type)
    assert isinstance(row, Axis)
    return replace(
        row,
        name=one.name,
        number=kind is int,
        default=None if one.default is MISSING else one.default,
    )


def whole_number(name: str, text: str) -> int:
    """Return a whole number given as text; raise `Impossible` otherwise."""
    option = f"--{name.replace('_', '-')}"
    if len(text) > len(str(MOST)) and text.isdecimal():  # Python refuses thousands of digits
        raise Impossible(f"{option} has {len(text):,} digits: the largest is {MOST}")
    if not text.isdecimal() or int(text) < 1:
        raise Impossible(f"{option} must be a whole number from 1 up, not {one_line(repr(text))}")
    return int(text)
