"""The simulated CUDA runtime, seen from Python: is it here, what has it launched."""

import ctypes
import functools
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Final, NoReturn, ParamSpec

import pytest
import torch

P = ParamSpec("P")

LIBRARY: Final = "libsimulated_cuda.so"
EXPECTED: Final = "GRADBENCH_SIMULATED_CUDA"  # where it is set, a missing stand-in is a failure


def present() -> bool:
    """Say whether torch runs on the stand-in, without starting it."""
    return torch.version.cuda is not None and _library() is not None


def expected() -> bool:
    """Say whether tests that need the stand-in are to run."""
    return bool(os.environ.get(EXPECTED)) or present()


def launches(part: str = "") -> int:
    """Return how many kernels this process has launched whose name contains ``part``.

    Copies and fills are no kernels: they count as ``[memcpy]`` and ``[memset]``.
    """
    library = _library()
    assert library is not None, "torch does not run on the simulated CUDA runtime"
    library.simulated_cuda_launches.restype = ctypes.c_uint64
    return int(library.simulated_cuda_launches(part.encode()))


def in_child(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a forked child, so that the process of the tests never starts CUDA.

    It could not fork a process that measures afterwards, as gradbench does.
    """

    @functools.wraps(test)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        receiving, sending = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receiving)
            _report(sending, functools.partial(test, *args, **kwargs))
        os.close(sending)
        with os.fdopen(receiving, "rb") as pipe:
            answer = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not answer:
            pytest.fail(f"the child ended with {status} and without an answer", pytrace=False)
        if failure := pickle.loads(answer):
            pytest.fail(failure, pytrace=False)

    return wrapper


def _report(sending: int, test: Callable[[], None]) -> NoReturn:
    """Run the test and send its traceback, or None; then end the process at once."""
    failure = None
    try:
        test()
    except BaseException:  # noqa: BLE001 # whatever it was, the parent reports it
        failure = traceback.format_exc()
    with os.fdopen(sending, "wb") as pipe:
        pipe.write(pickle.dumps(failure))
    os._exit(0)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return the library that torch has loaded, by its name."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None
