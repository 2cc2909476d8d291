"""What autograd keeps for backward: which storages, how many bytes, on whose account."""

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.module import register_module_forward_pre_hook

from ..call_threads import CallThreads
from ..devices import OutOfSight
from ..workloads.module_parts import named_parts, tensors_of
from ..workloads.trees import tensors
from .leaves import GivenHooks, nodes
from .storages import handed_out, key, shape, storages

NOT_USERS: Final = (
    "<frozen",  # importlib
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[1]),
    *(
        str(Path(threading.__file__).parent / name)
        for name in ("threading.py", "concurrent", "multiprocessing")
    ),
)
"""Folders and files whose frames are never the line that a user wants to see."""

ROOT: Final = "(model)"
"""How the module that holds all others is called, whose own path is empty."""


@dataclass(frozen=True, slots=True)
class Saved:
    """One storage that autograd saved, and where that was first done."""

    nbytes: int
    shape: tuple[int, ...]  # of the tensor that was saved; its storage may be larger
    dtype: str
    module: str  # path of the module whose forward ran, "" outside of every known one
    line: str  # "nets.py:12 in forward", the innermost line of the user's own, or ""


class ModuleFrames:
    """Knows which module's forward runs right now, of those it was given by path.

    It asks the frames of the interpreter, for a hook on a module changes what runs: torch leaves
    its fused paths where it sees one. Compiled code has no frames: then it is whoever called that.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._paths = {id(module): path for path, module in modules.items()}
        self._modules = list(modules.values())  # held, or an id could be another's
        self._met: dict[int, weakref.ref[nn.Module]] = {}  # not held: the call may drop them

    def meet(self, module: nn.Module) -> bool:
        """Know a module that was not given, and its parts; return whether it is new.

        Their paths begin with its class.
        """
        if id(module) in self._paths:
            return False
        for path, part in named_parts(module):
            if id(part) not in self._paths:
                self._paths[id(part)] = f"{type(module).__name__}.{path}".rstrip(".")
                self._met[id(part)] = weakref.ref(part, partial(self._forget, id(part)))
        return True

    def _forget(self, name: int, _: object) -> None:
        del self._paths[name], self._met[name]

    @property
    def module(self) -> str:
        """The innermost module's path, "" outside of all."""
        frame: FrameType | None = sys._getframe(1) if self._paths else None
        while frame is not None:
            code = frame.f_code
            if code.co_name in _CALLS and code.co_argcount:
                path = self._paths.get(id(frame.f_locals.get(code.co_varnames[0])))
                if path is not None:
                    return path
            frame = frame.f_back
        return ""


@contextmanager
def meeting(where: ModuleFrames, met: Callable[[nn.Module], None]) -> Iterator[None]:
    """Have modules that run known while entered, and ``met`` called with each that is new first.

    Such are those that the call makes itself.
    """

    def look(module: nn.Module, _inputs: object) -> None:
        if where.meet(module):
            met(module)

    looking = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        looking.remove()


_CALLS: Final = ("forward", "_call_impl")
"""Functions whose first argument is a module that runs."""


class Packed:
    """A saved tensor in the graph: when the graph lets go of it, it says so."""

    __slots__ = ("_released", "tensor")

    def __init__(self, tensor: Tensor, released: Callable[[], object]) -> None:
        self.tensor, self._released = tensor, released

    def __del__(self) -> None:
        self._released()


_Hook = Callable[[Any], Any]


class _OwnHooks(torch.autograd.graph.saved_tensors_hooks):
    """The hooks of this module, apart from those that a model sets."""


