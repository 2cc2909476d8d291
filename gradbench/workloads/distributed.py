"""How a module is spread over the ranks of a process group: replicated (DDP), sharded (FSDP2)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import torch.distributed as dist
from torch import nn

from ..errors import Impossible

Spread = Callable[[nn.Module, Iterable[nn.Module], str], nn.Module]
"""Takes a module, its blocks and its device; returns what is called in its place."""

SHARDING: Final = ("torch.distributed.device_mesh", "torch.distributed.fsdp")
"""Modules that sharding takes, which torch imports when they are asked for: in a second."""

NO_GROUP: Final = "its step takes ranks, and none were started: gradbench run starts them"


@contextmanager
def process_group(
    backend: str, *, rank: int, world_size: int, limit_s: float, meeting_place: str | None = None
) -> Iterator[None]:
    """Be a rank of the default process group while entered.

    ``meeting_place`` is the URL of a file by which ranks find one another. The backend ``fake``,
    by which one process plays a rank without the others, needs none.
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
        yield
    finally:
        dist.destroy_process_group()


def replicated(module: nn.Module, _blocks: Iterable[nn.Module], _device: str) -> nn.Module:
    """Return the module in `torch.nn.parallel.DistributedDataParallel`, as it is by default."""
    _hold_that_there_is_a_group()
    return nn.parallel.DistributedDataParallel(module)


def sharded(module: nn.Module, blocks: Iterable[nn.Module], device: str) -> nn.Module:
    """Shard the module in its place by `torch.distributed.fsdp.fully_shard`, as it is by default.

    The parameters of each block are gathered together, and so are those of no block.
    """
    _hold_that_there_is_a_group()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.partition(":")[0], (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def _hold_that_there_is_a_group() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise Impossible(NO_GROUP)
