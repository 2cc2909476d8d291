"""What a call makes torch do, by module: operators, graph nodes, saved bytes, views, versions.

Nothing is hooked to a module, for torch leaves its fused paths where it sees a hook. Operators are
seen below autograd; a node is on the account of the first operator dispatched after it was made,
which its sequence number tells.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..records.explanation import OUTSIDE, ModuleCounts
from ..workloads.trees import tensors
from .leaves import nodes
from .saved_tensors import ModuleFrames, SavedTensors

COMPOSITE: Final = "CompositeImplicitAutograd"
DETACH: Final = torch.ops.aten.detach.default
DETACHED: Final = "aten.detach, or an output that is saved"
"""A node that saves its own output copies it shallowly, which a dispatch mode sees as a detach."""


def counted(
    call: Callable[[], object], modules: Mapping[str, nn.Module], resident: Iterable[Tensor]
) -> dict[str, ModuleCounts]:
    """Call twice; return what each module's own forward did, by path, as they first ran.

    Once for what is saved, whose hooks make torch dispatch more, and once for all else.
    """
    with SavedTensors(modules=modules, apart=resident) as saved:
        call()
    watch = _Dispatched(ModuleFrames(modules))
    before = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined] # of torch's own tracer
    with watch:
        output = call()
    made: dict[str, Counter[str]] = defaultdict(Counter)
    owners = {id(p): path for path, module in modules.items() for p in module.parameters(False)}
    for node in nodes(output):
        number = node._sequence_nr()
        variable = getattr(node, "variable", None)
        if variable is not None:  # a parameter's: it has no number in the sequence
            made[owners.get(id(variable), OUTSIDE)][node.name()] += 1
        elif number >= before:
            made[watch.module_after(number)][node.name()] += 1
    saved_bytes = saved.by_module()
    paths = dict.fromkeys([*watch.operators, *made, *saved_bytes])
    return {
        path: ModuleCounts(
            operators=dict(watch.operators.get(path, {})),
            nodes=dict(made.get(path, {})),
            saved_bytes=saved_bytes.get(path, 0),
            tracked_views=watch.views[path],
            version_counters=watch.versions[path],
        )
        for path in paths
    }


class _Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Counts what is dispatched below autograd, on the account of the module that runs."""

    def __init__(self, where: ModuleFrames) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # the same
        self._where = where
        self.operators: dict[str, Counter[str]] = defaultdict(Counter)
        self.views: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self._numbers: list[int] = []  # of the sequence, at each operator
        self._modules: list[str] = []

    def module_after(self, number: int) -> str:
        """Return the module whose operator was the first after a node of this number was made."""
        place = bisect_right(self._numbers, number)
        return self._modules[place] if place < len(self._modules) else OUTSIDE

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
        self._modules.append(module)
        result = func(*args, **(kwargs or {}))
        self.operators[module][str(func) if func is not DETACH else DETACHED] += 1
        given = {id(tensor) for _, tensor in tensors((args, kwargs or {}))}
        for _, tensor in tensors(result):
            if id(tensor) not in given and not tensor.is_inference():
                self.versions[module] += not func.is_view  # a view has its base's
                self.views[module] += func.is_view and func is not DETACH
        return result
