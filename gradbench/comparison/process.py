"""One live process that steps cells of a version, or of both, and what it answers."""

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self

from ..errors import Impossible
from ..process_end import how_it_ended, last_words, tail
from ..process_tree import ProcessTree
from ..runner.fork_server import settings
from . import worker
from .checkouts import Version

BOTH: Final = "both sides in one process"
ENDING_S: Final = 2.0
"""How long a process that has closed its socket may take to end, to be known by how it did."""


class Failed(Exception):
    """A process that cannot go on with a cell: whose, and its own words."""

    def __init__(self, side_name: str, why: str) -> None:
        self.side, self.why = side_name, why
        super().__init__(why)


class Lost(Failed):
    """A process that is gone or does not answer."""


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
        self.versions = versions
        self.name = versions[0].name if len(versions) == 1 else BOTH
        python = versions[-1].python
        asked = {
            "sides": [
                {"paths": list(map(str, one.paths)), "tree": str(one.tree)} for one in versions
            ],
            "order": list(order),
            "training": training,
        }
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
        self._line = worker.JsonLineSocket(parent_end.detach(), timeout_s=limit_s)

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and return the answer; raise `Failed` or `Lost`."""
        self._asked_at = os.fstat(self._log.fileno()).st_size
        try:
            self._line.send(**message)
        except OSError as error:
            raise self._lost(self._end_in_words()) from error
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """Return the next answer; raise `Failed` or `Lost`."""
        try:
            answer = self._line.receive()
        except TimeoutError as error:
            raise self._lost("gave no answer within its time limit") from error
        except (OSError, ValueError, RecursionError) as error:
            raise self._lost(self._end_in_words()) from error
        if answer is None:
            raise self._lost(self._end_in_words())
        if "ended" in answer:  # the fork that took the cell
            raise Failed(self.name, how_it_ended(answer["ended"], self._output()))
        if "failed" in answer:
            raise Failed(self.name, answer["failed"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tree.end()
        self._line.close()
        self._log.close()

    def _lost(self, why: str) -> Lost:
        return Lost(self.name, why)

    def _end_in_words(self) -> str:
        """Return how the process ended whose socket is closed; it may live on without that."""
        try:
            code = self._tree.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            return last_words(self._output()) or "it closed the socket that it answers by"
        return how_it_ended(code, self._output())

    def _output(self) -> str:
        return tail(self._log.fileno(), since=self._asked_at)
