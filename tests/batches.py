"""Batches that models of tests are called with; importable in measuring processes."""

from collections.abc import Sequence

import torch
from torch import Tensor


def unlabelled(size: int, *, shape: Sequence[int]) -> Tensor:
    """Return a random input (size, \\*shape), for losses that need no target."""
    return torch.randn(size, *shape)
