"""How far each mode's output lies from ``global_on``'s: a mode should change what it costs alone.

Each arm is called from the state and with the random numbers that all its visits begin with, so
that modules which draw, such as dropout, draw the same in every mode.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from ..devices import Device
from ..experiment.matrix import RECORDING
from ..workloads.trees import outlined, tensors
from .attempts import Message, Refusal, Trying, guarded, skip
from .outcomes import Figure, outcome
from .visits import VisitedArm

NAME: Final = "output_difference"
PPT: Final = 10**12
"""Parts in the unit of the meter: a relative difference is written down as a whole number."""
CHUNK: Final = 2**22  # elements that are converted at once
NO_TENSOR: Final = "the output has no tensor in tuples, lists, dicts or dataclasses ({})"


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest differences of two outputs; both are 0 where they are equal to the bit."""

    absolute: float
    relative: float  # to the largest number of the tensor that it was found in

    def ppt(self) -> int:
        """Return the relative difference in parts per trillion, never 0 for one that is there."""
        return math.ceil(self.relative * PPT)


def output_differences(arms: Sequence[VisitedArm], device: Device) -> Iterator[Message]:
    """Yield the figure of each arm, or why it has none."""
    reference = next((arm for arm in arms if arm.cell.grad_mode == RECORDING), None)
    if reference is None:
        why = Refusal("unreadable", f"{RECORDING}, which outputs are held against, was not run")
        yield from (skip(arm.cell, NAME, why) for arm in arms)
        return
    expected = guarded(partial(_output, reference, device), device)
    for arm in arms:
        yield Trying(arm.cell)
        output = expected if arm is reference else guarded(partial(_output, arm, device), device)
        yield outcome(arm.cell, NAME, _figure(device, expected, output))


def _figure(
    device: Device, expected: dict[str, Tensor] | Refusal, output: dict[str, Tensor] | Refusal
) -> Figure | Refusal:
    if isinstance(expected, Refusal):
        return expected
    if isinstance(output, Refusal):
        return output
    difference = guarded(partial(compared, expected, output), device)
    if isinstance(difference, Refusal):
        return difference
    if isinstance(difference, str):
        return Refusal("failed", difference)
    notes = {"absolute": difference.absolute, "relative": difference.relative}
    return Figure(difference.ppt(), notes if difference.absolute else {})


def _output(arm: VisitedArm, device: Device) -> dict[str, Tensor] | Refusal:
    """Return the tensors of one call's output by path, on the host: calls may share memory.

    Or why there are none.
    """
    with arm.held():
        output = arm.arm.workload.output(arm.arm.subject, arm.arm.mode)
        device.synchronize()
    by_path = {path: _on_host(tensor) for path, tensor in tensors(output)}
    return by_path or Refusal("unreadable", NO_TENSOR.format(outlined(output, numbers=False)))


def _on_host(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.to("cpu", copy=True).resolve_conj().resolve_neg()


def compared(expected: dict[str, Tensor], output: dict[str, Tensor]) -> Difference | str:
    """Return the largest differences, or in words why two outputs are not of one kind."""
    shapes = [
        {path: tuple(tensor.shape) for path, tensor in side.items()} for side in (expected, output)
    ]
    if shapes[0] != shapes[1]:
        return f"its output is {_shapes(shapes[1])}, and {RECORDING}'s is {_shapes(shapes[0])}"
    absolute = relative = 0.0
    for path, one in expected.items():
        other = output[path]
        if one.dtype == other.dtype and torch.equal(one, other):
            continue
        apart, largest = _apart(one.reshape(-1), other.reshape(-1))
        if math.isnan(apart):
            return f"{path} is not finite where {RECORDING}'s is, or the other way round"
        absolute = max(absolute, apart)
        relative = max(relative, apart / largest if largest else 0.0)
    return Difference(absolute, relative)


def _apart(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the largest difference and the largest number of two flat tensors.

    What is no number, or infinite, and the same on both sides, is no difference; on one side alone
    the difference is NaN.
    """
    wide = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
    apart = largest = 0.0
    for start in range(0, one.numel(), CHUNK):
        a, b = (side[start : start + CHUNK].to(wide) for side in (one, other))
        same = (a == b) | (a.isnan() & b.isnan())
        finite = a.isfinite() & b.isfinite()
        if not bool((same | finite).all()):
            return math.nan, math.nan
        if bool(finite.any()):
            a, b = a[finite], b[finite]
            apart = max(apart, float((a - b).abs().max()))
            largest = max(largest, float(a.abs().max()), float(b.abs().max()))
    return apart, largest


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{path} {list(shape)}" for path, shape in shapes.items()) or "without tensors"
