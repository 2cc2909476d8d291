"""A job in a forked process, as its parent sees it: what it sends, and how and when it ends.

The parent's clock alone keeps the limit, and the kernel alone says that the process has ended. What
the process does with its descriptors, signals, sessions and children delays neither, and nothing
that it has started outlives it.
"""

import os
import pickle
import secrets
import struct
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Final, Literal, NoReturn

from .. import supervisor
from ..errors import in_one_line
from ..process_end import (
    MEMORY_RAN_OUT,
    how_it_ended,
    out_of_memory_kills,
    ran_out_of_memory,
    tail,
)

SIGKILL: Final = 9  # which Python's `signal` does not know on Windows
CLOSED_S: Final = 5.0
"""How long a process may live on after it closed the pipe that its messages come through."""
MOST_LOG_BYTES: Final = 2**28
"""Of the disk that what a job prints may take: one in a loop would fill it."""
LOG_LOOK_S: Final = 1.0
"""Between two looks at that."""
NO_PIPE: Final = 199
"""The exit status of a process that cannot send any more."""
CHUNK_BYTES: Final = 2**16
MOST_BYTES: Final = 2**31
"""Of one message: more than that is none."""

Cause = Literal["crashed", "timed_out", "out_of_memory"]
Kind = Literal["item", "raised", "ended", "done"]
Message = tuple[Kind, bytes]
"""What kind it is, and its content pickled; all but items are the last."""

_KINDS: Final[tuple[Kind, ...]] = ("item", "raised", "ended", "done")
_HEAD: Final = struct.Struct("!BQ")
_MARK_BYTES: Final = 8


class WorkerDied(Exception):
    """A job's process ended without finishing, or must end; the message says how."""

    def __init__(self, cause: Cause, why: str) -> None:
        self.cause: Cause = cause
        super().__init__(why)


class JobError(Exception):
    """A job raised, which it should not: the message is the traceback from the other process."""

    @property
    def line(self) -> str:
        """The error in one line, with the place that raised it."""
        lines = [line.strip() for line in str(self).splitlines() if line.strip()]
        places = [line for line in lines if line.startswith("File ")]
        words = lines[-1] if lines else "it gave no words"
        return f"{words} ({places[-1]})" if places else words


class Garbled(Exception):
    """What came through a job's pipe is no message of ours."""


class Frames:
    """Messages as bytes in a pipe: each begins with a mark that only this job's have."""

    def __init__(self) -> None:
        self._mark = secrets.token_bytes(_MARK_BYTES)
        self._rest = bytearray()

    def write(self, descriptor: int, kind: Kind, content: bytes) -> None:
        """Write one message."""
        left = memoryview(self._mark + _HEAD.pack(_KINDS.index(kind), len(content)) + content)
        while left:
            left = left[os.write(descriptor, left) :]

    def split(self, more: bytes) -> Iterator[Message]:
        """Yield the messages that are complete with these bytes; raise `Garbled`."""
        self._rest += more
        start = _MARK_BYTES + _HEAD.size
        while self._rest:
            if not self._mark.startswith(self._rest[:_MARK_BYTES]):
                raise Garbled
            if len(self._rest) < start:
                return
            number, length = _HEAD.unpack_from(self._rest, _MARK_BYTES)
            if number >= len(_KINDS) or length > MOST_BYTES:
                raise Garbled
            if len(self._rest) < start + length:
                return
            content = bytes(self._rest[start : start + length])
            del self._rest[: start + length]
            yield _KINDS[number], content


