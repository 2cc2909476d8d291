"""Threads that a call starts, and work that it gives to pools: run within what watches the call."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any, Final, Self

IDLE_S: Final = 1e-3
"""CPU time up to which a thread that is still there has done nothing but wait."""

END_S: Final = 0.1
"""How long threads that the call leaves are given to come to their end."""


class CallThreads:
    """While entered, each thread of a call is watched: torch's hooks and modes hold in one thread.

    ``watcher`` returns the context that other threads of the call enter: those that it starts, for
    their whole run, and workers of pools, older ones too, for the work that it gives them. What
    these start or give in turn belongs to the call as well; what other threads of the process do
    does not.
    """

    def __init__(self, watcher: Callable[[], AbstractContextManager[object]]) -> None:
        self._watcher = watcher
        self._members = {threading.get_ident()}
        self._running: set[threading.Thread] = set()
        self._watched_s: dict[int, float] = {}  # CPU time to watch a thread, by ident
        self.count = 0  # threads, or pieces of work of a pool, that were watched
        self.over = False

    def __enter__(self) -> Self:
        if not _CALLS:
            _patches.enter_context(_patched())
        _CALLS.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        ends = time.monotonic() + END_S
        for thread in list(self._running):
            thread.join(max(0.0, ends - time.monotonic()))
        self.over = True
        _CALLS.remove(self)
        if not _CALLS:
            _patches.close()

    @property
    def here(self) -> bool:
        """Whether the thread that asks belongs to the call."""
        return threading.get_ident() in self._members

    @property
    def still_running(self) -> tuple[str, ...]:
        """Names of threads that the call started, and that are at work still."""
        return tuple(sorted(thread.name for thread in self._running if not self._idle(thread)))

    def _idle(self, thread: threading.Thread) -> bool:
        """Return whether a thread is over, or has done nothing so far but be watched and wait."""
        ours_s = self._watched_s.get(thread.ident or 0, math.inf)
        return not thread.is_alive() or _cpu_s(thread) - ours_s < IDLE_S

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Let this thread belong to the call, and be watched, while entered."""
        if self.over or self.here:  # a pool may run work in the thread that gives it
            yield
            return
        ident = threading.get_ident()
        self._members.add(ident)
        self.count += 1
        try:
            with self._watcher():
                self._watched_s[ident] = time.thread_time()
                yield
        finally:
            self._watched_s.pop(ident, None)
            self._members.discard(ident)

    @contextmanager
    def in_backward(self) -> Iterator[None]:
        """Let autograd's thread of a GPU belong to the call while entered.

        torch has brought the call's hooks and modes there itself.
        """
        ident = threading.get_ident()
        if self.over or ident in self._members:
            yield
            return
        self._members.add(ident)
        try:
            yield
        finally:
            self._members.discard(ident)

    def starts(self, thread: threading.Thread) -> None:
        """Note that a thread is about to be started."""
        self._running.add(thread)

    def ended(self, thread: threading.Thread) -> None:
        """Note that a thread has come to its end."""
        self._running.discard(thread)


_CALLS: Final[list[CallThreads]] = []
"""Those that are entered, the outermost first."""

_patches: Final = ExitStack()
_pool_starts: Final = threading.local()

_HAND_OVER: Final[Sequence[tuple[type, str]]] = (
    (ThreadPoolExecutor, "submit"),
    (ThreadPool, "apply_async"),
    (ThreadPool, "_map_async"),
    (ThreadPool, "imap"),
    (ThreadPool, "imap_unordered"),
)
"""Methods that give a function to a pool's workers; all others of these classes call them."""


def _of_this_thread() -> list[CallThreads]:
    return [call for call in _CALLS if call.here]


def _within(calls: Sequence[CallThreads], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as it runs in any thread on behalf of these calls."""

    def watched(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for call in calls:
                stack.enter_context(call.joined())
            return function(*args, **kwargs)

    return watched


@contextmanager
def _patched() -> Iterator[None]:
    """Patch what starts threads, and what gives work to pools, while entered."""
    with ExitStack() as undo:
        undo.enter_context(_replaced(threading.Thread, "start", _starting))
        undo.enter_context(_replaced(ThreadPool, "__init__", _making))
        for owner, name in _HAND_OVER:
            undo.enter_context(_replaced(owner, name, _handing))
        yield


@contextmanager
def _replaced(
    owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    own = name in vars(owner)
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


def _starting(start: Callable[..., Any]) -> Callable[..., Any]:
    def watching(thread: threading.Thread) -> None:
        calls = [] if getattr(_pool_starts, "now", False) else _of_this_thread()
        if calls:
            _watch(thread, calls)
        start(thread)

    return watching


def _watch(thread: threading.Thread, calls: Sequence[CallThreads]) -> None:
    run = thread.run

    def watched() -> None:
        try:
            _within(calls, run)()
        finally:
            for call in calls:
                call.ended(thread)
            with contextlib.suppress(AttributeError):
                del thread.run  # it leads to itself

    for call in calls:
        call.starts(thread)
    thread.run = watched  # type: ignore[method-assign] # of this one thread


def _making(make: Callable[..., Any]) -> Callable[..., Any]:
    """Leave the workers of a pool alone: they outlive the call, their work is watched instead."""

    def making(pool: ThreadPool, *args: Any, **kwargs: Any) -> None:
        with _starting_a_pool():
            make(pool, *args, **kwargs)

    return making


def _handing(hand: Callable[..., Any]) -> Callable[..., Any]:
    def handing(pool: object, *args: Any, **kwargs: Any) -> Any:
        calls = _of_this_thread()
        if calls and args:
            args = (_within(calls, args[0]), *args[1:])
        elif calls and "func" in kwargs:
            kwargs["func"] = _within(calls, kwargs["func"])
        with _starting_a_pool():
            return hand(pool, *args, **kwargs)

    return handing


@contextmanager
def _starting_a_pool() -> Iterator[None]:
    before = getattr(_pool_starts, "now", False)
    _pool_starts.now = True
    try:
        yield
    finally:
        _pool_starts.now = before


def others_at_work_s() -> dict[threading.Thread, float]:
    """Return the CPU time so far of each Python thread but the one that asks."""
    return {
        thread: _cpu_s(thread)
        for thread in threading.enumerate()
        if thread is not threading.current_thread()
    }


def at_work_since(before_s: Mapping[threading.Thread, float]) -> bool:
    """Return whether one of those threads did more than wait since then."""
    return any(_cpu_s(thread) - then >= IDLE_S for thread, then in before_s.items())


def _cpu_s(thread: threading.Thread) -> float:
    """Return the CPU time of a thread; without end where the system does not count it."""
    if thread.ident is None or not thread.is_alive():
        return 0.0
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    except AttributeError:  # not on this system
        return math.inf
    except OSError:  # it ended meanwhile
        return 0.0
