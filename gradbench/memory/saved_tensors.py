"""What autograd keeps for backward: which storages, how many bytes, on whose account."""

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch
from torch import Tensor, nn

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


class ModuleStack:
    """Knows which module's forward runs right now, of those it was given by path.

    Use it as a context manager. Compiled code calls no hooks: then it is wherever it was before.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._stack: list[str] = []
        self._undo = ExitStack()

    @property
    def module(self) -> str:
        """The innermost module's path, "" outside of all."""
        return self._stack[-1] if self._stack else ""

    def __enter__(self) -> Self:
        for path, module in self._modules.items():
            enter = module.register_forward_pre_hook(self._entering(path))
            leave = module.register_forward_hook(self._leave, always_call=True)
            self._undo.callback(enter.remove)
            self._undo.callback(leave.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _entering(self, path: str) -> Callable[[nn.Module, object], None]:
        return lambda _module, _inputs: self._stack.append(path)

    def _leave(self, _module: nn.Module, _inputs: object, _output: object) -> None:
        self._stack.pop()


class SavedTensors:
    """Records what autograd saves while it is entered.

    Each storage counts once, in full, on the account of whoever had it saved first. Storages of
    the tensors ``apart`` are left out: parameters, buffers and inputs are there without a graph.
    What was saved is held until this is left, or a reused address would merge two storages; so
    memory is not to be measured at the same time. Works on real and on fake tensors.
    """

    def __init__(
        self,
        *,
        modules: Mapping[str, nn.Module] | None = None,
        apart: Iterable[Tensor] = (),
    ) -> None:
        self.saved: list[Saved] = []
        self._where = ModuleStack(modules or {})
        self._apart = {_key(tensor) for tensor in apart}
        self._held: dict[int, Tensor] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed)

    @property
    def nbytes(self) -> int:
        """Bytes of all storages that were saved."""
        return sum(saved.nbytes for saved in self.saved)

    def by_module(self) -> dict[str, int]:
        """Return bytes by module path, most first."""
        return _totals((saved.module, saved.nbytes) for saved in self.saved)

    def __enter__(self) -> Self:
        self._where.__enter__()
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self._where.__exit__(kind, error, trace)
        self._held.clear()

    def _pack(self, tensor: Tensor) -> Tensor:
        kept = tensor.detach()  # a node that saves its own output would hold itself for ever
        key = _key(kept)
        if key in self._apart or key in self._held:
            return kept
        self._held[key] = kept
        self.saved.append(
            Saved(
                nbytes=kept.untyped_storage().nbytes(),
                shape=tuple(kept.shape),
                dtype=str(kept.dtype).removeprefix("torch."),
                module=self._where.module,
                line=users_line(),
            )
        )
        return kept


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


def _key(tensor: Tensor) -> int:
    # The address of the storage object, not of its bytes: fake tensors have no bytes.
    return int(tensor.untyped_storage()._cdata)


def _totals(amounts: Iterable[tuple[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for name, nbytes in amounts:
        totals[name] = totals.get(name, 0) + nbytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]))
