"""Storages as they come to life and die, seen from Python: works on real and on fake tensors."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

from .saved_tensors import ModuleFrames, users_line
from .storages import key, storages, tensors_among

Operator = torch._ops.OpOverload


@dataclass(frozen=True, slots=True)
class Creation:
    """A storage's first appearance: its size, and who made it where."""

    key: int
    nbytes: int
    op: str
    module: str
    line: str
    device: str = "cpu"
    scalar: bool = False  # a number: what optimizers count their steps in


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Tells of each storage's birth and death, and of each operator before its outputs.

    It sees what operators return; what they allocate and free inside is theirs (see `probe`).
    Deaths come through weak references to the storage's Python object, which torch keeps alive
    as long as the storage itself. What is composed of other operators is taken apart, or nobody
    would see its parts in inference mode; unless the device has a kernel for the whole.
    """

    def __init__(
        self,
        *,
        on_create: Callable[[Creation], None],
        on_free: Callable[[Creation], None] = lambda _: None,
        called: Callable[[Operator, Sequence[Any], Mapping[str, Any], Any], None] | None = None,
        where: ModuleFrames | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._on_create, self._on_free, self._called, self._where = (
            on_create,
            on_free,
            called,
            where,
        )
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Operator,
        types: Sequence[type],  # torch's signature
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator; tell of it and of what it brought to life."""
        kwargs = kwargs or {}
        if any(map(_runs_operators, types)):
            return NotImplemented  # then it does so, and each of those comes here
        given = list(tensors_among((*args, *kwargs.values())))
        # Operators of "prim" ask for facts, and torch cannot look them up; one that has a kernel of
        # the device's own is run by that, though it could be taken apart.
        if func.namespace != "prim" and not _has_kernel(func, given):
            with self:
                taken_apart = _taken_apart(func, args, kwargs)
            if taken_apart is not NotImplemented:
                return taken_apart
        for tensor in given:
            self._know(tensor)  # an output may share what an input brought along
        result = func(*args, **kwargs)
        if self._called is not None:
            self._called(func, args, kwargs, result)
        for tensor in tensors_among((result,)):
            self._see(tensor, str(func.overloadpacket).replace(".", "::"))
        return result

    def adopt(self, tensor: Tensor) -> None:
        """Take a tensor's storages for some that were made just now, by nobody's operator."""
        self._see(tensor, "")

    def _know(self, tensor: Tensor) -> None:
        """Take storages for known: they were there before, and their death is not reported."""
        for storage in storages(tensor):
            name = key(storage)
            if name not in self._alive:
                self._alive[name] = weakref.ref(storage, partial(self._forget, name))

    def _forget(self, name: int, _: object) -> None:
        self._alive.pop(name, None)

    def _see(self, tensor: Tensor, op: str) -> None:
        for storage in storages(tensor):
            if key(storage) not in self._alive and storage.nbytes():
                self._note(storage, tensor, op)

    def _note(self, storage: UntypedStorage, tensor: Tensor, op: str) -> None:
        birth = Creation(
            key(storage),
            storage.nbytes(),
            op,
            self._where.module if self._where is not None else "",
            users_line() if self._where is not None else "",
            str(tensor.device),
            tensor.dim() == 0,
        )

        def gone(_: object) -> None:
            self._alive.pop(birth.key, None)
            self._on_free(birth)

        self._alive[birth.key] = weakref.ref(storage, gone)
        self._on_create(birth)


def _runs_operators(kind: type) -> bool:
    """Return whether a class of tensors, not torch's own, runs others on the tensors in it."""
    return hasattr(kind, "__tensor_flatten__") and not kind.__module__.startswith("torch.")


def _taken_apart(func: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run the parts of a composite operator, `NotImplemented` where it has none.

    By the kernel that runs outside of any mode: for some, dropout and recurrent layers, torch also
    has one written in Python for the compiler, which allocates otherwise.
    """
    name: str = func.name()  # type: ignore[no-untyped-call] # torch leaves it untyped
    whole = torch._C.DispatchKey.CompositeImplicitAutograd
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, whole):
        return func._op_dk(whole, *args, **kwargs)
    return NotImplemented


def _has_kernel(func: Operator, given: Sequence[Tensor]) -> bool:
    """Return whether the device of the arguments has a kernel for the operator itself."""
    device = given[0].device.type if given else "cpu"
    name: str = func.name()  # type: ignore[no-untyped-call] # torch leaves it untyped
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, device.upper()))
