"""The plots: a run in, a matplotlib figure out, or None where there is nothing to draw."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from ...analysis.run_view import View
from ...errors import StoreError
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


def save_figures(run: Run | View, folder: Path) -> Iterator[Path]:
    """Write each figure that has something to draw as PNG and SVG, and yield their paths.

    Raise `StoreError` where that cannot be.
    """
    view = View.of(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in FIGURES.items():
            figure = draw(view)
            if figure is None:
                continue
            for ending in ("png", "svg"):
                path = folder / f"{name}.{ending}"
                with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
                    figure.savefig(
                        path, dpi=160, metadata={"Date": None} if ending == "svg" else {}
                    )
                yield path
    except OSError as error:
        raise StoreError(f"cannot write figures in {str(folder)!r}: {error.strerror}") from error
