"""Small drawings by hand: a thousand cells are too many for matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from markupsafe import Markup

from ..analysis import format_units
from ..stats.estimates import Floats

SLICES: Final = 60  # of the rounds in run order, each drawn as its least, median and most
STEPS: Final = 33  # quantiles of a distribution
WIDE, HIGH = 320, 72
_EDGES: Final = {
    "top": (326, 9, "start"),
    "bottom": (326, 74, "start"),
    "left": (0, 88, "start"),
    "right": (320, 88, "end"),
}


def in_order(values: Floats, *, mode: str, unit: str, label: str) -> Markup:
    """Return rounds (rounds,) as they came: the median of each slice over its extremes.

    The scale ends at the 99th percentile; what lies above it touches the upper edge.
    """
    length = -(-len(values) // SLICES)  # of a slice; the last is filled up with its last round
    lines = -(-len(values) // length)
    slices = np.sort(
        np.pad(values, (0, lines * length - len(values)), mode="edge").reshape(lines, length)
    )
    low, high = _range(values)
    xs = ((np.arange(lines) + 0.5) / lines * WIDE).tolist()
    least, median, most = (
        _heights(slices[:, place], low, high) for place in (0, length // 2, length - 1)
    )
    around = _line([*zip(xs, least, strict=True), *zip(xs[::-1], most[::-1], strict=True)])
    middle = _line(list(zip(xs, median, strict=True)))
    return _svg(
        label,
        Markup('<path class="area {0}" d="{1}Z"/><path class="line {0}" d="{2}"/>').format(
            mode, around, middle
        ),
        top=format_units.quantity(high, unit),
        bottom=format_units.quantity(low, unit),
    )


def distributions(series: Mapping[str, Floats], *, unit: str, label: str) -> Markup:
    """Return each mode's cumulative distribution of rounds (rounds,), to their 99th percentile."""
    ranges = [_range(values) for values in series.values()]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    shares = np.linspace(0, 0.99, STEPS)
    lines = Markup("")
    for mode, values in series.items():
        xs = (np.quantile(values, shares) - low) / (high - low) * WIDE
        ys = HIGH - shares * HIGH
        lines += Markup('<path class="line {}" d="{}"/>').format(
            mode, _line(list(zip(xs.tolist(), ys.tolist(), strict=True)))
        )
    return _svg(
        label, lines, left=format_units.quantity(low, unit), right=format_units.quantity(high, unit)
    )


def _range(values: Floats) -> tuple[float, float]:
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    if high <= low:
        return low * 0.99, max(low * 1.01, 1.0)
    return low, high


def _heights(values: Floats, low: float, high: float) -> list[float]:
    shares: list[float] = np.clip((values - low) / (high - low), 0, 1).tolist()
    return [HIGH - share * HIGH for share in shares]


def _line(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points)


def _svg(label: str, drawn: Markup, **edges: str) -> Markup:
    texts = Markup("").join(
        Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(*_EDGES[edge], text)
        for edge, text in edges.items()
    )
    return Markup(
        '<svg class="sketch" viewBox="-1 -3 392 94" role="img" aria-label="{}">'
        '<path class="frame" d="M0 0V72H320"/>{}{}</svg>'
    ).format(label, drawn, texts)
