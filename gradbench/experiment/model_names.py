"""Names of models that say their sizes: ``mlp_d8_w256`` has depth 8 and width 256."""

import re
from dataclasses import dataclass
from typing import Final

FAMILIES: Final = {
    "mlp": ("depth", "width"),
    "cnn": ("depth", "width", "resolution"),
    "decoder": ("depth", "width"),
}
"""Families of models and the sizes that their names must give, in this order."""

VARIABLES: Final = ("depth", "width", "resolution")
LONGEST: Final = 7
"""Digits of a size: a layer of tens of millions or deep is a slip of the finger."""
_NAME: Final = re.compile(r"(mlp|cnn|decoder)_d(\d+)_w(\d+)(?:_r(\d+))?")


@dataclass(frozen=True, slots=True)
class Sized:
    """A family and its sizes; ``resolution`` is 0 where a family has none."""

    family: str
    depth: int
    width: int
    resolution: int = 0


def parse(name: str) -> Sized | None:
    """Return what a model's name says, or None if it is not of a sized family.

    ``mlp_d8_w256``: 8 hidden layers of width 256. ``cnn_d3_w16_r32``: 3 convolutions of 16
    channels on images of 32x32. ``decoder_d12_w768``: 12 layers of width 768.
    """
    match = _NAME.fullmatch(name)
    if match is None or (match[1] == "cnn") != (match[4] is not None):
        return None
    texts = [text for text in match.groups()[1:] if text is not None]
    if any(len(text) > LONGEST for text in texts):
        return None
    sizes = [int(text) for text in texts]
    return Sized(match[1], *sizes) if min(sizes) > 0 else None
