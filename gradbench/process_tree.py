"""A command and everything it starts, as one: it is ended whole, and it ends with its owner.

On Linux it runs under `supervisor`, which outlives neither the command nor the process that started
it, SIGKILL included. Elsewhere it runs as it is, and what it has started is looked for when it is
ended.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ClassVar, Final, Self

LINUX: Final = sys.platform.startswith("linux")
END_S: Final = 10.0
"""How long an end is waited for before it is left to the kernel."""

_SUPERVISOR: Final = Path(__file__).with_name("supervisor.py").resolve()


class Lifeline:
    """A pipe of which this process holds one end: what waits on the other ends when that is cut.

    A fork of this process would hold it too, and keep alive what it has nothing to do with.
    """

    _held: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        self.other, own = os.pipe()
        self._own: int | None = own
        self._held.add(own)

    def cut(self) -> None:
        """Close this process's end."""
        if self._own is not None:
            own, self._own = self._own, None
            self._held.discard(own)
            os.close(own)

    @classmethod
    def let_go_of_all(cls) -> None:
        """Close, in a fork of their holder, its copies."""
        while cls._held:
            os.close(cls._held.pop())


class ProcessTree:
    """A running command; use it as a context manager, at whose end nothing of it runs."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        pass_fds: Sequence[int] = (),
        own_session: bool = True,  # Ctrl-C is for the owner, who ends this
    ) -> None:
        """Start it; raise `OSError` where it cannot be run."""
        self._lifeline: Lifeline | None = None  # what the supervisor waits on
        if LINUX:
            if shutil.which(command[0]) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
            self._lifeline = Lifeline()
            python = [sys.executable, "-I", "-S"]
            command = [*python, str(_SUPERVISOR), str(self._lifeline.other), *command]
            pass_fds = [*pass_fds, self._lifeline.other]
        try:
            self._process = subprocess.Popen(
                command,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                start_new_session=own_session,
            )
        except BaseException:
            if self._lifeline is not None:
                self._lifeline.cut()
            raise
        finally:
            if self._lifeline is not None:
                os.close(self._lifeline.other)

    @property
    def stdin(self) -> IO[bytes] | None:
        """The pipe that was asked for."""
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        """The pipe that was asked for."""
        return self._process.stdout

    def poll(self) -> int | None:
        """Return the exit status, below 0 of a signal, or None while it runs."""
        return self._process.poll()

    def wait(self, limit_s: float | None = None) -> int:
        """Return the exit status when it has ended; raise `subprocess.TimeoutExpired`."""
        return self._process.wait(timeout=limit_s)

    def terminate(self) -> None:
        """Ask the command to end."""
        self._process.terminate()

    def end(self) -> None:
        """End it, whatever it does, with everything below it."""
        if self._lifeline is not None:
            self._lifeline.cut()
        if self._process.poll() is None:
            if self._lifeline is not None:
                self._process.send_signal(signal.SIGCONT)  # what it ran may have stopped it
            else:
                end_below(self._process.pid)
                self._process.kill()
        try:
            self._process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what nobody has read
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def end_below(pid: int) -> None:
    """Kill what a process has started, as far as it can be found without Linux's help."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
