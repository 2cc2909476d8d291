"""Exit statuses: what a number means is the same for every command."""

import signal
from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class ExitStatus(IntEnum):
    """How a command ended."""

    OK = 0
    REGRESSION = 1  # a figure became worse
    CHECK_FAILED = 1  # the same number, of commands that check something else than figures
    USAGE = 2  # what was asked cannot be: one line says why
    INCONCLUSIVE = 3
    NO_BASELINE = 4
    NOTHING_MEASURED = 5
    SELF_TEST_FAILED = 6  # the self-test failed on this machine, so nothing was judged
    BROKEN = 70  # a fault of gradbench, not an answer; EX_SOFTWARE of sysexits.h
    HUNG_UP = 128 + 1  # SIGHUP, which Windows has not: the terminal is gone
    INTERRUPTED = 128 + signal.SIGINT  # as shells report a signal
    NO_READER = 128 + 13  # SIGPIPE, which Windows has not: of what it prints, ``| head -1``
    TERMINATED = 128 + signal.SIGTERM

    @property
    def words(self) -> str:
        """What it says, in words."""
        return _WORDS[self]


GATE: Final = (
    ExitStatus.OK,
    ExitStatus.REGRESSION,
    ExitStatus.USAGE,
    ExitStatus.INCONCLUSIVE,
    ExitStatus.NO_BASELINE,
    ExitStatus.NOTHING_MEASURED,
    ExitStatus.BROKEN,
)
"""What ``gate``, ``compare`` and ``ci`` may end with, signals apart."""


_WORDS: Final[Mapping[ExitStatus, str]] = {
    ExitStatus.OK: "no regression",
    ExitStatus.REGRESSION: "a regression",
    ExitStatus.USAGE: "a mistake in what was asked",
    ExitStatus.INCONCLUSIVE: "something is inconclusive",
    ExitStatus.NO_BASELINE: "no comparable baseline",
    ExitStatus.NOTHING_MEASURED: "nothing was measured",
    ExitStatus.SELF_TEST_FAILED: "this machine failed the self-test",
    ExitStatus.BROKEN: "broke: a fault of gradbench, and no answer",
    ExitStatus.HUNG_UP: "was hung up on",
    ExitStatus.INTERRUPTED: "was interrupted",
    ExitStatus.NO_READER: "nobody read what it printed",
    ExitStatus.TERMINATED: "was terminated",
}
