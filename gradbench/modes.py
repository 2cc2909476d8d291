"""The grad modes, one row each."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch


@dataclass(frozen=True, slots=True)
class GradMode:
    """A way to run a model, and the way to record a graph inside it all the same."""

    name: str
    enter: Callable[[], AbstractContextManager[object]]
    records: bool  # does autograd record a graph here, so that backward() can run?
    reenable: Callable[[], AbstractContextManager[object]]


@contextmanager
def globally(enabled: bool) -> Iterator[None]:
    """Call ``torch.set_grad_enabled`` as a function around the work; restore the state after."""
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(enabled)
    try:
        yield
    finally:
        torch.set_grad_enabled(before)


# In inference mode, enable_grad() only flips a flag and nothing is recorded: leaving inference
# mode is what works there.
MODES: Final[Mapping[str, GradMode]] = {
    mode.name: mode
    for mode in (
        GradMode("global_on", partial(globally, True), True, torch.enable_grad),
        GradMode("global_off", partial(globally, False), False, torch.enable_grad),
        GradMode("no_grad", torch.no_grad, False, torch.enable_grad),
        GradMode(
            "inference_mode", torch.inference_mode, False, partial(torch.inference_mode, False)
        ),
    )
}
