"""A gate's result in words: a side's figure, and what has no verdict and why."""

from collections.abc import Iterable

from ..analysis import format_units
from ..plurals import counted
from .result import NotCompared, Why


def quantity(value: float | None, unit: str) -> str:
    """Return a side's figure with its unit, or a dash where it has none."""
    if value is None:
        return "—"
    return format_units.factor(value) if unit == "ratio" else format_units.quantity(value, unit)


def not_compared_lines(
    not_compared: Iterable[NotCompared], *, everything: bool = False, hint: str = ""
) -> list[str]:
    """Return in sentences what has no verdict: each reason once, with meters and cells.

    What has no number on either side is counted only, unless ``everything``: that is how it was.
    ``hint`` says where they are named.
    """
    not_compared = list(not_compared)
    lines, silent = [], [each for each in not_compared if each.why == "no number"]
    if silent and not everything:
        not_compared = [each for each in not_compared if each.why != "no number"]
        lines.append(f"no number on either side: {counted(len(silent), 'figure')}{hint}")
    grouped: dict[tuple[Why, str], dict[str, list[str]]] = {}
    for each in not_compared:
        by_cell = grouped.setdefault((each.why, each.reason), {})
        by_cell.setdefault(str(each.cell), []).append(each.meter)
    for (why, reason), cells in sorted(grouped.items(), key=lambda item: item[0][0]):
        meters = dict.fromkeys(meter for read in cells.values() for meter in read)
        limit = len(cells) if everything else 3
        named = ", ".join(list(cells)[:limit])
        left = len(cells) - limit
        more = f" and {counted(left, 'more cell')}" if left > 0 else ""
        lines.append(f"{why}: {reason}: {', '.join(meters)} of {named}{more}")
    return lines
