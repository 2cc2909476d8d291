"""What a call makes torch do, by module and operator: nodes, saved bytes, views, versions.

Nothing is hooked to a module, for torch leaves its fused paths where it sees a hook. Operators are
seen below autograd; a node is on the account of the first operator dispatched after it was made,
which its sequence number tells.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode

from ..records.explanation import OUTSIDE, ModuleCounts, OperatorCounts
from ..workloads.module_parts import own_parameters
from ..workloads.trees import tensors
from .leaves import nodes, saved_by
from .saved_tensors import ModuleFrames, SavedTensors, refuses_hooks
from .storages import key, storages

COMPOSITE: Final = "CompositeImplicitAutograd"
DETACH: Final = torch.ops.aten.detach.default
DETACHED: Final = "aten.detach, or an output that is saved"
"""A node that saves its own output copies it shallowly, which a dispatch mode sees as a detach."""


@dataclass(frozen=True, slots=True)
class CallCounts:
    """What one call did, by the path of a module and by the name of an operator."""

    modules: dict[str, ModuleCounts]
    operators: dict[str, OperatorCounts]  # without calls, which are counted above autograd


def counted(
    call: Callable[[], object], modules: Mapping[str, nn.Module], resident: Sequence[Tensor]
) -> CallCounts:
    """Call twice; return what each module's own forward did, and each operator, as they first ran.

    Once for what is saved, whose hooks make torch dispatch more, and once for all else. What is
    saved is None where the call fails with those, as `torch.func.grad` does.
    """
    saved = _saved(call, modules, resident)
    watch = _Dispatched(ModuleFrames(modules))
    before = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined] # of torch's own tracer
    with watch:
        output = call()
    made = _made(output, since=before)
    return CallCounts(
        _by_module(watch, made, modules, None if saved is None else saved.by_module()),
        _by_operator(watch, made, resident, None if saved is None else saved.nbytes),
    )


def _saved(
    call: Callable[[], object], modules: Mapping[str, nn.Module], resident: Sequence[Tensor]
) -> SavedTensors | None:
    try:
        with SavedTensors(modules=modules, apart=resident) as saved:
            call()
    except RuntimeError as error:
        if not refuses_hooks(str(error)):
            raise
        return None
    return saved


def _made(output: object, *, since: int) -> list[tuple[Node, int]]:
    """Return the nodes that a call made, and after how many of the sequence, in that order.

    A parameter's has no number: it is made when the first node that leads to it is.
    """
    graph = list(nodes(output))
    numbers = {node: node._sequence_nr() for node in graph if not _accumulates(node)}
    for node in sorted(numbers, key=numbers.__getitem__):
        for following, _ in node.next_functions:
            if following is not None and _accumulates(following):
                numbers.setdefault(following, numbers[node])
    made = [(node, numbers[node]) for node in graph if numbers.get(node, since) >= since]
    return sorted(made, key=lambda one: one[1])


def _accumulates(node: Node) -> bool:
    return getattr(node, "variable", None) is not None


def _by_module(
    watch: "_Dispatched",
    made: Sequence[tuple[Node, int]],
    modules: Mapping[str, nn.Module],
    saved_bytes: Mapping[str, int] | None,
) -> dict[str, ModuleCounts]:
    owners = {id(p): path for path, module in modules.items() for _, p in own_parameters(module)}
    by_path: dict[str, Counter[str]] = defaultdict(Counter)
    for node, number in made:
        variable = getattr(node, "variable", None)
        path = watch.at(number).module if variable is None else owners.get(id(variable), OUTSIDE)
        by_path[path][node.name()] += 1
    return {
        path: ModuleCounts(
            operators=dict(watch.operators.get(path, {})),
            nodes=dict(by_path.get(path, {})),
            saved_bytes=None if saved_bytes is None else saved_bytes.get(path, 0),
            tracked_views=watch.views[path],
            version_counters=watch.versions[path],
        )
        for path in dict.fromkeys([*watch.operators, *by_path, *(saved_bytes or ())])
    }


def _by_operator(
    watch: "_Dispatched",
    made: Sequence[tuple[Node, int]],
    resident: Iterable[Tensor],
    saved_bytes: int | None,
) -> dict[str, OperatorCounts]:
    """Return nodes and what they save, each storage by the first; the rest is nobody's."""
    number_of = Counter(watch.at(number).operator for _, number in made)
    if saved_bytes is None:
        return {
            name: OperatorCounts(nodes=count, saved_bytes=None) for name, count in number_of.items()
        }
    seen = {key(storage) for tensor in resident for storage in storages(tensor)}
    bytes_of: Counter[str] = Counter()
    for node, number in made:
        for tensor in saved_by(node):
            for storage in storages(tensor):
                if key(storage) not in seen:
                    seen.add(key(storage))
                    bytes_of[watch.at(number).operator] += storage.nbytes()
    bytes_of[OUTSIDE] += saved_bytes - bytes_of.total()
    return {
        name: OperatorCounts(nodes=number_of[name], saved_bytes=bytes_of[name])
        for name in dict.fromkeys([*number_of, *bytes_of])
        if number_of[name] or bytes_of[name]
    }


@dataclass(frozen=True, slots=True)
class _Dispatch:
    """One operator that was dispatched: in which module, and its name as the profiler spells it."""

    module: str
    operator: str


_NOWHERE: Final = _Dispatch(OUTSIDE, OUTSIDE)


class _Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Counts what is dispatched below autograd, on the account of the module that runs."""

    def __init__(self, where: ModuleFrames) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # the same
        self._where = where
        self.operators: dict[str, Counter[str]] = defaultdict(Counter)
        self.views: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self._numbers: list[int] = []  # of the sequence, at each operator
        self._dispatches: list[_Dispatch] = []

    def at(self, number: int) -> _Dispatch:
        """Return the first operator that was dispatched after a node of this number was made."""
        place = bisect_right(self._numbers, number)
        return self._dispatches[place] if place < len(self._dispatches) else _NOWHERE

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],  # torch's protocol
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
            with self:  # in inference mode it comes here whole: autograd is what takes it apart
                return func.decompose(*args, **(kwargs or {}))
        module = self._where.module
        self._numbers.append(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined] # see above
        self._dispatches.append(_Dispatch(module, str(func.overloadpacket).replace(".", "::")))
        result = func(*args, **(kwargs or {}))
        self.operators[module][str(func) if func is not DETACH else DETACHED] += 1
        given = {id(tensor) for _, tensor in tensors((args, kwargs or {}))}
        for _, tensor in tensors(result):
            if id(tensor) not in given and not tensor.is_inference():
                self.versions[module] += not func.is_view  # a view has its base's
                self.views[module] += func.is_view and func is not DETACH
        return result
