"""A series in characters: its values as bars, its changes as sentences, itself as plain data."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ..analysis import format_units
from ..experiment.plan import PROTOCOL, PROTOCOLS
from ..stats.estimates import Floats
from ..stats.verdicts import percent
from . import figures
from .series import Change, Series

BARS: Final = "▁▂▃▄▅▆▇█"
LEAST_SPAN: Final = 0.04
"""Relative height of a plot at least: noise of a percent should not look like a mountain range."""


def sentence(series: Series, change: Change) -> str:
    """Return where a series changed, by how much, and what changed with it."""
    ratio = change.ratio
    size = "from nothing"
    if ratio is not None:
        size = percent(ratio)
    if series.exact:
        size += f" ({change.after - change.before:+,.0f} {series.unit})"
    also = f"; {', '.join(change.also)}" if change.also else ""
    return (
        f"{change.verdict} {size} at {short(change.commit)}, {change.started[:10]}, after "
        f"{short(change.since)}: {amount(series, change.before)} → "
        f"{amount(series, change.after)}, {change.before_points} and {change.after_points} "
        f"points{also}"
    )


def amount(series: Series, value: float) -> str:
    """Return one value of a series as people read it."""
    return (
        format_units.factor(value)
        if series.reference
        else format_units.quantity(value, series.unit)
    )


def short(label: str) -> str:
    """Return a point's label with its commit cut to what git shows."""
    is_commit = len(label) >= 40 and all(c in "0123456789abcdef" for c in label.rstrip("+"))
    return label[:10] if is_commit else label


def protocols(series: Sequence[Series]) -> list[str]:
    """Return why series of one figure do not go on in one another, where several protocols are."""
    measured_by = sorted({one.protocol for one in series})
    if measured_by in ([], [str(PROTOCOL)]):
        return []
    reasons = [
        f"protocol {one or 'unknown'}: {PROTOCOLS.get(one, 'not on record')}" for one in measured_by
    ]
    return [f"protocols never mix; {'; '.join(reasons)}"]


def bars(series: Series, *, width: int = 32) -> str:
    """Return a series as a line of bars, `width` at most, a median each."""
    values = thinned(series.values, most=width)
    low, high = span(values)
    steps = np.clip((values - low) / (high - low) * len(BARS), 0, len(BARS) - 1).astype(int)
    return "".join(BARS[step] for step in steps)


def thinned(values: Floats, *, most: int) -> Floats:
    """Return values (points,), or medians of `most` runs of neighbours where there are more."""
    if len(values) <= most:
        return values
    edges = np.linspace(0, len(values), most + 1).astype(int)  # equal, or marks lie beside steps
    parts = np.split(values, edges[1:-1])
    return np.array([np.median(part) for part in parts], dtype=np.float64)


def span(values: Floats) -> tuple[float, float]:
    """Return the lowest and highest value to draw: a spike does not press the rest flat.

    A spike is what lies further out than three times the interquartile range (Tukey 1977).
    """
    lower, middle, upper = (float(edge) for edge in np.quantile(values, [0.25, 0.5, 0.75]))
    reach = 3 * (upper - lower) or np.inf
    low = max(float(values.min()), lower - reach)
    high = min(float(values.max()), upper + reach)
    half = max(high - low, LEAST_SPAN * abs(middle), 1e-12) / 2
    centre = (low + high) / 2
    return centre - half, centre + half


def plain(series: Series) -> dict[str, Any]:
    """Return a series as JSON takes it; ``at`` of a change counts points from 0."""
    return {
        "cell": series.cell.axes(),
        "key": figures.key(series.cell),
        "meter": series.meter,
        "unit": "ratio" if series.reference else series.unit,
        "reference": series.reference,
        "machine": series.machine,
        "protocol": series.protocol,
        "exact": series.exact,
        "points": [
            {"commit": label, "started": started, "value": value}
            for label, started, value in zip(
                series.labels, series.started, series.values.tolist(), strict=True
            )
        ],
        "changes": [
            {
                "at": change.at,
                "commit": change.commit,
                "since": change.since,
                "started": change.started,
                "before": change.before,
                "after": change.after,
                "ratio": change.ratio,
                "before_points": change.before_points,
                "after_points": change.after_points,
                "p": change.p,
                "verdict": str(change.verdict),
                "also": list(change.also),
            }
            for change in series.changes
        ],
    }
