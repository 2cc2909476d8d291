"""Whether torch's fused attention ran: one operator in the place of a layer's modules.

`torch.nn.MultiheadAttention` and `torch.nn.TransformerEncoderLayer` take it in ``eval()`` where
nothing is recorded and no hook is set on a module, and allocate otherwise than layer by layer.
"""

from collections.abc import Callable
from typing import Any, Final, Self

import torch
from torch import nn

from ..plurals import counted
from ..workloads.module_parts import parts

LAYERS: Final = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
FUSED: Final = ("_transformer_encoder_layer_fwd", "_native_multi_head_attention")
"""The operators, by their names in torch, where the layers look them up at each call."""


class FusedCalls:
    """Counts the calls of fused attention while entered."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(FUSED, 0)
        self._before: dict[str, Any] = {}

    @property
    def counts(self) -> tuple[int, int]:
        """Calls of whole layers, and of attention alone."""
        whole, attention = self._counts.values()
        return whole, attention

    def __enter__(self) -> Self:
        for name in FUSED:
            if hasattr(torch, name):
                self._before[name] = getattr(torch, name)
                setattr(torch, name, self._counting(name, self._before[name]))
        return self

    def __exit__(self, *_: object) -> None:
        for name, operator in self._before.items():
            setattr(torch, name, operator)

    def _counting(self, name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self._counts[name] += 1
            return operator(*args, **kwargs)

        return counting


def fusible(*roots: nn.Module) -> list[nn.Module]:
    """Return the layers that have a fused path; the attention inside an encoder layer is its."""
    layers = [one for root in roots for one in parts(root) if isinstance(one, LAYERS)]
    inside = {id(part) for one in layers for part in parts(one) if part is not one}
    return [one for one in layers if id(one) not in inside]


def in_words(counts: tuple[int, int], *roots: nn.Module, recorded: bool) -> str:
    """Return whether a step took the fused path, "" where no layer has one.

    ``recorded`` says whether autograd records where the step's forward runs.
    """
    layers = fusible(*roots)
    if not layers:
        return ""
    whole, attention = counts
    encoders = any(isinstance(one, nn.TransformerEncoderLayer) for one in layers)
    if whole or (attention and not encoders):
        return f"taken: {counted(whole + attention, 'call')} of {counted(len(layers), 'layer')}"
    why_not = _why_not(layers, recorded=recorded)
    if attention:
        calls = counted(attention, "call")
        return f"taken for the attention in the layers alone, {calls}: {why_not}"
    return f"not taken: {why_not}"


def _why_not(layers: list[nn.Module], *, recorded: bool) -> str:
    encoders = [one for one in layers if isinstance(one, nn.TransformerEncoderLayer)]
    hooked = [part for one in encoders for part in parts(one) if _has_hooks(part)]
    if hooked:
        return f"hooks are set on {type(hooked[0]).__name__}, and torch leaves it for them"
    if any(one.training for one in layers):
        return "the layers are in train()"
    if recorded:
        return "autograd records"
    return "torch asks for more than these layers or inputs have"


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
