"""How a module is spread over the ranks of a process group: replicated (DDP), sharded (FSDP2)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..errors import DeviceUnavailable, Impossible, in_one_line

Spread = Callable[[nn.Module, Iterable[nn.Module], str], nn.Module]
"""Takes a module, its blocks and its device; returns what is called in its place."""

SHARDING: Final = ("torch.distributed.fsdp",)
"""Modules that sharding takes, which torch imports when they are asked for: in a second."""

FAKE: Final = "fake"
"""The backend by which one process plays a rank: collectives return at once, with no numbers."""

NO_GROUP: Final = "its step takes ranks, and none were started: gradbench run starts them"

BROADCAST_BYTES: Final = 250 * 2**20
"""How much of a module's buffers DDP sends at once."""

NOTHING_TRAINED: Final = (
    "DistributedDataParallel is not needed when a module doesn't have any parameter that "
    "requires a gradient."
)
"""Torch's words."""

UNFINISHED: Final = (
    "Expected to have finished reduction in the prior iteration before starting a new one."
)
"""How torch's words begin where a step left parameters without a gradient."""


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
    none. Raise `DeviceUnavailable` where they cannot.
    """
    if missing := lacking(backend):
        raise DeviceUnavailable(missing)
    try:
        dist.init_process_group(
            backend,
            init_method=meeting_place,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=limit_s),
        )
    except RuntimeError as error:
        raise DeviceUnavailable(
            f"ranks cannot reach one another by {backend}: {in_one_line(error)}"
        ) from error
    try:
        _meshes[family] = init_device_mesh(family, (world_size,))
        yield
    finally:
        _meshes.clear()
        dist.destroy_process_group()


def lacking(backend: str) -> str:
    """Return in words what this torch lacks of what ranks talk by, "" for nothing."""
    if not dist.is_available():
        return "this torch was built without torch.distributed"
    if not dist.is_backend_available(backend):
        return f"this torch was built without {backend}, by which ranks talk on this device"
    return ""


class FakeReplica(nn.Module):
    """Stands for DDP on fake tensors, into which its reducer would look for bytes.

    It holds what the reducer does: buckets with room for every gradient. As DDP does, it sends the
    module's buffers before a first forward and before one that follows a recorded one, and refuses
    what DDP refuses.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        trained = [one for one in module.parameters() if one.requires_grad]
        if not trained:
            raise RuntimeError(NOTHING_TRAINED)
        with torch.no_grad():
            self.buckets = [torch.empty_like(one) for one in trained]
        self._awaited: set[int] = set()  # gradients, until they are there
        self._sends = True
        for number, parameter in enumerate(trained):
            parameter.register_post_accumulate_grad_hook(partial(self._accumulated, number))  # type: ignore[no-untyped-call] # torch leaves it untyped

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Send the buffers and call the module."""
        buffers = list(self.module.buffers())
        if self._sends and buffers:
            _send(buffers)
        output = self.module(*args, **kwargs)
        self._sends = torch.is_grad_enabled()
        if self._sends:
            if 0 < len(self._awaited) < len(self.buckets):
                raise RuntimeError(UNFINISHED)
            self._awaited = set(range(len(self.buckets)))
        return output

    def _accumulated(self, number: int, _: Tensor) -> None:
        self._awaited.discard(number)


@torch.no_grad()
def _send(buffers: list[Tensor]) -> None:
    """Send buffers from the first rank to all, as DDP does: several of a dtype at once."""
    from torch._C._distributed_c10d import _broadcast_coalesced
    from torch.distributed.distributed_c10d import _get_default_group

    _broadcast_coalesced(_get_default_group(), buffers, BROADCAST_BYTES, 0)


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
