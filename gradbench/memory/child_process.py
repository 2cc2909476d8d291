"""Runs a function in a child of this process, which it may take with it, for a limited time."""

import faulthandler
import gc
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, NoReturn, TypeVar

from .. import devices, own_python, supervisor
from ..devices import Device
from ..process_end import how_it_ended
from ..process_tree import END_S, LINUX, Lifeline, ProcessTree, end_below
from ..users_traceback import users_traceback

T = TypeVar("T")
_STATUS: Final = Path("/proc/self/status")

LIMIT_S: Final = 300.0
"""How long a child may take unless somebody says otherwise: as a run's processes."""

FORKS: Final = LINUX
"""Whether a process that has loaded torch can be forked: elsewhere its libraries forbid it."""

SPARE_S: Final = 60
"""After the limit, a child ends itself, if its parent is no longer there to do so."""

Reports = Callable[[Callable[[int], None]], T]
"""A function that is given a way to say a number, by which one knows how far it came."""


class Died(Exception):
    """The child ended before the function did; ``reported`` is what it said last."""

    def __init__(self, how: str, reported: int = -1) -> None:
        self.reported = reported
        super().__init__(how)


class TimedOut(Died):
    """The child was killed at its time limit."""


class UsersFrames(Exception):
    """The user's part of a traceback in a child, as text: the cause of what is raised here."""


