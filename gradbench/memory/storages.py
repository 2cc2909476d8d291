"""What a tensor lies in: one block of memory, several, or none that can be seen."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, UntypedStorage
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def storages(tensor: Tensor) -> list[UntypedStorage]:
    """Return the storages that hold a tensor, each once; [] where it has none, or shows none.

    A dense tensor has one. Sparse and nested tensors, and subclasses that wrap others, have those
    of their parts; an uninitialized parameter has none yet, and oneDNN's own layouts show none.
    """
    by_key: dict[int, UntypedStorage] = {}
    todo = [tensor]
    while todo:
        one = todo.pop()
        parts = _parts(one)
        todo += parts
        nested = one.is_nested and one.layout is torch.strided  # its sizes are tensors beside it
        if not parts or nested or one.is_quantized:
            for storage in _own(one):
                by_key.setdefault(key(storage), storage)
    return list(by_key.values())


def tensors_among(values: Iterable[object]) -> Iterator[Tensor]:
    """Yield the tensors among an operator's arguments or results: its schema has flat lists alone.

    A step on fake tensors asks thousands of times; torch's way through trees takes a fifth of it.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_among(value)


def key(storage: UntypedStorage) -> int:
    """Return what tells storages apart: the object's address, for fake tensors have no bytes."""
    return int(storage._cdata)


def handed_out(storage: UntypedStorage) -> bool:
    """Return whether torch's allocators handed a storage out, or mapped a file for it.

    They did not where it only refers to memory of another's, of numpy's say.
    """
    return storage.resizable() or storage.is_shared()  # which a mapped file is


def shape(tensor: Tensor) -> tuple[int, ...]:
    """Return a tensor's shape; () where it has none: nested, or not initialized yet."""
    try:
        return tuple(tensor.shape)
    except RuntimeError:
        return ()


def _parts(tensor: Tensor) -> Sequence[Tensor]:  # noqa: PLR0911 # one return a kind
    """Return the tensors that a tensor consists of, or is beside its own storage."""
    if is_lazy(tensor):
        return ()
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return (torch._C._functorch.get_unwrapped(tensor),)
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        parts = (getattr(tensor, name) for name in names)
        return [part for part in parts if isinstance(part, Tensor)]  # beside them: a mesh of ranks
    if tensor.layout is torch.sparse_coo:
        return (tensor._indices(), tensor._values())
    if tensor.layout in _COMPRESSED:
        return [getattr(tensor, name)() for name in _COMPRESSED[tensor.layout]]
    if tensor.is_nested:
        return (
            tensor._nested_tensor_size(),
            tensor._nested_tensor_strides(),
            tensor._nested_tensor_storage_offsets(),
        )
    if tensor.is_quantized and tensor.qscheme() in (
        torch.per_channel_affine,
        torch.per_channel_affine_float_qparams,
    ):
        return (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
    return ()


def _own(tensor: Tensor) -> Iterator[UntypedStorage]:
    if not (is_lazy(tensor) or tensor._is_zerotensor()):  # forward AD's zeros have no numbers
        try:
            yield tensor.untyped_storage()
        except (RuntimeError, NotImplementedError):
            return  # an opaque layout
