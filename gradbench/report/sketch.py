"""Small drawings by hand: a thousand cells are too many for matplotlib, and quantiles are enough."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from markupsafe import Markup

from .. import units
from ..estimates import Floats

SLICES: Final = 60  # of the rounds in run order, each drawn as its quartiles and median
STEPS: Final = 33  # quantiles of a distribution
WIDE, HIGH = 320, 72


def in_order(values: Floats, *, mode: str, unit: str, label: str) -> Markup:
    """Return rounds (rounds,) as they came: the median of each slice, its extremes behind it.

    The scale ends at the 99th percentile; what lies above it touches the upper edge.
    """
    slices = np.array_split(values, min(SLICES, len(values)))
    low, high = _range(values)
    xs = [(i + 0.5) / len(slices) * WIDE for i in range(len(slices))]
    ends = {q: [_y(float(np.quantile(part, q)), low, high) for part in slices] for q in (0, 0.5, 1)}
    around = _line([*zip(xs, ends[0], strict=True), *zip(xs[::-1], ends[1][::-1], strict=True)])
    middle = _line(list(zip(xs, ends[0.5], strict=True)))
    return _svg(
        label,
        Markup('<path class="area {0}" d="{1}Z"/><path class="line {0}" d="{2}"/>').format(
            mode, around, middle
        ),
        top=units.quantity(high, unit),
        bottom=units.quantity(low, unit),
    )


def distributions(series: Mapping[str, Floats], *, unit: str, label: str) -> Markup:
    """Return the cumulative distribution of each mode's rounds (rounds,), up to the 99th percentile."""
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
    return _svg(label, lines, left=units.quantity(low, unit), right=units.quantity(high, unit))


def _range(values: Floats) -> tuple[float, float]:
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    if high <= low:
        return low * 0.99, max(low * 1.01, 1.0)
    return low, high


def _y(value: float, low: float, high: float) -> float:
    return HIGH - min(1.0, (value - low) / (high - low)) * HIGH


def _line(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points)


def _svg(label: str, drawn: Markup, **edges: str) -> Markup:
    places = {
        "top": 'x="326" y="9"',
        "bottom": 'x="326" y="74"',
        "left": 'x="0" y="88"',
        "right": 'x="320" y="88" text-anchor="end"',
    }
    texts = Markup("").join(
        Markup("<text {}>{}</text>").format(Markup(places[edge]), said)
        for edge, said in edges.items()  # noqa: S704 # from the table above
    )
    return Markup(
        '<svg class="sketch" viewBox="-1 -3 392 94" role="img" aria-label="{}">'
        '<path class="frame" d="M0 0V72H320"/>{}{}</svg>'
    ).format(label, drawn, texts)
