"""How a process ended, in words: its signal or exit status, and the line of output that says why.

Everything that starts a process says it so: the fork server, callgrind, the sides of a comparison.
"""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TAIL_BYTES: Final = 65536
"""How much of a log is read, from its end: a model may print for hours before it crashes."""
MEMORY_RAN_OUT: Final = "killed by SIGKILL: memory had run out"
"""How a process ended while the kernel's count of those that it ended for that rose."""
_OWN_FAULTS: Final = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")
"""Signals that a process gets for what it does wrong itself."""
_KILLED: Final = re.compile(r"\bkilled by (SIG\w+|signal \d+)")
_NOT_WORDS: Final = ("USDT:", "==")  # what tracing and valgrind print
_FATAL: Final = "Fatal Python error:"  # faulthandler's first line; a traceback follows it
_WHAT: Final = "what():"  # of the C++ exception that nobody caught


def how_it_ended(code: int, output: str = "") -> str:
    """Return how a process ended that had more to do: ``killed by SIGSEGV (...)``.

    ``code`` is below 0 where a signal killed it, as `subprocess` has it; ``output`` is what it
    printed.
    """
    end = f"killed by {signal_name(-code)}" if code < 0 else f"ended early with exit status {code}"
    words = last_words(output)
    return f"{end} ({words})" if words else end


def ended_by_others(code: int) -> bool:
    """Return whether a signal ended a process that others send: the kernel, a limit, a user."""
    return code < 0 and signal_name(-code) not in _OWN_FAULTS


def out_of_memory_kills(statistics: Path = Path("/proc/vmstat")) -> int | None:
    """Return how many processes the kernel has ended for want of memory since the host started.

    None where that is not known: Linux counts them, from 4.13 on, of all containers together.
    """
    try:
        lines = dict(line.split(maxsplit=1) for line in statistics.read_text().splitlines())
        return int(lines["oom_kill"])
    except (OSError, KeyError, ValueError):
        return None


def ran_out_of_memory(code: int, kills_before: int | None) -> bool:
    """Return whether the kernel has ended a process for want of memory, as far as it counts that.

    ``kills_before`` is what `out_of_memory_kills` was before.
    """
    killed = code < 0 and signal_name(-code) == "SIGKILL"
    now = out_of_memory_kills() if killed else None
    return None not in (kills_before, now) and kills_before != now


def says_memory_ran_out(words: str) -> bool:
    """Return whether words, as a record keeps them, are those of `MEMORY_RAN_OUT`."""
    return MEMORY_RAN_OUT in words.partition(" (")[0]


def says_others_ended(words: str) -> bool:
    """Return whether words of `how_it_ended`, as a record keeps them, name a signal of others."""
    killed = _KILLED.search(words.partition(" (")[0])  # behind that stands what it printed
    return killed is not None and killed[1] not in _OWN_FAULTS


def signal_name(number: int) -> str:
    """Return ``SIGKILL`` of 9, and of a signal that has no name its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def tail(log: int, *, since: int = 0) -> str:
    """Return the end of what was written to a file's descriptor, from a position on."""
    size = os.fstat(log).st_size
    start = max(since, size - TAIL_BYTES)
    end = os.pread(log, max(0, size - start), start)
    return end.replace(b"\0", b"").decode(errors="replace")  # a hole: see `job_process.keep_small`


def last_words(output: str) -> str:
    """Return the line that says best why a process ended, or ``""``.

    That is what an uncaught C++ exception says, else the error that stopped the interpreter, else
    the last line: a Python traceback ends with its error, and warnings come before.
    """
    lines = list(_lines(output))
    for start in (_WHAT, _FATAL):
        for line in lines:
            if line.startswith(start):
                return line.removeprefix(_WHAT).strip()
    return lines[-1] if lines else ""


def _lines(output: str) -> Iterator[str]:
    for line in output.splitlines():
        if line.strip() and not line.startswith(_NOT_WORDS):
            yield line.strip()
