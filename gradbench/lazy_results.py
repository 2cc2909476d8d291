"""Results that stand for work not yet done: generators, coroutines and other iterators."""

import inspect
import io
from collections.abc import AsyncIterator, Awaitable, Iterator

from .errors import GradbenchError


class LazyResult(GradbenchError):
    """A call that returned before its work was done: no meter around it has seen any of it."""


def check_done(result: object, *, call: str) -> None:
    """Raise `LazyResult` where what a call returned stands for work that has not run.

    ``call`` names the call, as the subject of a sentence.
    """
    kind = type(result).__name__
    if isinstance(result, Awaitable | AsyncIterator):
        remedy = "give what runs it, such as lambda: asyncio.run(main())"
        if inspect.iscoroutine(result):
            result.close()  # or Python warns that nobody awaited it
    elif isinstance(result, Iterator) and not isinstance(result, io.IOBase):
        remedy = "give what runs it, such as lambda: list(f()), or what keeps it and returns None"
    else:
        return
    raise LazyResult(f"{call} returned a {kind}, and what that stands for has not run: {remedy}")
