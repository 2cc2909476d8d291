"""A doctor for one call: what the grad modes did to it."""

import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .analysis import format_units
from .call_threads import CallThreads
from .lazy_results import check_done
from .memory.called_modules import called_modules
from .memory.leaves import nodes, tensors_within
from .memory.saved_tensors import (
    ModuleFrames,
    SavedTensors,
    meeting,
    refuses_hooks,
    users_line,
)
from .memory.storages import shape
from .plurals import counted
from .workloads.module_parts import buffers, named_parameters
from .workloads.trees import tensors

MANY: Final = 5
"""Findings that the repr shows of each kind."""


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


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a call that its author may want to change.

    ``kind`` is one of `KINDS`, ``place`` is "nets.py:12 in forward" or "".
    """

    kind: str
    text: str
    place: str
    cure: str

    def __str__(self) -> str:
        at = f" ({self.place})" if self.place else ""
        return f"{self.text}{at}: {self.cure}"


KINDS: Final[Mapping[str, str]] = {
    "mode_left": "enter the mode by a with statement, which puts back what was there",
    "thread_mode": "enter the mode in the thread, too: a new thread begins with grad on",
    "out_of_sight": "start the thread in the call, or use a ThreadPoolExecutor",
    "graph_in_vain": "return what backward() is to begin from, or enter no_grad",
    "not_used": "use it in forward, or freeze it: requires_grad_(False)",
    "used_without_grad": "take this use out of no_grad, or freeze it: requires_grad_(False)",
    "leads_nowhere": "return what is computed from it, or freeze it: requires_grad_(False)",
    "inference_output": "clone() it outside of inference mode before autograd is to use it",
    "switch": "none needed where it is meant",
}
"""What can be found, and the cure."""


@dataclass(frozen=True, slots=True, repr=False)
class Observation:
    """What the modes did to one call.

    Every field is a fact to assert on: ``assert not observation.graph_built``. ``saved`` and
    ``saved_bytes`` are None where a graph was built ``out_of_sight``, which says where, and where
    the call fails with the hooks that count them.
    """

    entry: State
    exit: State
    graph_built: bool  # was any operation recorded?
    saved: int | None  # storages that autograd saved, beyond parameters, buffers and inputs
    saved_bytes: int | None
    without_gradient: Mapping[str, str]  # parameters that require grad and would get none -> why
    inference_outputs: tuple[str, ...]  # where inference tensors are in what was returned
    switches: tuple[Switch, ...]  # in order
    thread_modes: tuple[Switch, ...] = ()  # in which other threads of the call used torch
    out_of_sight: str = ""

    @property
    def leaked(self) -> bool:
        """Whether the call left another state than it found."""
        return self.entry != self.exit

    @property
    def switched(self) -> bool:
        """Whether the state was changed inside, also if it was put back."""
        return bool(self.switches)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What its author may want to change, each with its place and its cure."""
        return tuple(self._findings())

    def _findings(self) -> Iterator[Finding]:
        if self.leaked:
            yield _finding("mode_left", f"LEAKED: left with {self.exit}", self._last_switch())
        for mode in dict.fromkeys(self.thread_modes):
            if mode.to != self.entry:
                words = f"another thread works with {mode.to}, the call with {self.entry}"
                yield _finding("thread_mode", words, mode.line)
        if self.out_of_sight:
            yield _finding("out_of_sight", f"not all was seen: {self.out_of_sight}", "")
        if self.graph_built and not self.entry.grad:
            yield _finding("graph_in_vain", "a graph is built though grad is off outside", "")
        for name, why in self.without_gradient.items() if self._trains else ():
            yield _without_gradient(name, why)
        for path in self.inference_outputs:
            yield _finding("inference_output", f"{path} is an inference tensor", "")
        for switch in self.switches:
            yield _finding("switch", f"switches to {switch.to}", switch.line)

    @property
    def _trains(self) -> bool:
        """Whether anybody could want gradients of it: else all parameters would be named."""
        return self.entry.grad or self.graph_built

    def _last_switch(self) -> str:
        return self.switches[-1].line if self.switches else ""

    def __repr__(self) -> str:
        saved = (
            "what is saved is not known"
            if self.saved is None or self.saved_bytes is None
            else f"{counted(self.saved, 'tensor')}, {format_units.size(self.saved_bytes)} saved"
        )
        lines = [
            f"entered with {self.entry}; graph {'built' if self.graph_built else 'not built'}; "
            f"{saved}"
        ]
        for _, group in groupby(self.findings, key=lambda finding: finding.kind):
            alike = list(group)
            lines += [str(finding) for finding in alike[:MANY]]
            if len(alike) > MANY:
                lines.append(f"and {len(alike) - MANY} more like that")
        return "Observation: " + "\n  ".join(lines)


def _finding(kind: str, text: str, place: str) -> Finding:
    return Finding(kind, text, place, KINDS[kind])


def _without_gradient(name: str, why: str) -> Finding:
    if why.startswith(GRAD_OFF):
        place = why.removeprefix(GRAD_OFF).removeprefix(": ")
        return _finding("used_without_grad", f"{name} gets no gradient, {GRAD_OFF}", place)
    kind = "not_used" if why == NOT_USED else "leads_nowhere"
    return _finding(kind, f"{name} gets no gradient, {why}", "")


GRAD_OFF: Final = "used with grad off"
NOT_USED: Final = "not used"


