"""Standard output and error as commands use them: they outlive their reader, and a full disk.

What can be written no more is dropped and remembered. A command that measures goes on, and one that
judges ends with a status that says so, in place of a verdict that nobody has read.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, TextIO

from ..exit_status import ExitStatus
from ..printable import ENCODING_ERRORS

STANDARD: Final = range(3)


class Stream(io.TextIOWrapper):
    """One stream; ``lost`` is what went wrong when it could be written to no more."""

    lost: OSError | None = None

    @classmethod
    def over(cls, stream: TextIO) -> "Stream":
        """Return a stream onto the same file, on which no character is impossible."""
        stream.flush()
        return cls(
            open(stream.fileno(), "wb", closefd=False),  # a descriptor, not a path
            encoding=stream.encoding,
            errors=ENCODING_ERRORS,
            line_buffering=stream.isatty() or stream is sys.stderr,
        )

    def write(self, text: str) -> int:
        """Write, or drop what cannot be written."""
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or drop what cannot be written."""
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Remember why, and let whatever is still to come go nowhere."""
        self.lost = self.lost or error
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


@contextmanager
def lasting() -> Iterator[None]:
    """Put streams that last in the place of the standard ones, unless others have put their own."""
    _fill_closed_descriptors()
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout = Stream.over(sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = Stream.over(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Stream):
                stream.flush()
        if not lost():
            sys.stdout, sys.stderr = before


def lost() -> OSError | None:
    """Return why standard output could not be written, or None."""
    if not isinstance(sys.stdout, Stream):
        return None
    sys.stdout.flush()
    return sys.stdout.lost


def status_of(error: OSError) -> ExitStatus:
    """Return the status of a command whose output was lost; say why unless its reader left."""
    if isinstance(error, BrokenPipeError):
        return ExitStatus.NO_READER
    print(f"gradbench: cannot print: {error.strerror}", file=sys.stderr, flush=True)
    return ExitStatus.USAGE


def _fill_closed_descriptors() -> None:
    """Open what the shell has closed, or the next file to be opened would be standard output."""
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
