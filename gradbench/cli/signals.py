"""What signals do to a command: they unwind it, so that nothing is left behind."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

PATIENCE_S: Final = 3.0
"""How long further signals are left unheard while the first unwinds the command."""
_ENDING: Final = ("SIGTERM", "SIGHUP")  # the latter is unknown on Windows


class Heard:
    """The signal that unwinds the command: its exit status, once there is one."""

    def __init__(self) -> None:
        self.status: int | None = None
        self._deaf_until_s = 0.0

    def interrupt(self, number: int, _frame: FrameType | None) -> None:
        """Raise `KeyboardInterrupt`, unless a signal has come just before."""
        if self._first(number):
            raise KeyboardInterrupt

    def leave(self, number: int, _frame: FrameType | None) -> None:
        """Raise `SystemExit`, unless a signal has come just before."""
        if self._first(number):
            sys.exit(self.status)

    def _first(self, number: int) -> bool:
        now_s = time.monotonic()
        if now_s < self._deaf_until_s:
            return False
        self.status, self._deaf_until_s = 128 + number, now_s + PATIENCE_S
        return True


@contextmanager
def unwinding() -> Iterator[Heard]:
    """Let Ctrl-C raise `KeyboardInterrupt`, and a request to end or a hangup `SystemExit`.

    A second signal within `PATIENCE_S` changes nothing: a folder may just be being removed. What is
    ignored, as under nohup, stays ignored. In the end signals are left unheard: nothing is running.
    """
    heard = Heard()
    handlers = {signal.SIGINT: heard.interrupt}
    handlers |= {getattr(signal, name): heard.leave for name in _ENDING if hasattr(signal, name)}
    taken = [number for number in handlers if signal.getsignal(number) is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, handlers[number])
    try:
        yield heard
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_IGN)
