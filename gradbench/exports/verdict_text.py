"""Verdicts in words, as every export writes them."""

from ..analysis import format_units
from ..gate.figure_verdicts import FigureVerdict


def change_in_words(row: FigureVerdict) -> str:
    """Return mode, meter and verdict, then both sides as `values_in_words` writes them."""
    words = f"{row.cell.grad_mode} {row.meter} {row.verdict.value}"
    sides = values_in_words(row)
    return f"{words}: {sides}" if sides else words


def values_in_words(row: FigureVerdict) -> str:
    """Return both sides and their ratio with its interval, as far as they are there."""
    parts = []
    if row.baseline is not None and row.candidate is not None:
        parts.append(f"{_value(row.baseline, row.unit)} → {_value(row.candidate, row.unit)}")
    if row.change is not None:
        ratio = f"×{format_units.factor(row.change.point)}"
        if not row.change.exact:
            ratio += f" {format_units.interval(row.change.low, row.change.high)}"
        parts.append(ratio)
    return ", ".join(parts)


def _value(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value:,.0f} B"  # a change of one byte must show
    if unit in ("ns", "uJ", "instructions", "ppt"):
        return format_units.quantity(value, unit)
    return format_units.factor(value)