def observe(function: Callable[..., object], *inputs: Any, **options: Any) -> Observation:
    """Run a callable once and return what the grad modes did to it.

    Parameters are those of modules that the callable is, is a method of, has as an attribute, is a
    partial of, closes over or is given, and every other leaf that requires grad and that an
    operation used; a name that is not a module's is its shape and the line that used it first. A
    parameter is without gradient where no path leads to it from what the call returned and no
    backward() inside the call reached it. One on meta is left out, unless the call returns what is
    there, too: such modules are skeletons, called with others' parameters.

    What the call raises is raised, and `LazyResult` where it returned a generator, a coroutine or
    another iterator: then its body has not run. The grad bit is put back as it was at entry, leaked
    or not; an inference mode that leaked is held by whatever entered it, and is left.

    A call that fails with hooks on what autograd saves, as `torch.func` does, is made a second time
    without: what is saved is not known then. Operations are seen through a ``TorchFunctionMode``,
    so inside compiled code nothing is seen but what is saved and what is returned.
    """
    roots = called_modules(function, inputs, options)
    parameters = _parameters(roots)
    apart = [
        *parameters.values(),
        *(buffer for root in roots for buffer in buffers(root)),
        *(tensor for _, tensor in tensors((inputs, options))),
    ]
    marks = {id(tensor): _gradient_mark(tensor) for tensor in parameters.values()}
    entry = _state()
    call, watch, saved = partial(function, *inputs, **options), _Watch(), SavedTensors(apart=apart)
    seen: SavedTensors | None = saved
    try:
        try:
            with saved, meeting(ModuleFrames({}), saved.leave_out):
                outputs = watch.called(call)
        except RuntimeError as error:
            if not refuses_hooks(str(error)):
                raise
            torch.set_grad_enabled(entry.grad)
            watch, seen = _Watch(), None
            outputs = watch.called(call)
        left = _state()
    finally:
        torch.set_grad_enabled(entry.grad)
    check_done(outputs, call="the call")
    returned = list(tensors(outputs))
    given = {tensor.grad_fn for _, tensor in tensors((inputs, options))}
    built = any(tensor.grad_fn not in given for _, tensor in returned if tensor.grad_fn is not None)
    known = [] if seen is None else seen.saved
    reached = _reached([tensor for tensor in tensors_within(outputs) if tensor is not None])
    blind = "a graph leads to what a thread made that was there before the call"
    unseen = saved.hooks.unseen(outputs) - set(nodes((inputs, options))) if seen else set()
    count = None if unseen or seen is None else len(known)
    return Observation(
        entry=entry,
        exit=left,
        graph_built=built or watch.recorded or bool(known),
        saved=count,
        saved_bytes=None if count is None else saved.nbytes,
        without_gradient=_missing_gradients(
            _there(parameters, on_meta=any(tensor.is_meta for _, tensor in returned)),
            marks,
            watch,
            reached,
        ),
        inference_outputs=tuple(path for path, tensor in returned if tensor.is_inference()),
        switches=tuple(watch.switches),
        thread_modes=tuple(watch.thread_modes),
        out_of_sight=blind if unseen else "",
    )


def _there(parameters: Mapping[str, Tensor], *, on_meta: bool) -> dict[str, Tensor]:
    """Return the parameters without those on meta, which are a skeleton that others are put into.

    Unless the call works on meta itself.
    """
    return {name: one for name, one in parameters.items() if on_meta or not one.is_meta}


def _missing_gradients(
    parameters: Mapping[str, Tensor],
    marks: Mapping[int, tuple[int, int] | None],
    watch: "_Watch",
    reached: Container[int],
) -> dict[str, str]:
    """Return the leaves that got no gradient and get none from what was returned, and why."""
    leaves = {**parameters, **watch.leaves(marks)}
    marks = {**watch.marks(), **marks}  # of a parameter, the earlier one
    return {
        name: watch.why(tensor)
        for name, tensor in leaves.items()
        if tensor.requires_grad
        and id(tensor) not in reached
        and marks[id(tensor)] == _gradient_mark(tensor)
    }


class _Watch(TorchFunctionMode):
    """Sees each operation: what state it runs in, which leaves it uses, whether it is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.switches: list[Switch] = []
        self.recorded = False
        self.thread_modes: list[Switch] = []
        self._caller = threading.get_ident()
        self._inference = {self._caller: torch.is_inference_mode_enabled()}
        self._uses: dict[int, _Use] = {}

    def called(self, call: Callable[[], object]) -> object:
        """Return what a call returns that is watched, in all of its threads."""
        with CallThreads(lambda: self), self:
            return call()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],  # torch's protocol
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        state = _state()
        thread = threading.get_ident()
        if thread != self._caller and thread not in self._inference:
            self.thread_modes.append(Switch(state, users_line()))
        # Entering inference mode calls nothing that could be seen.
        if state.inference != self._inference.setdefault(thread, state.inference):
            self._inference[thread] = state.inference
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
            return NOT_USED
        if not use.recorded:
            return f"{GRAD_OFF}: {use.line}" if use.line else GRAD_OFF
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
    variables = (getattr(node, "variable", None) for node in nodes(outputs))
    return leaves | {id(variable) for variable in variables if variable is not None}


def _parameters(roots: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Return the parameters by path, each once; of several roots the path says whose."""
    parameters: dict[str, Tensor] = {}
    visited: set[int] = set()
    for number, root in enumerate(roots):
        prefix = f"{type(root).__name__}{number}." if len(roots) > 1 else ""
        for name, parameter in named_parameters(root):
            if id(parameter) not in visited:
                visited.add(id(parameter))
                parameters[prefix + name] = parameter
    return parameters
