"""How every figure looks: colours and shapes by mode and by part of memory, fonts, axes."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from ...analysis import format_units
from ...analysis.run_view import View
from ...experiment.matrix import GRAD_MODES, Cell
from ...printable import printable
from ...records.measurements import PARTS

# What a peak is made of where no breakdown was read: two parts are known all the same.
COARSE: Final = ("before", "added")
PART_WORDS: Final[Mapping[str, str]] = {
    "parameters": "parameters",
    "buffers": "buffers",
    "inputs": "the batch",
    "cache": "cache of keys and values",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "saved": "saved, at the peak",
    "casts": "copies that autocast made",
    "other": "other activations and temporaries",
    "unknown": "workspace and rounding",
    "before": "there before the step",
    "added": "added by the step",
}
MARKERS: Final = dict(zip(GRAD_MODES, "osD^", strict=True))
SIZES: Final = dict(zip(GRAD_MODES, (1.0, 1.5, 1.0, 0.6), strict=True))
"""Marks and lines of modes that coincide lie around one another, so that each is seen."""
WIDTH: Final = 10.5  # inches
ROW: Final = 0.19  # inches a mode
MANY: Final = 48  # blocks in one plot; the table has them all


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of a figure."""

    ink: str
    dim: str
    grid: str
    band: str  # what the noise floor covers
    paper: str
    modes: Mapping[str, str]
    parts: Mapping[str, str]
    linked: bool = False  # does every mark say which cell it stands for?

    def names(self) -> dict[str, str]:
        """Return every colour by the name that a page has for it."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)[:5]}
        parts = {f"part-{part.replace('_', '-')}": value for part, value in self.parts.items()}
        return plain | dict(self.modes) | parts


def _modes(*colours: str) -> dict[str, str]:
    return dict(zip(GRAD_MODES, colours, strict=True))


def _parts(*colours: str) -> dict[str, str]:
    return dict(zip((*PARTS, *COARSE), colours, strict=True))


# Modes in Okabe and Ito's colours and parts in Paul Tol's "light": colour-blind readers
# can distinguish both, and each mode has a shape besides. In the dark both are a little brighter.
LIGHT: Final = Theme(
    ink="#1c1e21",
    dim="#5b626c",
    grid="#dfe3e8",
    band="#e1e8f0",
    paper="#ffffff",
    modes=_modes("#D55E00", "#0072B2", "#00876C", "#B5568F"),
    parts=_parts(
        *("#77AADD", "#99DDFF", "#44BB99", "#AAAA00", "#EEDD88", "#BBCC33"),
        *("#EE8866", "#AA99DD", "#FFAABB", "#BBBBBB", "#77AADD", "#EE8866"),
    ),
)
DARK: Final = Theme(
    ink="#e8eaed",
    dim="#a6adb8",
    grid="#343a44",
    band="#2a323e",
    paper="#14161a",
    modes=_modes("#FF8A3D", "#5FB2E8", "#2CC99B", "#E8A3C6"),
    parts=_parts(
        *("#6B9BCB", "#86C5E4", "#3FA98B", "#96961F", "#D9C977", "#A9B92E"),
        *("#E57C59", "#9C8BC9", "#E896A6", "#8C929B", "#6B9BCB", "#E57C59"),
    ),
)
# Colours that nothing else has, for the page to put its own in their place.
PAGE: Final = Theme(
    ink="#010203",
    dim="#010204",
    grid="#010205",
    band="#010206",
    paper="#010207",
    modes=_modes("#010301", "#010302", "#010303", "#010304"),
    parts=_parts(*(f"#0104{number:02d}" for number in range(1, 13))),
    linked=True,
)


@contextmanager
def drawn_in(theme: Theme) -> Iterator[None]:
    """Draw in the theme's colours and the project's style."""
    style = {
        "axes.edgecolor": theme.grid,
        "axes.grid": True,
        "axes.labelcolor": theme.dim,
        "axes.labelsize": 9,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "figure.facecolor": "none" if theme.linked else theme.paper,
        "axes.facecolor": "none",
        "font.family": "sans-serif",
        "font.size": 9.5,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.labelcolor": theme.ink,
        "svg.fonttype": "none",
        "text.color": theme.ink,
        "text.parse_math": False,  # a name may hold dollars
        "xtick.color": theme.grid,
        "xtick.labelcolor": theme.dim,
        "xtick.labelsize": 8.5,
        "ytick.color": theme.grid,
        "ytick.labelcolor": theme.dim,
        "ytick.labelsize": 8.5,
        "ytick.left": False,
    }
    with mpl.rc_context(style):  # type: ignore[arg-type] # rcParams by name
        yield


def tags(view: View, theme: Theme, cells: Sequence[Cell], words: Sequence[str]) -> list[str] | None:
    """Return a link for each mark: the number of its cell, and what to say when it is pointed at.

    The page reads them (`svg.inline`); a figure for elsewhere has none.
    """
    if not theme.linked:
        return None
    numbers = view.numbers
    return [f"cell:{numbers[c]}|{sentence}" for c, sentence in zip(cells, words, strict=True)]


def short(name: str, most: int = 40) -> str:
    """Return a name with its middle left out where it is long; the table has it whole."""
    name = printable(name)
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def room(names: Iterable[str]) -> float:
    """Return the inches that the longest of some labels takes."""
    return 0.25 + 0.068 * max(map(len, names), default=0)


def say_cut(figure: Figure, shown: int, every: int, what: str = "blocks") -> None:
    """Say at the top right how many of all are drawn, where some are left out."""
    if shown < every:
        words = f"the first {shown} of the {every} {what}; the table has them all"
        figure.text(0.99, 1 - 0.08 / figure.get_figheight(), words, ha="right", va="top")


def say_empty(axes: Axes, theme: Theme, why: str) -> None:
    """Say in the middle of axes why there is nothing to draw, instead of numbers along them."""
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", color=theme.dim)
    axes.set_xticks([])


def figure_of(height: float) -> Figure:
    """Return an empty figure of the page's width."""
    return Figure(figsize=(WIDTH, height))