class JobProcess:
    """A fork of this process that does one job; `end` it in any case."""

    def __init__(self, job: bytes, *, log: int, closing: Sequence[int] = ()) -> None:
        """Fork; what the job prints goes to ``log``, and it does without ``closing``.

        Raise `OSError` where there can be no further process.
        """
        self._log, self._frames = log, Frames()
        self._status: int | None = None
        self._reader, writer = os.pipe()
        self._kills_before = out_of_memory_kills()
        parent = os.getpid()
        try:
            self._pid = os.fork()
        except OSError:
            os.close(self._reader)
            os.close(writer)
            raise
        if self._pid == 0:
            supervisor.end_with_parent(parent)
            _work(job, self._frames, writer, log, closing=(*closing, self._reader))
        os.close(writer)
        os.set_blocking(self._reader, False)
        self._notice = supervisor.end_notice(self._pid)
        self._open = True

    def messages(self, *, limit_s: float, listener: Connection) -> Iterator[Message]:
        """Yield what it sends; the last message is how it ended.

        Return without one when the listener, who says nothing meanwhile, closes.
        """
        deadline = time.monotonic() + limit_s
        late: tuple[Cause, str] = ("timed_out", f"killed at its time limit of {limit_s:g} s")
        while True:
            if listener in wait(self._watched(listener), timeout=self._wait_s(deadline)):
                return
            keep_small(self._log)
            ended, was_open = self._has_ended(), self._open
            try:
                for message in self._received():
                    yield message
                    if message[0] != "item":
                        return
            except Garbled:
                why = "killed, for it wrote over the pipe that its figures come through"
                yield _ended("crashed", why)
                return
            if ended == NO_PIPE:
                yield _ended(
                    "crashed", "ended, for it had closed the pipe that its figures come through"
                )
                return
            if ended is not None:
                yield _ended(*cause_of_death(ended, tail(self._log), self._kills_before))
                return
            if was_open and not self._open and time.monotonic() + CLOSED_S < deadline:
                deadline = time.monotonic() + CLOSED_S
                late = ("crashed", "killed, for it closed the pipe that its figures come through")
            if time.monotonic() >= deadline:
                yield _ended(*late)
                return

    def end(self) -> bool:
        """Kill it with all that it has started; return whether nothing is left of them."""
        if self._status is None:
            os.kill(self._pid, SIGKILL)  # nobody has reaped it, so the number is still its own
            if self._notice is not None:
                wait([self._notice], timeout=supervisor.END_S)
        ended = supervisor.end_descendants()
        for descriptor in (self._reader, self._notice):
            if descriptor is not None:
                os.close(descriptor)
        return ended

    def _watched(self, listener: Connection) -> list[int | Connection]:
        watched: list[int | Connection] = [listener]
        if self._open:
            watched.append(self._reader)
        if self._notice is not None:
            watched.append(self._notice)
        return watched

    def _wait_s(self, deadline: float) -> float:
        left_s = min(max(0.0, deadline - time.monotonic()), LOG_LOOK_S)
        return left_s if self._notice is not None else min(left_s, supervisor.LOOK_S)

    def _has_ended(self) -> int | None:
        """Return its exit status, below 0 of a signal, once it has ended."""
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def _received(self) -> Iterator[Message]:
        """Yield the messages that lie in the pipe; never wait for one."""
        while self._open:
            try:
                more = os.read(self._reader, CHUNK_BYTES)
            except BlockingIOError:
                return
            self._open = bool(more)
            yield from self._frames.split(more)


def keep_small(log: int) -> None:
    """Free the disk of a log that is too large; what is written then stands behind a hole."""
    if os.fstat(log).st_blocks * 512 > MOST_LOG_BYTES:
        os.ftruncate(log, 0)


def answers(job: bytes) -> Iterator[Message]:
    """Do a job in this process; yield its items as messages, and how it ended as the last one.

    A model may fork, and return in its copy of this process too: that one ends before it answers.
    """
    own = os.getpid()
    for message in _done(job):
        if os.getpid() != own:
            os._exit(0)
        yield message


def _done(job: bytes) -> Iterator[Message]:
    try:
        function, arguments = pickle.loads(job)
        for item in function(*arguments):
            yield "item", pickle.dumps(item)
    except WorkerDied as death:  # it has nothing left to work with
        yield _ended(death.cause, str(death))
    except GeneratorExit:  # nobody listens any more
        raise
    except BaseException:  # noqa: BLE001 # whatever it is, the other process must see it
        yield "raised", pickle.dumps(traceback.format_exc())
    else:
        yield "done", pickle.dumps(None)


def content(message: Message) -> object:
    """Return the item of a message; raise the `JobError` or `WorkerDied` that it reports."""
    kind, pickled = message
    try:
        value = pickle.loads(pickled)
    except Exception as error:  # the other process may send anything
        why = f"it sent what cannot be read: {in_one_line(error)}"
        raise WorkerDied("crashed", why) from error
    if kind == "raised":
        raise JobError(value)
    if kind == "ended":
        raise WorkerDied(*value)
    return value


def cause_of_death(code: int, output: str, kills_before: int | None = None) -> tuple[Cause, str]:
    """Return how a process ended that sent no last message, as a cause and in words.

    ``kills_before`` is what the kernel had counted, before, of those that it ended for memory.
    """
    if ran_out_of_memory(code, kills_before):
        return "out_of_memory", MEMORY_RAN_OUT
    if code == -SIGKILL:
        return "out_of_memory", "killed by SIGKILL, as the kernel does when memory runs out"
    return "crashed", how_it_ended(code, output)


def _ended(cause: Cause, why: str) -> Message:
    return "ended", pickle.dumps((cause, why))


def _work(job: bytes, frames: Frames, writer: int, log: int, *, closing: Sequence[int]) -> NoReturn:
    """Do the job in this new process, then end it without what it has registered for its exit."""
    status = 1
    try:
        os.setsid()
        for descriptor in closing:
            os.close(descriptor)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for kind, pickled in answers(job):
            status = NO_PIPE
            frames.write(writer, kind, pickled)
            status = 1
        status = 0
    except BaseException:  # noqa: BLE001 # the log is to have it, whatever it is
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)
        os._exit(status)


def _flush(stream: object) -> None:
    try:
        stream.flush()  # type: ignore[attr-defined] # a model may have put anything there
    except BaseException:  # noqa: BLE001 # as above
        return
