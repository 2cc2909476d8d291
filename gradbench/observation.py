"""A doctor for one call: what the grad modes did to it."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .lazy_results import check_done
from .memory.called_modules import called_modules
from .memory.saved_tensors import SavedTensors, users_line
from .memory.storages import shape
from .workloads.trees import tensors

MANY: Final = 5
"""Names that the repr shows of each kind."""


@dataclass(frozen=True, slots=True)
class State:
    """The two bits of a thread."""

    grad: bool
    inference: bool

    def __str__(self) -> str:
        return f"grad {'on' if self.grad else 'off'}{', inference mode' if self.inference else ''}"


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of the state inside the call."""

    to: State
    line: str  # "nets.py:12 in forward", or ""

    def __str__(self) -> str:
        return f"{self.to} at {self.line}" if self.line else str(self.to)


@dataclass(frozen=True, slots=True, repr=False)
class Observation:
    """What the modes did to one call.

    Every field is a fact to assert on: ``assert not observation.graph_built``.
    """

    entry: State
    exit: State
    graph_built: bool  # was any operation recorded?
    saved: int  # storages that autograd saved for backward, beyond parameters, buffers and inputs
    saved_bytes: int
    without_gradient: Mapping[str, str]  # parameters that require grad and would get none -> why
    inference_outputs: tuple[str, ...]  # where inference tensors are in what was returned
    switches: tuple[Switch, ...]  # in order

    @property
    def leaked(self) -> bool:
        """Whether the call left another state than it found."""
        return self.entry != self.exit

    @property
    def switched(self) -> bool:
        """Whether the state was changed inside, also if it was put back."""
        return bool(self.switches)

    def __repr__(self) -> str:
        left = f"; LEAKED: left with {self.exit}" if self.leaked else ""
        parts = [
            f"entered with {self.entry}{left}",
            f"graph {'built' if self.graph_built else 'not built'}",
            f"{self.saved} tensor{'s' * (self.saved != 1)}, {self.saved_bytes:,} B saved",
        ]
        for label, names in (
            (
                "without gradient",
                [f"{name} ({why})" for name, why in self.without_gradient.items()],
            ),
            ("inference tensors", list(self.inference_outputs)),
            ("switches", [str(switch) for switch in self.switches]),
        ):
            if names:
                more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
                parts.append(f"{label}: {', '.join(names[:MANY])}{more}")
        return f"Observation({'; '.join(parts)})"


def observe(function: Callable[..., object], *inputs: Any, **options: Any) -> Observation:
    """Run a callable once and return what the grad modes did to it.

    Parameters are those of modules that the callable is, is a method of, has as an attribute, is a
    partial of, closes over or is given, and every other leaf that requires grad and that an
    operation used; a name that is not a module's is its shape and the line that used it first. A
    parameter is without gradient where no path leads to it from what the call returned and no
    backward() inside the call reached it.

    What the call raises is raised, and `LazyResult` where it returned a generator, a coroutine or
    another iterator: then its body has not run. The grad bit is put back as it was at entry, leaked
    or not; an inference mode that leaked is held by whatever entered it, and is left.

    Operations are seen through a ``TorchFunctionMode``, so inside compiled code nothing is seen but
    what is saved and what is returned.
    """
    roots = called_modules(function, inputs, options)
    parameters = _parameters(roots)
    apart = [
        *parameters.values(),
        *(buffer for root in roots for buffer in root.buffers()),
        *(tensor for _, tensor in tensors((inputs, options))),
    ]
    marks = {id(tensor): _gradient_mark(tensor) for tensor in parameters.values()}
    entry = _state()
    watch = _Watch()
    try:
        with SavedTensors(apart=apart) as saved, watch:
            outputs = function(*inputs, **options)
        left = _state()
    finally:
        torch.set_grad_enabled(entry.grad)
    check_done(outputs, call="the call")
    returned = list(tensors(outputs))
    given = {tensor.grad_fn for _, tensor in tensors((inputs, options))}
    built = any(tensor.grad_fn not in given for _, tensor in returned if tensor.grad_fn is not None)
    reached = _reached([tensor for _, tensor in returned])
    leaves = {**parameters, **watch.leaves(marks)}
    marks = {**watch.marks(), **marks}  # of a parameter, the earlier one
    missing = {
        name: watch.why(tensor)
        for name, tensor in leaves.items()
        if tensor.requires_grad
        and id(tensor) not in reached
        and marks[id(tensor)] == _gradient_mark(tensor)
    }
    return Observation(
        entry=entry,
        exit=left,
        graph_built=built or watch.recorded or bool(saved.saved),
        saved=len(saved.saved),
        saved_bytes=saved.nbytes,
        without_gradient=missing,
        inference_outputs=tuple(path for path, tensor in returned if tensor.is_inference()),
        switches=tuple(watch.switches),
    )


