"""Which copies in another dtype autocast makes, and which the model itself, on fake tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

COPIES: Final = torch.ops.aten._to_copy.default

OWN: Final = frozenset(
    {Tensor.to, Tensor.type, Tensor.type_as, Tensor.cpu, Tensor.cuda}
    | {Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16}
    | {Tensor.backward, torch.autograd.backward, torch.autograd.grad}
)
"""Functions in which a copy is the caller's wish, or of a gradient."""


class FunctionsCalled(TorchFunctionMode):
    """Knows which of torch's functions a step is in: autocast works below them, and has no name.

    What a function calls is not seen. So it is entered again where backward computes a checkpoint
    again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._running: list[Callable[..., Any]] = []

    def makes_casts(self, func: object) -> bool:
        """Return whether an operator that is run now is a copy that autocast makes."""
        return func is COPIES and bool(self._running) and self._running[-1] not in OWN

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],  # torch's signature
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function, and know of it meanwhile."""
        self._running.append(func)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._running.pop()
