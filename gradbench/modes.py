"""The grad modes, one row each."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
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


class globally:  # noqa: N801 # reads as torch's own contexts do
    """Call ``torch.set_grad_enabled`` as a function around the work; restore the state after.

    It costs what ``torch.no_grad`` costs to enter and leave, so that the two stay an A/A pair
    where a step enters its mode itself.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._before = True

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        torch.set_grad_enabled(self._enabled)

    def __exit__(self, *_: object) -> None:
        torch.set_grad_enabled(self._before)


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
