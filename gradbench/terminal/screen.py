"""A console on which text of others can be read, and cannot act."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, Final, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ..printable import printable_lines, without_commands

MOST_DIGITS: Final = 4
"""Of a number of columns or rows: no screen has more."""


class _Environment(Mapping[str, str]):
    """The environment as it is at any time, without sizes of a screen that none has."""

    def __getitem__(self, name: str) -> str:
        value = os.environ[name]
        if name in ("COLUMNS", "LINES") and not _said_size(value):
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in os.environ if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _said_size(text: str) -> int:
    """Return the number that a variable says, 0 for what is none of a screen."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS
    return int(text) if is_number else 0


class Screen(Console):
    """A console on which nothing acts but what is ours: no control character, no CI's command.

    What is put together for it says `shown` of text of others, so that it stays on its line; this
    class is for what forgot to.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, _environ=_Environment(), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Return what is to be printed: colours and cursor movements of ours, and no others'."""
        for segment in super().render(renderable, options):
            if segment.control is None and not segment.text.isprintable():
                yield Segment(printable_lines(segment.text), segment.style)
            else:
                yield segment

    def columns(self, *, piped: int) -> int:
        """Return the columns that there are: as COLUMNS says, or the terminal's, else ``piped``.

        The environment is asked each time: a console knows it as it was when the console was made.
        """
        said = _said_size(os.environ.get("COLUMNS", ""))
        return said or (self.width if self.is_terminal else piped)

    @property
    def file(self) -> IO[str]:
        """The stream that is printed to, by way of `_Lines`."""
        return cast("IO[str]", _Lines(super().file))

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file


class _Lines:
    """A stream that takes whole lines, and writes them without commands."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text."""
        return self._stream.write(without_commands(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
