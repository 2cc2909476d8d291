"""How a module is spread over the ranks of a process group: replicated (DDP), sharded (FSDP2)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..errors import Impossible

Spread = Callable[[nn.Module, Iterable[nn.Module], str], nn.Module]
"""Takes a module, its blocks and its device; returns what is called in its place."""

SHARDING: Final = ("torch.distributed.fsdp",)
"""Modules that sharding takes, which torch imports when they are asked for: in a second."""

FAKE: Final = "fake"
"""The backend by which one process plays a rank: collectives return at once, with no numbers."""

NO_GROUP: Final = "its step takes ranks, and none were started: gradbench run starts them"


_meshes: dict[str, DeviceMesh] = {}
"""Of all ranks, by family of devices: made with the process group, and no part of a model."""


@contextmanager
def process_group(
    backend: str,
    *,
    rank: int,
    world_size: int,
    limit_s: float,
    family: str,
    meeting_place: str | None = None,
) -> Iterator[None]:
    """Be a rank of the default process group, on a family of devices, while entered.

    ``meeting_place`` is the URL of a file by which ranks find one another; the backend `FAKE` needs
    none.
    """
    if not dist.is_available():
        raise Impossible("this torch was built without torch.distributed")
    dist.init_process_group(
        backend,
        init_method=meeting_place,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=limit_s),
    )
    try:
        _meshes[family] = init_device_mesh(family, (world_size,))
        yield
    finally:
        _meshes.clear()
        dist.destroy_process_group()


class FakeReplica(nn.Module):
    """Stands for DDP on fake tensors, into which its reducer would look for bytes.

    It holds what the reducer does: buckets with room for every gradient.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        trained = (one for one in module.parameters() if one.requires_grad)
        with torch.no_grad():
            self.buckets = [torch.empty_like(one) for one in trained]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)


def replicated(module: nn.Module, _blocks: Iterable[nn.Module], _device: str) -> nn.Module:
    """Return the module in `torch.nn.parallel.DistributedDataParallel`, as it is by default."""
    _hold_that_there_is_a_group()
    if dist.get_backend() == FAKE:
        return FakeReplica(module)
    return nn.parallel.DistributedDataParallel(module)


def sharded(module: nn.Module, blocks: Iterable[nn.Module], device: str) -> nn.Module:
    """Shard the module in its place by `torch.distributed.fsdp.fully_shard`, as it is by default.

    The parameters of each block are gathered together, and so are those of no block.
    """
    _hold_that_there_is_a_group()
    from torch.distributed.fsdp import fully_shard

    mesh = _meshes[device.partition(":")[0]]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def _hold_that_there_is_a_group() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise Impossible(NO_GROUP)
