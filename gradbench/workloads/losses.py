"""A loss for any output: its own, one with labels, or the mean square of what can be trained."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from ..errors import Impossible
from .trees import Batch, outlined, tensors


def automatic(output: object, batch: object) -> Tensor:
    """Return the loss that the output holds, or else one that is made of it.

    With labels as the batch's target it is the cross-entropy, otherwise the `mean_square`.
    """
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.numel() == 1 and own.is_floating_point():
        return own
    target = batch.target if isinstance(batch, Batch) else None
    if isinstance(target, Tensor) and isinstance(output, Tensor):
        return functional.cross_entropy(output, target)
    return mean_square(output, batch)


def mean_square(output: object, _batch: object) -> Tensor:
    """Return the mean of the squared output, summed over its floating and complex tensors."""
    squares = [
        (one.abs() if one.is_complex() else one).square().mean()
        for _, one in tensors(output)
        if (one.is_floating_point() or one.is_complex()) and one.numel()
    ]
    if not squares:
        raise Impossible(
            "its output has no floating-point tensor in tuples, lists, dicts or dataclasses to "
            f"train it by ({outlined(output, numbers=False)}): give a loss"
        )
    total = squares[0]
    for square in squares[1:]:
        total = total + square
    return total
