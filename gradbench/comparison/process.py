"""One live process that steps cells of a version, or of both, and what it answers."""

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Self

from ..errors import Impossible
from ..process_end import (
    MEMORY_RAN_OUT,
    ended_by_others,
    how_it_ended,
    last_words,
    out_of_memory_kills,
    ran_out_of_memory,
    tail,
)
from ..process_tree import ProcessTree
from ..runner.fork_server import settings
from . import worker
from .checkouts import Version

BOTH: Final = "both sides in one process"
ENDING_S: Final = 2.0
"""How long a process that has closed its socket may take to end, to be known by how it did."""
LOAD_S: Final = 120.0
"""How long it may take to start, and to import a model, at least; torch alone takes seconds."""


class Failed(Exception):
    """A process that cannot go on with a cell: whose, and its own words.

    ``killed`` is whether a signal ended it that others send, ``out_of_memory`` whether that was the
    kernel's, for want of memory; ``missing`` is the file that was not there, where that is why.
    """

    def __init__(
        self,
        side_name: str,
        why: str,
        *,
        killed: bool = False,
        out_of_memory: bool = False,
        missing: str = "",
    ) -> None:
        self.side, self.why, self.missing = side_name, why, missing
        self.killed, self.out_of_memory = killed, out_of_memory
        super().__init__(why)

    @property
    def by_others(self) -> bool:
        """Whether others may have ended it, so that nothing is known of what it would have done."""
        return self.killed and not self.out_of_memory

    @property
    def doubt(self) -> str:
        """Say what else may have brought it about, and what would show it; or ``""``."""
        if not self.killed:
            return ""
        advice = "free memory or take a smaller batch, and try again"
        if self.out_of_memory:
            return f"was {self.why}, twice: {advice}"
        by_kernel = self.why.startswith("killed by SIGKILL")
        return f"was {self.why}, twice: " + (
            f"memory ran out, or others ended it; {advice}"
            if by_kernel
            else "others end a process so; try again"
        )


class Lost(Failed):
    """A process that is gone or does not answer; ``late`` is whether its time was over."""

    def __init__(self, side_name: str, why: str, *, late: bool = False, **more: Any) -> None:
        super().__init__(side_name, why, **more)
        self.late = late

    @property
    def doubt(self) -> str:
        """Say the same of a process that may have had too little time."""
        more = "a longer --limit shows whether it can step it"
        return f"{self.why}: {more}" if self.late else super().doubt


def why_not_imported(path: str, failure: Failed) -> str:
    """Return why a user's factory could not be imported, in words that name it."""
    return failure.why if path in failure.why else f"{path} cannot be imported: {failure.why}"


class LiveProcess:
    """One live process of one version or of two; use it as a context manager.

    ``order`` is the one in which it imports two, ``under`` puts what runs it before its command.
    """

    def __init__(
        self,
        versions: Sequence[Version],
        *,
        order: Sequence[int] = (0,),
        training: bool,
        limit_s: float,
        randomized_layout: Mapping[str, str],
        under: Callable[[Sequence[str]], Sequence[str]] = list,
    ) -> None:
        self.versions, self._limit_s = versions, limit_s
        self.name = versions[0].name if len(versions) == 1 else BOTH
        python = versions[-1].python
        asked = {
            "sides": [
                {
                    "paths": list(map(str, one.paths)),
                    "tree": str(one.tree),
                    "home": str(one.home or ""),
                    "environment": list(map(str, one.environment)),
                }
                for one in versions
            ],
            "order": list(order),
            "training": training,
        }
        self._kills_before = out_of_memory_kills()
        parent_end, child_end = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the process
        self._asked_at = 0  # where in the log the output begins that belongs to the last question
        try:
            self._tree = ProcessTree(
                under([python, "-P", worker.__file__, str(child_end.fileno()), json.dumps(asked)]),
                env={**os.environ, **settings("time"), **randomized_layout},
                pass_fds=[child_end.fileno()],
                stdout=self._log,
                stderr=self._log,
            )
        except OSError as error:
            parent_end.close()
            self._log.close()
            raise Impossible(f"cannot run {python!r}: {error.strerror}") from error
        finally:
            child_end.close()
        self._line = worker.JsonLineSocket(parent_end.detach())
        self._allow(max(limit_s, LOAD_S))

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and return the answer; raise `Failed` or `Lost`."""
        self.put(**message)
        return self.hear()

    def imported(self, path: str) -> list[str]:
        """Have it import a user's factory; return the files of that, raise `Failed` or `Lost`."""
        self.put(limit_s=max(self._limit_s, LOAD_S), **{"import": path})
        files: list[str] = self.hear()["files"]
        return files

    def put(self, *, limit_s: float | None = None, **message: Any) -> None:
        """Send a message, to which there is to be an answer within the time limit from now on."""
        self._asked_at = os.fstat(self._log.fileno()).st_size
        self._kills_before = out_of_memory_kills()
        self._allow(self._limit_s if limit_s is None else limit_s)
        with suppress(OSError):  # it is gone, which is heard instead of an answer
            self._line.send(**message)

    def hear(self) -> dict[str, Any]:
        """Return the answer to what was sent; raise `Failed` or `Lost`."""
        try:
            answer = self._line.receive()
        except TimeoutError as error:
            why = f"gave no answer within its time limit of {self._allowed_s:g} s"
            raise Lost(self.name, why, late=True) from error
        except (ValueError, RecursionError) as error:
            raise Lost(self.name, "wrote over the socket that it answers by") from error
        except OSError as error:
            raise self._lost() from error
        if answer is None:
            raise self._lost()
        if "ended" in answer:  # the fork that took the cell
            raise Failed(self.name, **self._end(answer["ended"]))
        if "failed" in answer:
            raise Failed(self.name, answer["failed"], missing=answer.get("missing", ""))
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tree.end()
        self._line.close()
        self._log.close()

    def _allow(self, seconds: float) -> None:
        """Give it so long from now on to answer."""
        self._allowed_s, self._line.deadline = seconds, time.monotonic() + seconds

    def _lost(self) -> Lost:
        """Return how the process ended whose socket is closed; it may live on without that."""
        try:
            code = self._tree.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            why = last_words(self._output()) or "it closed the socket that it answers by"
            return Lost(self.name, why)
        return Lost(self.name, **self._end(code))

    def _end(self, code: int) -> dict[str, Any]:
        """Return how it ended with that exit status, as `Failed` takes it."""
        out_of_memory = ran_out_of_memory(code, self._kills_before)
        words = MEMORY_RAN_OUT if out_of_memory else how_it_ended(code, self._output())
        return {"why": words, "killed": ended_by_others(code), "out_of_memory": out_of_memory}

    def _output(self) -> str:
        return tail(self._log.fileno(), since=self._asked_at)
