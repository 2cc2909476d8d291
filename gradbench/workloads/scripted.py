"""TorchScript: an executor keeps to the graph of its first runs, so each mode has its own."""

import copy
import io
from typing import Any

import torch
from torch import nn

from .module_parts import parts, tensors_of


def with_own_executors(module: nn.Module) -> nn.Module:
    """Return a copy whose TorchScript has run in no mode yet; the tensors are the module's own.

    Under inference mode a graph fails that was first run where autograd records, and one that was
    first run in inference mode is slow where autograd records. Without TorchScript it is the module
    itself.
    """
    scripts = [part for part in parts(module) if isinstance(part, torch.jit.ScriptModule)]
    if not scripts:
        return module
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors_of(module)}
    inside = {id(part) for one in scripts for part in parts(one) if part is not one}
    memo |= {id(one): _reloaded(one) for one in scripts if id(one) not in inside}
    return copy.deepcopy(module, memo)


def _reloaded(script: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.jit.save(script, file)
    file.seek(0)
    loaded: nn.Module = torch.jit.load(file)  # type: ignore[no-untyped-call] # torch leaves it untyped
    tensors = {**dict(script.named_parameters()), **dict(script.named_buffers())}
    for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()):
        tensor.data = tensors[name].data
    return loaded
