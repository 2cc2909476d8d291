"""A time that a comparison may take: nothing is begun that would not end within it."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LEAST_S: Final = {"start to count": 30.0, "Instructions": 40.0}
"""What the first piece of a kind may take, where nothing is known yet: a start under valgrind."""


class Budget:
    """Seconds from now on, and the longest that each kind of work has taken so far."""

    def __init__(self, seconds: float = math.inf) -> None:
        self._end = time.monotonic() + seconds
        self._longest_s: dict[str, float] = {}
        self.ended = False
        """Whether something was not begun for want of time."""

    @property
    def is_over(self) -> bool:
        """Whether all of the time has passed."""
        over = time.monotonic() > self._end
        self.ended = self.ended or over
        return over

    @property
    def left_s(self) -> float:
        """What is left of it."""
        return max(0.0, self._end - time.monotonic())

    def allows(self, kind: str) -> bool:
        """Return whether another piece of work of a kind would end in time, as far as is known."""
        takes_s = self._longest_s.get(kind, LEAST_S.get(kind, 0.0))
        fits = time.monotonic() + takes_s <= self._end
        self.ended = self.ended or not fits
        return fits

    @contextmanager
    def taking(self, kind: str) -> Iterator[None]:
        """Note how long a piece of work of a kind takes."""
        start = time.monotonic()
        try:
            yield
        finally:  # what failed took time, too
            self.took(kind, time.monotonic() - start)

    def took(self, kind: str, seconds: float) -> None:
        """Note how long a piece of work of a kind took."""
        self._longest_s[kind] = max(self._longest_s.get(kind, 0.0), seconds)
