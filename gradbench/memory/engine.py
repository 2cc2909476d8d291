"""What autograd does past a dispatch mode, or otherwise under one: sums in place, numbers kept."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._python_dispatch import _disable_current_modes

from .fake_model import SharedFakeMode
from .leaves import nodes
from .storage_tracker import Operator, StorageTracker
from .storages import handed_out, tensors_among

KEPT: Final = "gradbench kept number"
NUMBER_BYTES: Final = 8
SAVES_ITS_NUMBER: Final = frozenset(
    {torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor}
    | {torch.ops.aten.div.Tensor, torch.ops.aten.div_.Tensor}
)
"""Operators whose backward needs the other factor, a tensor, even where that is a number."""


class EngineTracker(StorageTracker):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """A tracker on fake tensors that does as the engine would if there were no mode.

    Where gradients of two ways to one tensor meet, torch (2.13, ``input_buffer.cpp``) adds the
    second to the first in place, if recording is off, the first is dense and does not overlap
    itself, and nobody else holds it or its storage. Under a mode it never does. Which additions
    are those shows from hooks on the graph's nodes: they come between two of these.

    A number that a recorded product keeps for backward becomes a tensor past the mode.
    """

    def __init__(self, mode: SharedFakeMode, **followed: Any) -> None:
        super().__init__(**followed)
        self._mode = mode

    _between_nodes = False
    _product: weakref.ref[Tensor] | None = None

    def watch(self, *outputs: Tensor) -> None:
        """Follow the backward pass that is about to begin at these."""
        self._attach()
        for node in nodes(list(outputs)):
            node.register_prehook(self._entering(_metadata(node)))
            if not node.name().endswith("AccumulateGrad"):  # a hook there is a reference it counts
                node.register_hook(self._leave)

    def ended(self) -> None:
        """Follow no longer: what is added now is no gradient's."""
        self._between_nodes = False

    def _entering(self, metadata: dict[str, Any]) -> Any:
        def enter(_gradients: object) -> None:
            self._between_nodes = False
            metadata.pop(KEPT, None)  # the product in there makes a tensor of the number itself

        return enter

    def _leave(self, _inputs: object, _outputs: object) -> None:
        self._between_nodes = True

    def __torch_dispatch__(
        self,
        func: Operator,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator, a sum of gradients in place where the engine would."""
        self._attach()
        if self._between_nodes and func is torch.ops.aten.add.Tensor and self._held_once(args[0]):
            func = torch.ops.aten.add_.Tensor
        if func is torch.ops.aten.lift_fresh.default and not handed_out(args[0].untyped_storage()):
            lifted = func(*args)  # numpy's memory, which no allocator counts
            self._mode.hold_apart(args[0].untyped_storage())
            self._know(lifted)
            return lifted
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func in SAVES_ITS_NUMBER and _records(args):
            self._product = weakref.ref(result)
        return result

    def _attach(self) -> None:
        """Let the last product's node, which it has not yet within the mode, keep its number."""
        product = self._product() if self._product is not None else None
        if product is not None and product.grad_fn is not None:
            self._product = None
            with torch.no_grad():
                number = torch.empty((NUMBER_BYTES,), dtype=torch.uint8, device=product.device)
            self.adopt(number)  # a mode does not see what it makes itself
            _metadata(product.grad_fn)[KEPT] = number

    def _held_once(self, tensor: Tensor) -> bool:
        return (
            not torch.is_grad_enabled()
            and tensor.layout is torch.strided
            and torch._prims_common.is_non_overlapping_and_dense_or_false(tensor)
            and uses(tensor) == uses_of_one_holder()
        )


@contextmanager
def backward_passes_of(tracker: EngineTracker) -> Iterator[None]:
    """Let a tracker follow every backward pass while entered: a forward may make some, too.

    They begin in one function of torch's, by whatever name a module calls `torch.autograd.grad`.
    """
    functions: Any = torch.autograd
    run = functions._engine_run_backward

    def followed(begins: object, *args: Any, **kwargs: Any) -> Any:
        outputs = list(tensors_among((begins,)))
        if not any(map(torch._C._functorch.is_functorch_wrapped_tensor, outputs)):
            tracker.watch(*outputs)
        try:
            return run(begins, *args, **kwargs)
        finally:
            tracker.ended()

    functions._engine_run_backward = followed
    try:
        yield
    finally:
        functions._engine_run_backward = run


class _Counts(EngineTracker):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Counts the uses of the first gradient where two meet, and adds nothing in place."""

    counted: tuple[int, int] | None = None

    def _held_once(self, tensor: Tensor) -> bool:
        self.counted = uses(tensor)
        return False


@cache
def uses_of_one_holder() -> tuple[int, int] | None:
    """Return the uses of a tensor and of its storage, in a mode, that only the engine holds.

    How many references a mode adds is this torch's affair, so a graph is asked whose gradients
    are held by nobody else. None where this torch does not count: then no sum is in place.
    """
    mode = SharedFakeMode()
    with _disable_current_modes(), mode, _Counts(mode, on_create=lambda _: None) as counts:
        x = torch.ones(2, requires_grad=True)
        y = x * x
        loss = (y.sin() * y.cos()).sum()
        counts.watch(loss)
        with torch.enable_grad():
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    counted: tuple[int, int] | None = counts.counted
    return counted


def uses(tensor: Tensor) -> tuple[int, int] | None:
    """Return how many references there are to a tensor and to its storage, None if unknown."""
    try:
        of_tensor: int = tensor._use_count()  # type: ignore[attr-defined] # torch's stub lacks it
        of_storage: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    except AttributeError:
        return None
    return of_tensor, of_storage


def _metadata(node: Node) -> dict[str, Any]:
    """Return a node's metadata, which lives as long: torch's stub has it for a method."""
    metadata: Any = node.metadata
    kept: dict[str, Any] = metadata
    return kept


def _records(args: Sequence[Any]) -> bool:
    tensor, other = args[:2]
    return torch.is_grad_enabled() and tensor.requires_grad and isinstance(other, int | float)