class SavingHooks:
    """While entered, a function packs what autograd saves, in each thread of the call.

    Where the call sets hooks of its own, as `torch.autograd.graph.save_on_cpu` and checkpointing
    do, torch asks those alone: then the function packs the tensors in what they return. Such hooks
    give tensors back, which may be computed again, within the context ``unpacking``.
    """

    def __init__(
        self,
        pack: Callable[[Tensor], Packed],
        *,
        unpacking: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._pack, self._unpacking = pack, unpacking
        self._threads = CallThreads(self._hooks)
        self._stack = ExitStack()
        self.packed = 0
        self.given = GivenHooks()  # to tensors of the call

    def __enter__(self) -> Self:
        self._stack.enter_context(self._threads)
        self._stack.enter_context(self._hooks())
        self._stack.enter_context(self._packing_of_others())
        self._stack.enter_context(_refusals_in_torchs_words())
        self._stack.enter_context(self.given.noted())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def here(self) -> bool:
        """Whether what the thread that asks saves is packed."""
        return self._threads.here

    def unseen(self, value: object) -> set[Node]:
        """Return the nodes of a graph that hold tensors which nobody packed.

        Such are those of threads that are not of the call, and those that were there before it.
        """
        return {node for node in nodes(value) if next(_saved_without_hooks(node), None) is not None}

    def _hooks(self) -> _OwnHooks:
        return _OwnHooks(self._packing, _unpacked)

    def _packing(self, tensor: Tensor) -> Packed:
        self.packed += 1
        return self._pack(
            tensor.detach()
        )  # a node that saves its output would hold itself for ever

    @contextmanager
    def _packing_of_others(self) -> Iterator[None]:
        """Let what hooks of the call return be packed, too, while entered."""
        hooks, enter = torch.autograd.graph.saved_tensors_hooks, _OwnHooks.__enter__

        def entered(others: torch.autograd.graph.saved_tensors_hooks) -> None:
            pack, unpack = others.pack_hook, others.unpack_hook
            if not isinstance(others, _OwnHooks) and self.here:
                others.pack_hook, others.unpack_hook = self._around(pack, unpack)
            try:
                enter(others)
            finally:
                others.pack_hook, others.unpack_hook = pack, unpack

        hooks.__enter__ = entered  # type: ignore[method-assign] # torch asks the innermost hooks only
        try:
            yield
        finally:
            hooks.__enter__ = enter  # type: ignore[method-assign] # as it was

    def _around(self, pack: _Hook, unpack: _Hook) -> tuple[_Hook, _Hook]:
        """Return another's hooks, which carry the tensors that they return packed beside them."""

        def packing(tensor: Tensor) -> tuple[object, list[Packed]]:
            value = pack(tensor)
            return value, [self._packing(one) for _, one in tensors(value)]

        def unpacking(held: tuple[object, list[Packed]]) -> object:
            with self._threads.in_backward(), self._unpacking():
                return unpack(held[0])

        return packing, unpacking


@contextmanager
def _refusals_in_torchs_words() -> Iterator[None]:
    """Let code that switches hooks off say, where some are set, that this is why it raises.

    `torch.autograd.graph.disable_saved_tensors_hooks` raises in its caller's words, whatever these
    are; see `refuses_hooks`.
    """
    functions: Any = torch._C._autograd
    disable = functions._saved_tensors_hooks_disable

    def disabled(message: str, *rest: Any, **further: Any) -> None:
        try:
            disable(message, *rest, **further)
        except RuntimeError as error:
            if refuses_hooks(str(error)):
                raise
            raise RuntimeError(f"saved tensor hooks are switched off here: {error}") from error

    functions._saved_tensors_hooks_disable = disabled
    try:
        yield
    finally:
        functions._saved_tensors_hooks_disable = disable


def _unpacked(packed: Packed) -> Tensor:
    return packed.tensor


_RAW: Final = "_raw_saved_"
"""How the attributes of a node begin that hold what it saved."""


def _saved_without_hooks(node: Node) -> Iterator[Tensor]:
    """Yield the tensors that a node saved while no hooks were set, ours or another's.

    torch refuses to set hooks where there are some, and where nothing is held.
    """
    for name in dir(node):
        if not name.startswith(_RAW):
            continue
        try:
            held = getattr(node, name)
            for one in held if isinstance(held, tuple) else (held,):
                one.register_hooks(_same, _same)
            saved = getattr(node, name.removeprefix("_raw"), None)
            saved = getattr(node, "saved_tensors", ()) if saved is None else saved
        except RuntimeError:
            continue
        # A number that is an operand is a tensor of no dimension, and no hook is asked for it.
        yield from (tensor for _, tensor in tensors(saved) if tensor.dim())


def _same(tensor: Tensor) -> Tensor:
    return tensor


def refuses_hooks(words: str) -> bool:
    """Return whether code that raised this fails with hooks on what is saved, as torch.func."""
    return "saved tensor" in words and "hooks" in words


def unwatched_thread(what: str) -> OutOfSight:
    """Return why no figure of a step is known that does something in another's thread."""
    return OutOfSight(
        f"{what} in a thread that was there before the step, and what that allocates is "
        "not seen: start the thread in the step, or use a ThreadPoolExecutor"
    )


class AliveAtOnce:
    """Storages as they are saved and released; which were saved at once when that was most."""

    def __init__(self) -> None:
        self._all: list[Saved] = []
        self._current: dict[int, tuple[int, int]] = {}  # key -> place in _all, how often saved
        self._log: list[tuple[int, bool]] = []  # place, saved or released

    def save(self, storage_key: int, saved: Saved) -> None:
        """Note that a storage is saved, perhaps once more: then as whom it was first."""
        place, count = self._current.get(storage_key, (len(self._all), 0))
        if not count:
            self._all.append(saved)
            self._log.append((place, True))
        self._current[storage_key] = place, count + 1

    def release(self, storage_key: int) -> None:
        """Note that one of those who saved a storage has let go of it."""
        place, count = self._current.pop(storage_key)
        if count > 1:
            self._current[storage_key] = place, count - 1
        else:
            self._log.append((place, False))

    @property
    def current(self) -> set[int]:
        """Keys of the storages that are saved now."""
        return set(self._current)

    @property
    def total_bytes(self) -> int:
        """Bytes of everything that was saved at any time."""
        return sum(saved.nbytes for saved in self._all)

    def most(self) -> list[Saved]:
        """Return what was saved at once when that was most, in order."""
        live, most, at = 0, 0, 0
        for index, (place, saved) in enumerate(self._log, 1):
            live += self._all[place].nbytes if saved else -self._all[place].nbytes
            if live > most:
                most, at = live, index
        then: dict[int, None] = {}
        for place, saved in self._log[:at]:
            if saved:
                then[place] = None
            else:
                del then[place]
        return [self._all[place] for place in sorted(then)]


class SavedTensors:
    """Records what autograd saves while it is entered: the most that is saved at once.

    Each storage counts once, in full, on the account of whoever had it saved first. Storages of
    the tensors ``apart`` are left out: parameters, buffers and inputs are there without a graph.
    Works on real and on fake tensors.
    """

    def __init__(
        self,
        *,
        modules: Mapping[str, nn.Module] | None = None,
        apart: Iterable[Tensor] = (),
    ) -> None:
        self._where = ModuleFrames(modules or {})
        self._apart = {key(storage) for tensor in apart for storage in storages(tensor)}
        self._alive = AliveAtOnce()
        self._elsewhere: dict[int, int] = {}  # key -> bytes
        self.hooks = SavingHooks(self._pack)
        self._over = False

    @property
    def saved(self) -> list[Saved]:
        """What was saved at once when that was most."""
        return self._alive.most()

    @property
    def nbytes(self) -> int:
        """Most bytes that were saved at once."""
        return sum(saved.nbytes for saved in self.saved)

    @property
    def total_bytes(self) -> int:
        """Bytes of everything that was saved, at once or one after the other."""
        return self._alive.total_bytes

    @property
    def elsewhere_bytes(self) -> int:
        """Bytes that were saved of memory that torch's allocator did not hand out: NumPy's, say."""
        return sum(self._elsewhere.values())

    def leave_out(self, module: nn.Module) -> None:
        """Take a module's parameters and buffers for some of those that are apart."""
        for tensor in tensors_of(module):
            self._apart |= {key(storage) for storage in storages(tensor)}

    def counts(self, tensor: Tensor) -> bool:
        """Return whether a tensor is among what is saved now, or apart."""
        keys = {key(storage) for storage in storages(tensor)}
        return keys <= self._apart | self._alive.current

    def by_module(self) -> dict[str, int]:
        """Return bytes saved at once by module path, most first."""
        totals: dict[str, int] = {}
        for saved in self.saved:
            totals[saved.module] = totals.get(saved.module, 0) + saved.nbytes
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def __enter__(self) -> Self:
        self.hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hooks.__exit__(kind, error, trace)
        self._over = True

    def _pack(self, tensor: Tensor) -> Packed:
        keys = []
        for storage in storages(tensor):
            if not self._over and key(storage) not in self._apart:
                keys.append(key(storage))
                if not handed_out(storage):
                    self._elsewhere[keys[-1]] = storage.nbytes()
                self._alive.save(keys[-1], self._described(tensor, storage.nbytes()))
        return Packed(tensor, partial(self._release, keys))

    def _described(self, tensor: Tensor, nbytes: int) -> Saved:
        return Saved(
            nbytes=nbytes,
            shape=shape(tensor),
            dtype=str(tensor.dtype).removeprefix("torch."),
            module=self._where.module,
            line=users_line(),
        )

    def _release(self, keys: Sequence[int]) -> None:
        if not self._over:  # a graph may outlive the record of it
            for one in keys:
                self._alive.release(one)


def paths(*roots: nn.Module) -> dict[str, nn.Module]:
    """Return every module of the roots by its path; a root itself is called `ROOT`."""
    return {path or ROOT: module for root in reversed(roots) for path, module in named_parts(root)}


def users_line() -> str:
    """Return the innermost line being run that is neither torch's nor ours, or ""."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(NOT_USERS):
            return f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    return ""
