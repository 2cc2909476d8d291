"""A rank on fake tensors, without the others: collectives that return at once."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from ..experiment.matrix import Cell
from ..workloads.distributed import FAKE, process_group

LIMIT_S = 60.0
"""The group's own limit: nothing in it ever waits."""


class QuietCollectives(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Lets fake collectives draw no random numbers: torch numbers them with Python's."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],  # torch's signature
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator; put back what a collective has drawn."""
        if func.namespace != "c10d":
            return func(*args, **(kwargs or {}))
        state = random.getstate()
        try:
            return func(*args, **(kwargs or {}))
        finally:
            random.setstate(state)


@contextmanager
def fake_ranks(cell: Cell, place: str) -> Iterator[None]:
    """Be the first rank of a distributed workload while entered, on devices like a place."""
    if not cell.in_ranks:
        yield
        return
    family, size = place.partition(":")[0], cell.world_size
    with process_group(FAKE, rank=0, world_size=size, limit_s=LIMIT_S, family=family):
        yield
