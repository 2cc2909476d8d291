"""The plots: a run in, a matplotlib figure out, or None where there is nothing to draw."""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from ... import output_files
from ...analysis.run_view import View
from ...records.run import Run
from .forest import forest as forest
from .generation import tokens as tokens
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
    "tokens": tokens,
}
"""Every figure by name. Each takes a run, and ``theme``."""
_OPENINGS: Final[Mapping[str, re.Pattern[bytes]]] = {
    "png": re.compile(rb"\x89PNG.*?Matplotlib", re.DOTALL),
    "svg": re.compile(rb"<\?xml.*?Matplotlib", re.DOTALL),
}
"""How a figure opens, by its ending."""


def save_figures(run: Run | View, folder: Path) -> Iterator[Path]:
    """Write each figure that has something to draw as PNG and SVG, and yield their paths.

    Raise `StoreError` where that cannot be.
    """
    view = View.of(run)
    for name, draw in FIGURES.items():
        figure = draw(view)
        if figure is None:
            continue
        for ending, opening in _OPENINGS.items():
            drawn = io.BytesIO()
            with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
                figure.savefig(
                    drawn,
                    format=ending,
                    dpi=160,
                    metadata={"Date": None} if ending == "svg" else {},
                )
            path = folder / f"{name}.{ending}"
            yield output_files.write(path, drawn.getvalue(), like=opening, what="figure")
