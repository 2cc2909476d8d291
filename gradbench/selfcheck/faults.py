"""Faults of known kind, built into a model: what a gate must find when it is asked to."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from ..workloads.models import Model

EXTRA_BYTES: Final = 4096


class Slowed(nn.Module):
    """A model that computes everything ``times`` times over."""

    def __init__(self, inner: nn.Module, *, times: int = 2) -> None:
        super().__init__()
        self.inner, self._times = inner, times

    def forward(self, x: Tensor) -> Tensor:
        """Return what the model returns."""
        for _ in range(self._times - 1):
            self.inner(x)
        output: Tensor = self.inner(x)
        return output


class Retaining(nn.Module):
    """A model that holds on to its last output, and so to the graph behind it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return what the model returns, while the last graph is still alive."""
        output: Tensor = self.inner(x)
        self._last = output
        return output


class Saving(nn.Module):
    """A model that has one more tensor saved for backward, of `EXTRA_BYTES`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.extra = nn.Parameter(torch.zeros(EXTRA_BYTES // 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the model returns and nothing, exponentially: exp saves its output."""
        output: Tensor = self.inner(x)
        return output + 0 * self.extra.exp().sum()


class Wrapped:
    """A model's ``build``, its module put into another; travels to other processes by name."""

    def __init__(
        self, build: Callable[[], nn.Module], wrap: Callable[[nn.Module], nn.Module]
    ) -> None:
        self._build, self._wrap = build, wrap

    def __call__(self) -> nn.Module:
        """Return the wrapped module."""
        return self._wrap(self._build())


def injected(model: Model, wrap: Callable[[nn.Module], nn.Module]) -> Model:
    """Return the model with a fault built in."""
    return replace(model, build=Wrapped(model.build, wrap), head=None)
