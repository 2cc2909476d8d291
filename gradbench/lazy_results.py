"""Results that stand for work not yet done: generators, coroutines, other iterators, futures."""

import inspect
import io
from collections.abc import AsyncIterator, Awaitable, Iterator

from .errors import GradbenchError

GO_THROUGH = "give what runs it, such as lambda: list(f()), or what keeps it and returns None"
AWAIT = "give what runs it, such as lambda: asyncio.run(main())"
WAIT = "give what waits for it, such as lambda: f().result()"


class LazyResult(GradbenchError):
    """A call that returned before its work was done: no meter around it has seen any of it."""


def check_done(result: object, *, call: str) -> None:
    """Raise `LazyResult` where what a call returned stands for work that has not run.

    ``call`` names the call, as the subject of a sentence.
    """
    kind = type(result).__name__
    if _is_future(result):
        raise LazyResult(f"{call} returned a {kind}, and its work has not ended: {WAIT}")
    remedy = _remedy(result)
    if not remedy:
        return
    if inspect.iscoroutine(result):
        result.close()  # or Python warns that nobody awaited it
    raise LazyResult(f"{call} returned a {kind}, and what that stands for has not run: {remedy}")


def not_done(result: object) -> str:
    """Return in words that a result stands for work that has not run, or has not ended, or ``""``.

    A clause that follows the name of what returned it.
    """
    kind = type(result).__name__
    if _is_future(result):
        return f"a {kind}, whose work had not ended"
    match _remedy(result):
        case "":
            return ""
        case str() if isinstance(result, Awaitable):
            return f"a {kind}, which nobody awaited"
    return f"a {kind}, which nobody ran"


def _remedy(result: object) -> str:
    """Return what is to be given in the place of what returns this, ``""`` where it is done."""
    if isinstance(result, Awaitable | AsyncIterator):
        return AWAIT
    if isinstance(result, Iterator) and not isinstance(result, io.IOBase):
        return GO_THROUGH
    return ""


def _is_future(result: object) -> bool:
    """Return whether it is a future, whichever library's, whose work has not ended."""
    kind = type(result)
    if not (hasattr(kind, "add_done_callback") and hasattr(kind, "done")):
        return False
    return not result.done()  # type: ignore[attr-defined] # it was asked
