"""The grad modes, one row each."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch


@dataclass(frozen=True, slots=True)
class GradMode:
    """A way to run a model, and the way to record a graph inside it all the same.

    ``enter`` is the construct that users write. ``hold`` sets the state that it sets, for many
    steps, and leaves nothing of its own behind: while a ``no_grad`` object was held, the A/A
    control lay up to 0.1% from 1 (docs/measuring.md). So held, modes that set the same flag are
    one and the same.
    """

    name: str
    enter: Callable[[], AbstractContextManager[object]]
    hold: Callable[[], AbstractContextManager[object]]
    records: bool  # does autograd record a graph here, so that backward() can run?
    reenable: Callable[[], AbstractContextManager[object]]


class globally:  # noqa: N801 # reads as torch's own contexts do
    """Call ``torch.set_grad_enabled`` as a function around the work; restore the state after."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._before = True

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        torch.set_grad_enabled(self._enabled)

    def __exit__(self, *_: object) -> None:
        torch.set_grad_enabled(self._before)


_OFF: Final = partial(globally, False)

# In inference mode, enable_grad() only flips a flag and nothing is recorded: leaving inference
# mode is what works there.
MODES: Final[Mapping[str, GradMode]] = {
    mode.name: mode
    for mode in (
        GradMode(
            "global_on",
            enter=partial(globally, True),
            hold=partial(globally, True),
            records=True,
            reenable=torch.enable_grad,
        ),
        GradMode(
            "global_off",
            enter=partial(globally, False),
            hold=_OFF,
            records=False,
            reenable=torch.enable_grad,
        ),
        GradMode(
            "no_grad",
            enter=torch.no_grad,
            hold=_OFF,
            records=False,
            reenable=torch.enable_grad,
        ),
        GradMode(
            "inference_mode",
            enter=torch.inference_mode,
            hold=torch.inference_mode,
            records=False,
            reenable=partial(torch.inference_mode, False),
        ),
    )
}
