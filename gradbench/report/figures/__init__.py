"""The plots: a run in, a matplotlib figure out, or None where there is nothing to draw."""

from collections.abc import Callable, Mapping
from typing import Final

from matplotlib.figure import Figure

from .forest import forest as forest
from .memory import modules as modules, peak_parts as peak_parts, timeline as timeline
from .scaling import scaling as scaling
from .style import DARK as DARK, LIGHT as LIGHT, PAGE as PAGE, Theme as Theme
from .tradeoff import tradeoff as tradeoff

FIGURES: Final[Mapping[str, Callable[..., Figure | None]]] = {
    "forest": forest,
    "peak_parts": peak_parts,
    "timeline": timeline,
    "modules": modules,
    "scaling": scaling,
    "tradeoff": tradeoff,
}
"""Every figure by name. Each takes a run, and ``theme``."""
