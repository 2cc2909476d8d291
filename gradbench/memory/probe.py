"""What operators allocate and free inside themselves, learned by running each once for real.

Convolutions reorder weights and images into blocked layouts, reductions keep scratch: dozens of
megabytes that no output shows. Fake tensors run no kernels, so the kernels are asked: every
distinct call, on zeros of its shapes, all in one trace.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from ..devices import Device
from .apart import Died, apart
from .storage_tracker import Operator


@dataclass(frozen=True, slots=True)
class Meta:
    """A tensor's outline, from which another like it can be made."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Meta":
        """Return a tensor's outline."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def of_one(self) -> "Meta":
        """Return the outline of a single element, in as many dimensions."""
        ones = (1,) * len(self.shape)
        return Meta(ones, ones, self.dtype)

    def zeros(self, device: str) -> Tensor:
        """Return a real tensor of this outline."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device).zero_()


@dataclass(frozen=True, slots=True)
class Call:
    """One operator call in outline; equal calls need the same inside, but for ``extra``.

    Pointwise operators need nothing beside their outputs, unless a Python number stands where a
    tensor is declared: it becomes one, and another of the right dtype. That does not depend on
    shapes, so such a call stands for one of single elements, and ``extra`` is what its outputs
    have more.
    """

    func: Operator
    arguments: tuple[Any, ...]  # flat, tensors as `Meta`
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    nbytes: int  # of its tensors, outputs included
    extra: int
    output_bytes: tuple[int, ...]

    @classmethod
    def of(
        cls, func: Operator, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> "Call":
        """Return the outline of a call that was made."""
        outputs = [Meta.of(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        metas, extra = (tuple(args), dict(kwargs)), 0
        metas = tree_map_only(Tensor, Meta.of, metas)
        if torch.Tag.pointwise in func.tags:
            metas = tree_map_only(Meta, Meta.of_one, metas)
            if not func._schema.is_mutable:
                extra = sum(meta.nbytes - meta.dtype.itemsize for meta in outputs)
            outputs = [meta.of_one() for meta in outputs]
        leaves = tree_leaves(metas)
        flat = tuple(leaf if isinstance(leaf, Meta) else repr(leaf) for leaf in leaves)
        nbytes = sum(meta.nbytes for meta in (*leaves, *outputs) if isinstance(meta, Meta))
        sizes = tuple(meta.nbytes for meta in outputs)
        return cls(func, flat, metas[0], metas[1], nbytes, extra, sizes)

    def __hash__(self) -> int:
        return hash((self.func, self.arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and (self.func, self.arguments) == (
            other.func,
            other.arguments,
        )

    @property
    def needs_probe(self) -> bool:
        """Whether the operator may allocate beside its outputs: views do not, nor do lists."""
        if self.func.is_view or self.func.namespace != "aten" or "_foreach_" in str(self.func):
            return False
        return torch.Tag.pointwise not in self.func.tags or self._wraps_a_number

    @property
    def _wraps_a_number(self) -> bool:
        declared = self.func._schema.arguments
        return any(
            isinstance(value, int | float) and isinstance(argument.type, torch.TensorType)
            for argument, value in zip(declared, self.args, strict=False)
        )


class Prober:
    """Knows how many bytes calls need inside, having run each once. One a process is enough.

    ``device`` is where kernels are run, None for nowhere: then nothing is known.
    """

    def __init__(self, device: Device | None, *, largest: int | None = None) -> None:
        here = device.probe_bytes if device is not None else 0
        self._device, self._largest = device, here if largest is None else largest
        self._inside: dict[Call, int | None] = {}
        self._misled: set[Call] = set()

    def learn(self, calls: Iterable[Call]) -> None:
        """Run all that is new and small enough."""
        new = [
            call for call in dict.fromkeys(calls) if call.needs_probe and call not in self._inside
        ]
        todo = [call for call in new if call.nbytes <= self._largest]
        self._inside |= dict.fromkeys(new)  # what is not run stays unknown
        if todo and self._device is not None:
            for call, (peak, misled) in _run(todo, self._device).items():
                self._inside[call] = peak
                if misled:
                    self._misled.add(call)

    def misled(self, call: Call) -> bool:
        """Return whether fake tensors are wrong about the call: its outputs' sizes, or its safety.

        What ends the process when it is called with made-up contents is judged by nothing here.
        """
        return call in self._misled

    def inside(self, call: Call) -> int | None:
        """Return the most bytes that were live at once within the call, or None if unknown.

        Outputs that it allocates are among them.
        """
        known = self._inside.get(call) if call.needs_probe else 0
        return known + call.extra if known is not None else None


def _run(calls: Sequence[Call], device: Device) -> dict[Call, tuple[int | None, bool]]:
    """Run each call on zeros, in a child that it may take with it.

    Return its inner peak, None where it raised or ended the process, and whether it ended that, or
    its outputs have other sizes than those that it was thought to have.
    """
    known: dict[Call, tuple[int | None, bool]] = {}
    left = list(calls)
    while left and len(known) < len(calls):
        try:
            found = apart(partial(_measured, left, device), device)
        except Died as death:
            if death.reported < 0:  # before any of them
                break
            known[left.pop(death.reported)] = None, True
        else:
            return known | dict(zip(left, found, strict=True))
    return known | dict.fromkeys(left, (None, False))


def _measured(
    calls: Sequence[Call], device: Device, say: Callable[[int], None]
) -> list[tuple[int | None, bool]]:
    unlike: set[int] = set()

    def prepared(index: int) -> Callable[[], object]:
        call = calls[index]
        args, kwargs = tree_map_only(
            Meta, lambda meta: meta.zeros(device.place), (call.args, call.kwargs)
        )
        say(index)

        def run() -> object:
            result = call.func(*args, **kwargs)
            outputs = [Meta.of(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            if tuple(meta.nbytes for meta in outputs) != call.output_bytes:
                unlike.add(index)
            return result

        return run

    with _disable_current_modes(), torch.no_grad():
        device.warm_up()  # or the first product's inside would hold a workspace that stays
        peaks = device.inner_peaks([partial(prepared, index) for index in range(len(calls))])
        device.forget()
    return [(peak, index in unlike) for index, peak in enumerate(peaks)]
