"""What threads of torch.distributed free: the last holder of a tensor that ranks exchange.

A collective on the CPU runs in a thread of its backend, which lets go of its tensors after the
caller knows that it is done. Whoever is last frees them, and torch's profiler does not see that
thread. So each is waited for, and its thread is given the time to let go first; and the storages
that it is given are followed until they die, wherever.
"""

import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..records.allocations import Change
from .thread_profile import PLACE, Moment

LETTING_GO_S: Final = 0.002
"""How long a thread of a backend is given to let go of tensors, each time that it is looked at."""

LONGEST_S: Final = 0.25
"""How long threads that run are waited for: on a busy machine one may wait for a core."""

THREADS: Final = Path("/proc/self/task")

OF_PAIRS: Final = ("send", "recv_", "recv_any_source_")
"""Operators that a rank must not wait for: its partner may do something else first."""


class CollectiveFrees(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Follows the storages that collectives are given while it is entered, and after that."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._followed: dict[int, weakref.ref[UntypedStorage]] = {}
        self._moments: list[Moment] = []
        self._collectives = 0  # that run: one inside another, where a backend has it so

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],  # torch's signature
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator; follow what a collective is given, and what it makes for itself."""
        kwargs = kwargs or {}
        if func.namespace == "c10d" and _on_the_cpu(func, args, kwargs):
            self._follow((args, kwargs))
            self._collectives += 1
            try:
                with self:
                    result = func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
            finally:
                self._collectives -= 1
            if func.overloadpacket.__name__ not in OF_PAIRS:
                _wait_for(result)
            return result
        result = func(*args, **kwargs)
        if self._collectives:
            self._follow(result)
        return result

    def taken(self) -> list[Moment]:
        """Return what was freed in threads that nobody profiles, each free once."""
        taken, self._moments = self._moments, []
        return taken

    def _follow(self, tree: object) -> None:
        for leaf in tree_leaves(tree):
            if not isinstance(leaf, Tensor) or leaf.device.type != PLACE:
                continue
            storage = leaf.untyped_storage()
            name = storage._cdata
            if name not in self._followed and storage.nbytes():
                free = Change(storage.data_ptr(), -storage.nbytes())
                self._followed[name] = weakref.ref(storage, partial(self._died, name, free))

    def _died(self, name: int, free: Change, _: object) -> None:
        self._followed.pop(name, None)
        own = threading.current_thread() is threading.main_thread()
        if not own and not torch._C._autograd._profiler_enabled():
            self._moments.append((time.time_ns(), PLACE, free))


def _on_the_cpu(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether the tensors of a collective lie on the CPU, for which it has a kernel."""
    places = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
    key = torch._C.DispatchKey.CPU
    return places == {PLACE} and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _wait_for(result: object) -> None:
    """Wait until a collective is done, and its thread most likely idle."""
    for leaf in tree_leaves(result):
        if isinstance(leaf, torch.ScriptObject):
            leaf.wait()  # type: ignore[attr-defined] # what torch calls it at run time
    _let_others_rest()


def _let_others_rest() -> None:
    """Give other threads time to let go of tensors: until none runs, where the system says it."""
    deadline = time.monotonic() + LONGEST_S
    time.sleep(LETTING_GO_S)
    while _another_runs() and time.monotonic() < deadline:
        time.sleep(LETTING_GO_S)


def _another_runs() -> bool:
    """Return whether a thread of this process, not the caller, runs or waits for a core."""
    own = str(threading.get_native_id())
    for thread in THREADS.glob("*/stat"):
        with suppress(OSError):  # it may have ended meanwhile
            state = thread.read_text("utf-8", "replace").rpartition(")")[2].split()[0]
            if state == "R" and thread.parent.name != own:
                return True
    return False


@cache
def _of_this_process() -> CollectiveFrees:
    return CollectiveFrees()


@contextmanager
def collective_frees() -> Iterator[CollectiveFrees | None]:
    """Follow what collectives are given, in a process that is a rank; yield None in others."""
    if not (dist.is_available() and dist.is_initialized()):
        yield None
        return
    following = _of_this_process()
    with following:
        yield following
    _let_others_rest()
