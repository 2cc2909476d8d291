"""Runs a function in a child of this process, which it may take with it."""

import faulthandler
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import torch

from ..devices import Device
from ..process_end import how_it_ended

T = TypeVar("T")
_TASKS: Final = Path("/proc/self/task")


class Died(Exception):
    """The child ended before the function did; ``reported`` is what it said last."""

    def __init__(self, how: str, reported: int) -> None:
        self.reported = reported
        super().__init__(how)


def apart(function: Callable[[Callable[[int], None]], T], device: Device) -> T:
    """Return what a function returns that runs in a child; raise what it raises, or `Died`.

    The function is given a way to say a number, by which one knows how far it came. Where this
    process has started its accelerator, a child could not use that: then it is run here.
    """
    if device.in_use:
        return function(lambda _: None)
    reader, writer = os.pipe()
    alone = len(list(_TASKS.iterdir())) == 1
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "wb") as stream:
            _answer(function, stream, alone=alone)
    os.close(writer)
    reported, result = -1, None
    # The stream ends when the child does.
    with os.fdopen(reader, "rb") as stream, suppress(EOFError, pickle.UnpicklingError):
        while result is None:
            kind, content = pickle.load(stream)
            reported, result = (content, None) if kind == "at" else (reported, (kind, content))
    _, status = os.waitpid(child, 0)
    if result is None:
        raise Died(how_it_ended(os.waitstatus_to_exitcode(status)), reported)
    kind, content = result
    if kind == "raised":
        raise content
    returned: T = content
    return returned


def _answer(
    function: Callable[[Callable[[int], None]], Any], stream: IO[bytes], *, alone: bool
) -> None:
    """Run the function in this child, send what came of it, and end the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    faulthandler.disable()  # it may write elsewhere, and what ends this child is expected here
    if not alone:
        torch.set_num_threads(1)  # the other threads of a pool are not here

    def say(number: int) -> None:
        stream.write(pickle.dumps(("at", number)))
        stream.flush()

    try:
        answer = ("returned", function(say))
    except BaseException as error:  # noqa: BLE001 # it is raised on the other side
        answer = ("raised", _portable(error))
    with suppress(BaseException):
        stream.write(pickle.dumps(answer))
        stream.flush()
    os._exit(0)


def _portable(error: BaseException) -> BaseException:
    """Return an error that another process can load: itself, or one of its words."""
    try:
        return error if str(pickle.loads(pickle.dumps(error))) == str(error) else _like(error)
    except Exception:  # noqa: BLE001 # a user's error may be anything
        return _like(error)


def _like(error: BaseException) -> RuntimeError:
    return RuntimeError(f"{type(error).__name__}: {error}")