class _Watch(TorchFunctionMode):
    """Sees each operation: what state it runs in, which leaves it uses, whether it is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.switches: list[Switch] = []
        self.recorded = False
        self._inference = torch.is_inference_mode_enabled()
        self._uses: dict[int, _Use] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],  # torch's protocol
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        state = _state()
        if state.inference != self._inference:  # entering it calls nothing that could be seen
            self._inference = state.inference
            self.switches.append(Switch(state, users_line()))
        given = [tensor for _, tensor in tensors((args, kwargs or {}))]
        histories = {tensor.grad_fn for tensor in given}
        result = func(*args, **(kwargs or {}))
        if _state() != state:
            self.switches.append(Switch(_state(), users_line()))
        made = [tensor for _, tensor in tensors(result)]
        if made and func not in _LOOKS:
            self._note(given, records=state.grad and not state.inference)
            self.recorded = self.recorded or any(
                tensor.grad_fn not in histories for tensor in made if tensor.grad_fn is not None
            )
        return result

    def _note(self, given: Sequence[Tensor], *, records: bool) -> None:
        for tensor in given:
            if tensor.requires_grad and tensor.is_leaf:
                if id(tensor) not in self._uses:
                    self._uses[id(tensor)] = _Use(tensor, users_line(), _gradient_mark(tensor))
                self._uses[id(tensor)].recorded |= records

    def leaves(self, known: Container[int]) -> dict[str, Tensor]:
        """Return the leaves that were used and whose id is not known, by shape and line.

        A view that was made with grad off counts as its base, which was used when it was made.
        """
        return {
            f"{shape(use.tensor)} {use.line}".rstrip(): use.tensor
            for key, use in self._uses.items()
            if key not in known and use.tensor._base is None
        }

    def marks(self) -> dict[int, tuple[int, int] | None]:
        """Return the gradient's mark of each leaf when it was first used, by id."""
        return {key: use.mark for key, use in self._uses.items()}

    def why(self, tensor: Tensor) -> str:
        """Return why a parameter gets no gradient."""
        use = self._uses.get(id(tensor))
        if use is None:
            return "not used"
        if not use.recorded:
            return f"used with grad off: {use.line}" if use.line else "used with grad off"
        return "used, but nothing that was returned depends on it"


@dataclass(slots=True)
class _Use:
    tensor: Tensor  # held, or its id could be another's
    line: str
    mark: tuple[int, int] | None  # of its gradient
    recorded: bool = False


# Reading these attributes computes nothing.
_LOOKS: Final = frozenset(
    getattr(torch.Tensor, name).__get__ for name in ("grad", "grad_fn", "requires_grad", "is_leaf")
)


def _state() -> State:
    return State(torch.is_grad_enabled(), torch.is_inference_mode_enabled())


def _gradient_mark(tensor: Tensor) -> tuple[int, int] | None:
    """Return what changes when a backward() reaches a parameter, or None without a gradient."""
    gradient = tensor.grad
    if gradient is None:
        return None
    return id(gradient), 0 if gradient.is_inference() else gradient._version


def _reached(outputs: Sequence[Tensor]) -> set[int]:
    """Return the ids of the leaves that a backward() from the outputs would reach."""
    leaves = {id(tensor) for tensor in outputs if tensor.requires_grad and tensor.is_leaf}
    nodes = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    visited = set(nodes)
    while nodes:
        node = nodes.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        for following, _ in node.next_functions:
            if following is not None and following not in visited:
                visited.add(following)
                nodes.append(following)
    return leaves


def _parameters(roots: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Return the parameters by path, each once; of several roots the path says whose."""
    parameters: dict[str, Tensor] = {}
    visited: set[int] = set()
    for number, root in enumerate(roots):
        prefix = f"{type(root).__name__}{number}." if len(roots) > 1 else ""
        for name, parameter in root.named_parameters():
            if id(parameter) not in visited:
                visited.add(id(parameter))
                parameters[prefix + name] = parameter
    return parameters
