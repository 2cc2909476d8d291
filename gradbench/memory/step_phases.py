"""What an allocator cannot know: the phase that a step is in, and what its blocks are for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ..devices import nothing
from ..records.allocations import FURTHER, PREFILL, Mark, Phase, Resident, Tag
from ..workloads.generation import Generation, cache_tensors
from ..workloads.module_parts import buffers, parameters
from ..workloads.steps import Subject
from ..workloads.trees import tensors as tree_tensors
from .saved_tensors import Packed, SavingHooks
from .storages import storages


@dataclass(slots=True)
class Marks:
    """Says what it learns from hooks to whoever is `telling`; between times it is silent.

    ``address`` is how blocks are known: by the address of their bytes, or for fake tensors,
    which have none, of their storage object.
    """

    address: Callable[[UntypedStorage], int]
    optimizers: dict[int, torch.optim.Optimizer] = field(default_factory=dict)  # that stepped
    look: Callable[[object], object] | None = None  # at what each forward returns
    unpacking: Callable[[], AbstractContextManager[object]] = nullcontext  # see `SavingHooks`
    _tell: Callable[[Mark], None] | None = None
    _made: int = 0  # tokens of the sequence that is heard of

    def around(self, subject: Subject) -> Subject:
        """Return the subject with a forward and a loss that say when they begin and end.

        One that makes tokens says so itself: its functions are given the module as it is.
        """
        if subject.generation is not None:
            return replace(subject, generation=self._marked(subject.generation))
        forward, loss = subject.forward, subject.loss

        def marked_forward(*args: Any, **kwargs: Any) -> Any:
            self._say(Phase("forward"))
            output = forward(*args, **kwargs)
            if self.look is not None:
                self.look(output)
            return output

        def marked_loss(output: Any, given: Any) -> Tensor:
            self._say(Phase("loss"))
            value = loss(output, given)
            self._say(Phase("backward"))
            return value

        return replace(subject, forward=marked_forward, loss=marked_loss)

    def _marked(self, how: Generation) -> Generation:
        """Return a way to make tokens that says which one begins, and what its cache is."""

        def prefill(model: Any, tokens: Tensor, room: int) -> tuple[Tensor, Any]:
            self._made = 1
            self._say(Phase(PREFILL))
            return self._with_cache(how.prefill(model, tokens, room))

        def decode(model: Any, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
            self._made += 1 if self._made else 0
            self._say(Phase(f"{FURTHER}{self._made}" if self._made else "decode"))
            return self._with_cache(how.decode(model, token, cache))

        return replace(how, prefill=prefill, decode=decode)

    def _with_cache(self, made: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        for tensor in cache_tensors(made[1]):
            self._tag(tensor, "cache")
        if self.look is not None:
            self.look(made)
        return made

    @contextmanager
    def telling(
        self, tell: Callable[[Mark], None], parameters: Iterable[nn.Parameter]
    ) -> Iterator[None]:
        """Tell of phases, saved tensors, gradients as they are accumulated, optimizer state.

        This takes hooks, with which some code fails.
        """
        with ExitStack() as undo:
            for parameter in parameters:
                if parameter.requires_grad:
                    hook = parameter.register_post_accumulate_grad_hook(self._accumulated)  # type: ignore[no-untyped-call] # torch leaves it untyped
                    undo.callback(hook.remove)
            undo.callback(register_optimizer_step_pre_hook(self._optimizing).remove)
            undo.callback(register_optimizer_step_post_hook(self._optimized).remove)
            undo.enter_context(SavingHooks(self._pack, unpacking=self.unpacking))
            self._tell, self._made = tell, 0
            try:
                yield
            finally:
                self._tell = None

    @contextmanager
    def learning_optimizers(self) -> Iterator[None]:
        """Learn which optimizers step while entered, and no more."""
        hook = register_optimizer_step_pre_hook(self._optimizing)
        try:
            yield
        finally:
            hook.remove()

    def state(self) -> Iterator[Tensor]:
        """Yield the state of the optimizers that stepped."""
        for optimizer in self.optimizers.values():
            yield from _state(optimizer)

    def resident(self, subject: Subject, cache: Iterable[Tensor] = ()) -> dict[int, Resident]:
        """Return the blocks that are there between steps, by address, of the next one's cache too.

        Those on the step's device: AdamW counts its steps on the host.
        """
        parts, device = subject.parts(), subject.device
        residents: dict[int, Resident] = {}
        owned: list[tuple[str, Iterable[Tensor]]] = [
            ("parameters", (p for part in parts for p in parameters(part))),
            ("buffers", (b for part in parts for b in buffers(part))),
            ("inputs", (tensor for _, tensor in tree_tensors(subject.given))),
            ("cache", cache),
            (
                "gradients",
                (p.grad for part in parts for p in parameters(part) if p.grad is not None),
            ),
            ("optimizer_state", self.state()),
        ]
        for name, tensors in owned:
            for tensor in tensors:
                if tensor.device != device:
                    continue
                for storage in storages(tensor):
                    if storage.nbytes():
                        block = Resident(storage.nbytes(), name)
                        residents.setdefault(self.address(storage), block)
        return residents

    def _say(self, mark: Mark) -> None:
        if self._tell is not None:
            self._tell(mark)

    def _tag(self, tensor: Tensor, part: str) -> None:
        for storage in storages(tensor):
            self._say(Tag(self.address(storage), part, nbytes=storage.nbytes()))

    def _pack(self, tensor: Tensor) -> Packed:
        self._tag(tensor, "saved")
        return Packed(tensor, nothing)

    def _accumulated(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._tag(parameter.grad, "gradients")

    def _optimizing(self, optimizer: torch.optim.Optimizer, _args: object, _kw: object) -> None:
        self.optimizers[id(optimizer)] = optimizer
        self._say(Phase("optimizer"))

    def _optimized(self, optimizer: torch.optim.Optimizer, _args: object, _kw: object) -> None:
        for tensor in _state(optimizer):
            self._tag(tensor, "optimizer_state")


def _state(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for values in optimizer.state.values():
        for value in values.values() if isinstance(values, Mapping) else ():
            if isinstance(value, Tensor):
                yield value
