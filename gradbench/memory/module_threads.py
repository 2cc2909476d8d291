"""Whether a step's modules run where what they allocate is seen: in threads of the step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..call_threads import CallThreads
from .saved_tensors import unwatched_thread

NO_BACKWARD = -1
"""The number of the backward pass that runs, where there is none."""


@contextmanager
def in_sight(threads: CallThreads) -> Iterator[None]:
    """Raise `OutOfSight` where a module ran in another thread than a call's while this was entered.

    Autograd's threads belong to every call: what is computed again runs there on a GPU.
    """
    elsewhere: list[str] = []

    def look(module: nn.Module, _inputs: object) -> None:
        if not threads.here and torch._C._current_graph_task_id() == NO_BACKWARD:
            elsewhere.append(type(module).__name__)

    looking = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        looking.remove()
    if elsewhere:
        raise unwatched_thread(f"{elsewhere[0]} runs")
