"""Which facts two runs must share before their figures may be held against one another."""

from collections.abc import Mapping
from typing import Final, Literal

from ..records.measurements import Fact

Facts = Mapping[str, Fact]
Kind = Literal["exact", "instructions", "ratio", "timed"]
"""What a figure is: repeats to the byte, repeats for one build and interpreter, a ratio of two
modes within a run, or tied to the machine that it was read on."""

_HOST: Final[Mapping[Kind, tuple[str, ...]]] = {
    "exact": ("protocol", "torch", "cpu_capability"),
    "instructions": ("protocol", "torch", "cpu_capability", "python"),
    "ratio": ("protocol", "torch", "cpu_capability", "cpu"),
    "timed": ("protocol", "torch", "cpu_capability", "cpu", "host", "cores", "python"),
}
_GPU: Final[Mapping[Kind, tuple[str, ...]]] = {
    "exact": ("gpu", "gpu_capability", "cuda", "cudnn"),
    "instructions": ("gpu", "gpu_capability", "cuda", "cudnn"),
    "ratio": ("gpu", "gpu_capability", "cuda", "cudnn"),
    "timed": ("gpu", "gpu_capability", "gpu_driver", "cuda", "cudnn"),
}
KEPT: Final = tuple(dict.fromkeys([*_HOST["instructions"], *_GPU["exact"]]))
"""Facts that decide about figures which repeat: what a committed baseline must say of itself."""


def difference(baseline: Facts, candidate: Facts, *, kind: Kind, device: str) -> str:
    """Return in words why figures of the kind, read on the device, may not be compared, or ``""``.

    A fact that either side did not record counts as different. Of torch's version the build
    (``+cpu``, ``+cu130``) counts on a GPU only: on the CPU it changes no figure that repeats.
    """
    names = list(_HOST[kind])
    if device != "cpu":
        prefix = f"{device} " if ":" in device else ""
        names += [prefix + name for name in _GPU[kind]]
    return "; ".join(
        words
        for name in names
        if (words := _differs(name, baseline, candidate, build=device != "cpu" or kind == "timed"))
    )


def _differs(name: str, baseline: Facts, candidate: Facts, *, build: bool) -> str:
    sides = [facts.get(name) for facts in (baseline, candidate)]
    if any(side is None or str(side).startswith("unknown:") for side in sides):
        return f"{name} is not recorded on both sides"
    before, after = map(str, sides)
    if name == "torch" and not build:
        before, after = before.partition("+")[0], after.partition("+")[0]
    return f"{name} was {before!r}, is {after!r}" if before != after else ""
