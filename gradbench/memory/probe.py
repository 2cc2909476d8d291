"""What operators allocate and free inside themselves, learned by running each once for real.

Convolutions reorder weights and images into blocked layouts, reductions keep scratch: dozens of
megabytes that no output shows. Fake tensors run no kernels, so the kernels are asked: every
distinct call, on zeros of its shapes, all in one trace. Zeros are made up, and a kernel may end
the process over them; so that is a fork of this one, where the device allows it.

A model's own size is never computed with: what is large in bytes or in multiplications is not run.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from ..devices import Device
from .child_process import Children, Died
from .storage_tracker import Operator
from .storages import storages

OTHER: Final = 0.7
TWICE_BYTES: Final = 2**18
"""Calls that are run on `OTHER` numbers than zeros, too: larger ones would take too long."""

PROBE_S: Final = 5.0
"""What the calls of one step may take to multiply, all together."""

MULTIPLIES: Final = re.compile(
    r"mm(_|$)|mv(_|$)|(^|_)linear(_|$)|conv|attention|encoder_layer|trilinear|cdist|rnn"
    r"|linalg|cholesky|qr(_|$)|svd|inverse|solve|(^|_)lu(_|$)|matrix_exp"
)
"""Names of operators whose work grows faster than their tensors."""


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
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.numel * self.dtype.itemsize

    def of_one(self) -> "Meta":
        """Return the outline of a single element, in as many dimensions."""
        ones = (1,) * len(self.shape)
        return Meta(ones, ones, self.dtype)

    def filled(self, device: str, value: float) -> Tensor:
        """Return a real tensor of this outline, floats with the value and all else with zeros."""
        made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)
        return made.fill_(value if self.dtype.is_floating_point else 0)


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
    returns: tuple[int, ...] | None  # bytes of its outputs' storages, None where not compared
    multiplications: int = 0  # about how many it does, where that is no linear work
    dtype: torch.dtype = torch.float32  # of its largest tensor

    @classmethod
    def of(
        cls, func: Operator, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> "Call":
        """Return the outline of a call that was made."""
        outputs = [Meta.of(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        changes = func._schema.is_mutable  # then it returns what it was given, part of more maybe
        returns: tuple[int, ...] | None = None if changes else storage_sizes(result)
        metas, extra = (tuple(args), dict(kwargs)), 0
        metas = tree_map_only(Tensor, Meta.of, metas)
        if torch.Tag.pointwise in func.tags and not _has_complex(args):
            metas = tree_map_only(Meta, Meta.of_one, metas)
            if not changes:
                extra = sum(meta.nbytes - meta.dtype.itemsize for meta in outputs)
            outputs = [meta.of_one() for meta in outputs]
            returns = None
        leaves = tree_leaves(metas)
        flat = tuple(leaf if isinstance(leaf, Meta) else repr(leaf) for leaf in leaves)
        every = [meta for meta in (*leaves, *outputs) if isinstance(meta, Meta)]
        return cls(
            func,
            flat,
            metas[0],
            metas[1],
            sum(meta.nbytes for meta in every),
            extra,
            returns,
            _multiplications(func, args, every),
            max(every, key=lambda meta: meta.numel).dtype if every else torch.float32,
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the operator by its name: torch cannot."""
        rest = (self.arguments, self.args, self.kwargs, self.nbytes, self.extra, self.returns)
        work = (self.multiplications, self.dtype)
        return _call_named, (self.func._schema.name, self.func._overloadname, *rest, *work)

    def __hash__(self) -> int:
        return hash((self.func, self.arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and (self.func, self.arguments) == (
            other.func,
            other.arguments,
        )

    @property
    def name(self) -> str:
        """The operator's, as the profiler spells it."""
        return str(self.func.overloadpacket).replace(".", "::")

    @property
    def needs_probe(self) -> bool:
        """Whether the operator may allocate beside its outputs."""
        return needs_probe(self.func, self.args)


def needs_probe(func: Operator, args: Sequence[Any]) -> bool:
    """Return whether a call may allocate beside its outputs: views do not, nor do lists.

    It is asked of each call of a step, before anything is made of it.
    """
    if func.is_view or func.namespace != "aten" or "_foreach_" in str(func):
        return False
    if torch.Tag.pointwise not in func.tags or _has_complex(args):
        return True
    return _wraps_a_number(func, args)


def _has_complex(args: Sequence[Any]) -> bool:
    """Return whether a complex tensor is among them: ``abs`` makes another before the real one."""
    return any(isinstance(one, Tensor | Meta) and one.dtype.is_complex for one in args)


def _multiplications(func: Operator, args: Sequence[Any], every: Sequence[Meta]) -> int:
    """Return about how many multiplications a call does that multiplies matrices, 0 for others.

    That of (m, k) and (k, n) does m * k * n of them, the root of the product of what its three
    tensors hold. Attention, recurrent layers and decompositions come to a few times that root; a
    convolution to as many times as its window is wide.
    """
    name = func._schema.name.partition("::")[2]
    if not MULTIPLIES.search(name):
        return 0
    largest = sorted((meta.numel for meta in every), reverse=True)[:3]
    root = math.isqrt(math.prod(largest))
    if "conv" not in name:
        return root
    tensors = [one for one in args if isinstance(one, Tensor)]
    weight = tensors[:3][-1] if "backward" in name else tensors[:2][-1]
    return root * math.isqrt(math.prod(weight.shape[2:]))


def _wraps_a_number(func: Operator, args: Sequence[Any]) -> bool:
    return any(
        isinstance(value, int | float) and isinstance(argument.type, torch.TensorType)
        for argument, value in zip(func._schema.arguments, args, strict=False)
    )


def _call_named(name: str, overload: str, *rest: Any) -> Call:
    namespace, _, operator = name.partition("::")
    return Call(getattr(getattr(getattr(torch.ops, namespace), operator), overload), *rest)


Jobs = Sequence[tuple[Call, float]]
"""Calls, each with what its floats are filled with."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a call did when it was run: its inner peak, and what its outputs held.

    ``varies`` says that on other contents it did something else.
    """

    inside: int
    returns: tuple[int, ...]
    varies: bool = False


class Prober:
    """Knows how many bytes calls need inside, having run each once. One a process is enough.

    ``device`` is where kernels are run, None for nowhere: then nothing is known.
    """

    def __init__(self, device: Device | None, *, largest: int | None = None) -> None:
        here = device.probe_bytes if device is not None else 0
        self._device, self._largest = device, here if largest is None else largest
        self._seen: dict[tuple[int, Call], Seen | None] = {}

    def learn(
        self, calls: Iterable[Call], *, threads: int = 1, children: Children | None = None
    ) -> None:
        """Run all that is new and small enough, with so many threads, in such children.

        ``calls`` are those of a step: the quickest of them are run, as many as `PROBE_S` allows.
        """
        there = [call for call in dict.fromkeys(calls) if call.needs_probe]
        new = [call for call in there if (threads, call) not in self._seen]
        quick = set(self._quick(there))
        todo = [call for call in new if call in quick]
        for call in new:
            self._seen[threads, call] = None  # what is not run stays unknown
        if todo and self._device is not None:
            children = children or Children(device=self._device)
            for call, seen in _run(todo, children, threads).items():
                self._seen[threads, call] = seen

    def _quick(self, calls: Iterable[Call]) -> Iterator[Call]:
        """Yield the calls that are small enough, the quickest first, while there is time left."""
        small = [call for call in calls if call.nbytes <= self._largest]
        left_s = PROBE_S
        for call in sorted(small, key=self._seconds):
            left_s -= self._seconds(call)
            if left_s < 0:
                return
            yield call

    def _seconds(self, call: Call) -> float:
        if self._device is None or not call.multiplications:
            return 0.0
        return call.multiplications / self._device.multiplications_a_second(call.dtype)

    def inside(self, call: Call, *, threads: int = 1) -> int | None:
        """Return the most bytes that were live at once within the call, or None if unknown.

        Outputs that it allocates are among them.
        """
        if not call.needs_probe:
            return call.extra
        seen = self._seen.get((threads, call))
        return seen.inside + call.extra if seen is not None else None

    def objection(self, call: Call, *, threads: int = 1) -> str:
        """Return why a call is not for real what it is on fake tensors, "" where it is."""
        seen = self._seen.get((threads, call))
        if seen is None or call.returns is None:
            return ""
        if seen.returns != call.returns:
            return f"{call.name} returns other sizes than on fake tensors"
        return f"what {call.name} needs inside depends on its numbers" if seen.varies else ""


def storage_sizes(result: object) -> tuple[int, ...]:
    """Return the bytes of the storages of what an operator returned."""
    return tuple(
        sum(storage.nbytes() for storage in storages(leaf))
        for leaf in tree_leaves(result)
        if isinstance(leaf, Tensor)
    )


def _run(calls: Sequence[Call], children: Children, threads: int) -> dict[Call, Seen | None]:
    """Run each call on zeros; return what it did, None where it raised or ended the process.

    Small ones are run on other numbers, too: some algorithms choose their way by these.
    """
    jobs = [(call, 0.0) for call in calls]
    jobs += [(call, OTHER) for call in calls if call.nbytes <= TWICE_BYTES]
    seen = _outlived(jobs, children, threads)
    known: dict[Call, Seen | None] = {}
    for call in calls:
        one, other = seen.get((call, 0.0)), seen.get((call, OTHER))
        varies = one is not None and other is not None and one != other
        known[call] = replace(one, varies=varies) if one is not None else None
    return known


def _outlived(jobs: Jobs, children: Children, threads: int) -> dict[tuple[Call, float], Seen]:
    """Run each in a child, and all but the one that ended it in the next."""
    todo = list(jobs)
    while todo:
        try:
            seen = children.run(partial(_in_order, todo, children.device, threads))
        except Died as death:
            del todo[max(death.reported, 0)]
        else:
            return {job: one for job, one in zip(todo, seen, strict=True) if one is not None}
    return {}


def _in_order(
    jobs: Jobs, device: Device, threads: int, begins: Callable[[int], None]
) -> list[Seen | None]:
    """Run each, and say of each that it begins; None for those that raise."""
    if not device.in_use:
        torch.set_num_threads(min(threads, torch.get_num_threads()))
    returned: dict[int, tuple[int, ...]] = {}

    def prepared(index: int, call: Call, value: float) -> Callable[[], object]:
        args, kwargs = tree_map_only(
            Meta, lambda meta: meta.filled(device.place, value), (call.args, call.kwargs)
        )
        begins(index)

        def run() -> object:
            result = call.func(*args, **kwargs)
            returned[index] = storage_sizes(result)
            return result

        return run

    with _disable_current_modes(), torch.no_grad():
        device.warm_up()  # or the first product's inside would hold a workspace that stays
        peaks = device.inner_peaks(
            [partial(prepared, index, *job) for index, job in enumerate(jobs)]
        )
        device.forget()
    return [
        None if peak is None else Seen(peak, returned[index]) for index, peak in enumerate(peaks)
    ]