def frames_of(error: BaseException) -> str:
    """Return the user's part of a traceback, of what `Children` raised, "" where none is."""
    there = error.__cause__
    return str(there) if isinstance(there, UsersFrames) else users_traceback(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """How functions are run: in forks, or in fresh processes where a loaded one cannot be forked.

    A fresh one must be sent the function, and imports torch again. A function that cannot be sent,
    a local one say, runs in this process; so does any once this process has started an
    accelerator: a child could not use that, and on the CPU it could make no backward pass, for
    autograd's threads are not forked. Nothing limits those.
    """

    device: Device
    limit_s: float = LIMIT_S
    forks: bool = FORKS
    most_bytes: int | None = None  # of memory beyond what this process has; where Linux counts it

    def run(self, function: Reports[T]) -> T:
        """Return what a function returns; raise what it raises, `Died` or `TimedOut`."""
        with self.beside(function) as result:
            return result()

    @contextmanager
    def beside(self, function: Reports[T]) -> Iterator[Callable[[], T]]:
        """Run a function beside what runs inside; yield what waits for it, as `run` does.

        Where no child can be had, it runs when it is waited for. Left early, it is killed.
        """
        starting = self._starting(partial(_bounded, function, self.most_bytes, self.limit_s))
        if starting is None:
            yield partial(function, lambda _: None)
            return
        late = threading.Event()

        def expire() -> None:
            late.set()
            child.end()

        with starting as child:
            timer = threading.Timer(self.limit_s, expire)
            timer.start()

            def result() -> Any:
                code = child.wait()
                timer.cancel()
                timer.join()
                return self._answered(child, code, late=late.is_set())

            try:
                yield result
            finally:
                timer.cancel()
                timer.join()

    def _starting(self, bounded: Reports[T]) -> "AbstractContextManager[_Child] | None":
        """Return what starts a child that runs a function; None where there can be none."""
        if self.device.in_use or devices.in_use().in_use:
            return None
        if self.forks:
            return _forked(bounded)
        try:
            return _spawned(pickle.dumps(bounded))
        except Exception:  # noqa: BLE001 # what cannot be pickled raises anything
            return None

    def _answered(self, child: "_Child", code: int, *, late: bool) -> Any:
        reported, answer = _read(child.answers)
        if answer is None and late:
            raise TimedOut(f"killed at its time limit of {self.limit_s:g} s", reported)
        if answer is None:
            raise Died(how_it_ended(code), reported)
        kind, content = answer
        if kind == "raised":
            error, frames = content
            raise error from (UsersFrames(frames) if frames else None)
        return content


@dataclass(frozen=True, slots=True)
class _Child:
    """A child that was started: what it answers, how to wait for its exit code and to end it."""

    answers: IO[bytes]  # a file: a pipe could be held, for ever, by what the child has started
    wait: Callable[[], int]
    end: Callable[[], None]  # with all that it has started


@contextmanager
def _forked(function: Reports[Any]) -> Iterator[_Child]:
    """Fork a supervisor, and that the child: what a child that crashed has started ends, too."""
    with os.fdopen(os.memfd_create("answers"), "w+b") as answers:  # a step may remove any folder
        lifeline = Lifeline()

        def work() -> NoReturn:
            os.close(lifeline.other)
            Lifeline.let_go_of_all()
            _answer(function, answers)

        try:
            pid = _forked_by_a_thread(partial(supervisor.supervise, lifeline.other, work))
        except BaseException:
            lifeline.cut()
            raise
        finally:
            os.close(lifeline.other)
        tree = _Supervised(pid, lifeline)
        try:
            yield _Child(answers, tree.wait, tree.end)
        finally:
            tree.end()
            tree.wait()


def _forked_by_a_thread(work: Callable[[], NoReturn]) -> int:
    """Fork a process that works, by a new thread; return its number, or raise `OSError`.

    A thread that has computed with others keeps them for the next time, and in a fork it would wait
    for ever for them: they are not there. A new one has none, and finds as many as it asks for.
    """
    forked: list[int | OSError] = []

    def fork() -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: see above
                pid = os.fork()
        except OSError as error:
            forked.append(error)
            return
        if pid == 0:
            try:
                work()
            finally:
                os._exit(1)
        forked.append(pid)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    (pid,) = forked
    if isinstance(pid, OSError):
        raise pid
    return pid


class _Supervised:
    """A forked supervisor, as its owner sees it."""

    def __init__(self, pid: int, lifeline: Lifeline) -> None:
        self._pid, self._lifeline = pid, lifeline
        self._code: int | None = None

    def wait(self) -> int:
        """Return its exit code, which is the child's."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._code

    def end(self) -> None:
        """End the child with all that it has started, if it still runs."""
        self._lifeline.cut()
        if self._code is not None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)  # the child may have stopped it
        if not self._ends():
            end_below(self._pid)
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def _ends(self) -> bool:
        """Return whether it ends within `END_S`; whoever waits for it is to have its exit code."""
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            try:
                if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return True
            except ChildProcessError:  # it was waited for
                return True
            time.sleep(0.01)
        return False


@contextmanager
def _spawned(job: bytes) -> Iterator[_Child]:
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answers:
        asked.write(job)
        asked.seek(0)
        with ProcessTree(
            own_python.calling(__name__, "main()"),
            env={**os.environ, own_python.VARIABLE: own_python.loading_path()},
            stdin=asked,
            stdout=answers,
            stderr=subprocess.DEVNULL,
            own_session=False,
        ) as tree:
            yield _Child(answers, tree.wait, tree.end)


def _read(answers: IO[bytes]) -> tuple[int, tuple[str, Any] | None]:
    """Return the last number that a child that has ended said, and what came of the function."""
    reported = -1
    answers.seek(0)
    with suppress(Exception):  # a step may write anything over the file
        while True:
            kind, content = pickle.load(answers)
            if kind != "at":
                return reported, (kind, content)
            reported = content
    return reported, None


def main() -> None:
    """Do the job that comes by standard input, in a process that was started for it."""
    job = sys.stdin.buffer.read()
    with os.fdopen(os.dup(1), "wb") as stream:
        _answer(partial(_unpickled, job), stream)


def _unpickled(job: bytes, say: Callable[[int], None]) -> Any:
    return pickle.loads(job)(say)  # here, where what it raises is an answer


def _answer(function: Reports[Any], stream: IO[bytes]) -> NoReturn:
    """Run the function in this child, send what came of it, and end the process.

    Should the function have forked, and returned in a copy of this child too, that ends in silence.
    """
    own = os.getpid()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    # What the parent has is not the step's: to look through it copies its pages, and what it left
    # to the collector must not be freed here, where frees are counted.
    gc.freeze()
    faulthandler.disable()  # it may write elsewhere, and what ends this child is expected here

    def say(number: int) -> None:
        if os.getpid() != own:
            os._exit(0)
        stream.write(pickle.dumps(("at", number)))
        stream.flush()

    try:
        answer = ("returned", function(say))
    except BaseException as error:  # noqa: BLE001 # it is raised on the other side
        answer = ("raised", (_portable(error), _frames(error)))
    with suppress(BaseException):
        if os.getpid() == own:
            stream.write(pickle.dumps(answer))
            stream.flush()
    os._exit(0)


def _bounded(
    function: Reports[T],
    most_bytes: int | None,
    limit_s: float,
    say: Callable[[int], None],  # by place, for a partial
) -> T:
    """Run the function with so much memory at most, where the system heeds that: Linux does."""
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(limit_s) + SPARE_S)  # should nobody be left to end it
    if most_bytes is not None and _STATUS.exists():
        import resource  # Windows has none

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        room = _data_bytes() + most_bytes
        if hard != resource.RLIM_INFINITY:
            room = min(room, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (room, hard))
    return function(say)


def _data_bytes() -> int:
    """Return what of this process counts against the limit."""
    for line in _STATUS.read_text("utf-8").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _frames(error: BaseException) -> str:
    with suppress(Exception):  # a user's error may be anything, and there may be no memory left
        return users_traceback(error)
    return ""


def _portable(error: BaseException) -> BaseException:
    """Return an error that another process can load: itself, or one of its words."""
    try:
        return error if str(pickle.loads(pickle.dumps(error))) == str(error) else _like(error)
    except Exception:  # noqa: BLE001 # a user's error may be anything
        return _like(error)


def _like(error: BaseException) -> RuntimeError:
    return RuntimeError(f"{type(error).__name__}: {error}")
