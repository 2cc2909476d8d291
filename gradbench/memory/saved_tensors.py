"""What autograd keeps for backward: which storages, how many bytes, on whose account."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

import torch
from torch import Tensor, nn

from .storages import key, shape, storages

NOT_USERS: Final = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
"""Folders whose frames are never the line that a user wants to see."""

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


_CALLS: Final = ("forward", "_call_impl")
"""Functions whose first argument is a module that runs."""


class Packed:
    """A saved tensor in the graph: when the graph lets go of it, it says so."""

    __slots__ = ("_released", "tensor")

    def __init__(self, tensor: Tensor, released: Callable[[], object]) -> None:
        self.tensor, self._released = tensor, released

    def __del__(self) -> None:
        self._released()


def saving_hooks(pack: Callable[[Tensor], Packed]) -> torch.autograd.graph.saved_tensors_hooks:
    """Return hooks that let a function pack what is saved."""

    def packing(tensor: Tensor) -> Packed:
        return pack(tensor.detach())  # a node that saves its own output would hold itself for ever

    return torch.autograd.graph.saved_tensors_hooks(packing, lambda packed: packed.tensor)


def refuses_hooks(words: str) -> bool:
    """Return whether code that raised this suffers no hooks on what is saved, as torch.func."""
    return "saved tensor" in words and "hooks" in words


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
        self._hooks = saving_hooks(self._pack)
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

    def by_module(self) -> dict[str, int]:
        """Return bytes saved at once by module path, most first."""
        totals: dict[str, int] = {}
        for saved in self.saved:
            totals[saved.module] = totals.get(saved.module, 0) + saved.nbytes
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self._over = True

    def _pack(self, tensor: Tensor) -> Packed:
        keys = []
        for storage in storages(tensor):
            if key(storage) not in self._apart:
                keys.append(key(storage))
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
    return {
        path or ROOT: module for root in reversed(roots) for path, module in root.named_modules()
    }


def users_line() -> str:
    """Return the innermost line being run that is neither torch's nor ours, or ""."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith((*NOT_USERS, "<frozen")):
            return f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    return ""