def inset(figure: Figure, *, left: float, right: float, top: float, bottom: float) -> None:
    """Set the margins, in inches."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, top=1 - top / height, bottom=bottom / height
    )


def mode_legend(
    figure: Figure, theme: Theme, modes: Collection[str], *, more: Sequence[object] = ()
) -> None:
    """Say which colour and shape is which of the modes drawn, at the top, and what ``more`` is."""
    handles = [
        Line2D([], [], color=theme.modes[m], marker=MARKERS[m], linestyle="none", label=m)
        for m in GRAD_MODES
        if m in modes
    ]
    top_legend(figure, [*handles, *more])


def top_legend(figure: Figure, handles: Sequence[object], *, columns: int | None = None) -> None:
    """Put a legend along the top, at the left, where a narrow screen shows it; none of nothing."""
    if not handles:
        return
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 1),
        ncols=columns or len(handles),
        borderaxespad=0.1,
        handletextpad=0.4,
        columnspacing=1.4,
    )


_RATIOS: Final = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    *(1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0),
    *(15.0, 20.0, 30.0, 50.0, 100.0),
)
_FINE: Final = (0.96, 0.97, 0.98, 0.99, 0.995, 1.0, 1.005, 1.01, 1.02, 1.03, 1.04)


def ratio_axis(axes: Axes, low: float, high: float, *, most: int = 11) -> None:
    """Give the x axis a log scale from below ``low`` to above ``high``, 1 within, few ticks."""
    low, high = min(low, 0.99), max(high, 1.01)
    reach = math.log(high / low) * 0.06
    low, high = low * math.exp(-reach), high * math.exp(reach)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    known = _FINE if high / low < 1.08 else _RATIOS
    inside = [value for value in known if low < value < high]
    kept = [1.0]  # and whatever stands clear of what is kept
    room = math.log(high / low) / most
    for value in sorted(inside, key=lambda v: abs(math.log(v))):
        if all(abs(math.log(value / other)) > room for other in kept):
            kept.append(value)
    fixed(axes, sorted(kept), format_units.digits)


def fraction_axis(axes: Axes, low: float, high: float) -> None:
    """Give the x axis a log scale in powers of two, written as fractions: 1/16, 1/4, 1, 4."""
    lowest, highest = math.floor(math.log2(min(low, 0.5))), math.ceil(math.log2(max(high, 1)))
    axes.set_xscale("log", base=2)
    axes.set_xlim(2 ** (lowest - 0.4), 2 ** (highest + 0.4))
    step = math.ceil((highest - lowest + 1) / 7)
    powers = [p for p in range(lowest, highest + 1) if p % step == 0]
    fixed(axes, [2.0**p for p in powers], lambda v: f"1/{1 / v:.0f}" if v < 1 else f"{v:.0f}")


def fixed(axes: Axes, ticks: Sequence[float], words: object) -> None:
    """Put ticks at these places of the x axis, and nowhere else."""
    assert callable(words)
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
