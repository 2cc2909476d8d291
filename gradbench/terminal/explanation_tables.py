"""Why modes differ, as tables for a terminal: counts a call, then the parts of each difference."""

from collections.abc import Callable, Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..analysis import format_units
from ..analysis.explanation import (
    Counts,
    Difference,
    differences,
    operator_differences,
    operators,
    together,
    totals,
)
from ..printable import printable
from ..records.explanation import Explanation
from ..stats.estimates import Estimate

LEGEND: Final = (
    "Counted in one call. operators: dispatched by torch. nodes: of autograd's graph. saved: kept "
    "for backward. views: that know their base. versions: tensors with a version counter. What is "
    "not sure is dim; docs/explain.md says more."
)
UNKNOWN: Final = "?"
WHY_UNKNOWN: Final = (
    "What is saved is not known: the call fails with hooks on that, as torch.func's derivatives do."
)
PARTS: Final = 10
"""Parts of a difference that are listed; the rest are one line."""
NAME: Final = 28

Show = Callable[[Counts], str]


def _more(name: str) -> Show:
    """Return how a count is shown that one mode has more of than another."""

    def show(counts: Counts) -> str:
        count = getattr(counts, name)
        return f"{count:+,}" if count else ""

    return show


def _saved(counts: Counts) -> str:
    if counts.saved_bytes is None:
        return UNKNOWN
    return format_units.size(counts.saved_bytes) if counts.saved_bytes else ""


MODULE_COUNTS: Final[Mapping[str, Show]] = {
    "nodes": _more("nodes"),
    "saved": _saved,
    "versions": _more("version_counters"),
}
OPERATOR_COUNTS: Final[Mapping[str, Show]] = {
    "calls": _more("operators"),
    "nodes": _more("nodes"),
    "saved": _saved,
}


def explanation_tables(explanation: Explanation, title: str) -> RenderableType:
    """Return what each mode does, and what the differences are made of."""
    shown: list[RenderableType] = [Text(title, style="bold"), _totals(explanation)]
    for one, same in zip(differences(explanation), operator_differences(explanation), strict=True):
        shown += _difference(one, MODULE_COUNTS, "by module")
        shown += _difference(same, OPERATOR_COUNTS, "by operator")
    unknown = any(row.counts.saved_bytes is None for row in totals(explanation))
    legend = f"{WHY_UNKNOWN} {LEGEND}" if unknown else LEGEND
    return Group(*shown, *_operators(explanation), Text(f"\n{legend}", style="dim"))


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=15, max_width=NAME, overflow="ellipsis")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _totals(explanation: Explanation) -> Table:
    table = _table("operators", "nodes", "saved", "views", "versions", "host time")
    for row in totals(explanation):
        table.add_row(
            f" {row.mode}",
            f"{row.counts.operators:,}",
            f"{row.counts.nodes:,}",
            UNKNOWN
            if row.counts.saved_bytes is None
            else format_units.size(row.counts.saved_bytes),
            f"{row.counts.tracked_views:,}",
            f"{row.counts.version_counters:,}",
            format_units.duration(row.host_ns.point),
        )
    return table


def _difference(
    difference: Difference, columns: Mapping[str, Show], how: str
) -> list[RenderableType]:
    title = Text(f"\n{difference.first} − {difference.second}, {how}: ", style="bold")
    title.append(_interval(difference.whole_ns), style="default")
    table = _table(*columns, "host time", "95% interval")
    for part in difference.parts[:PARTS]:
        table.add_row(
            Text(printable(f" {part.name}")),
            *(show(part.counts) for show in columns.values()),
            Text(_signed(part.host_ns.point), style="" if part.sure else "dim"),
            Text(_span(part.host_ns), style="dim"),
        )
    rest = difference.parts[PARTS:]
    if rest:
        counts = together(rest)
        table.add_row(
            f" {len(rest)} more",
            *(show(counts) for show in columns.values()),
            _signed(sum(p.host_ns.point for p in rest)),
        )
    empty = ("" for _ in columns)
    table.add_row(" unexplained", *empty, _signed(difference.unexplained_ns), "")
    return [title, table]


def _operators(explanation: Explanation) -> list[RenderableType]:
    rows = operators(explanation)
    if not rows:
        return []
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, max_width=44, overflow="ellipsis")
    for heading in ("global_on", "no_grad", "inference_mode"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows[:PARTS]:
        table.add_row(Text(printable(f" {row.name}")), *(f"{calls:,}" for calls in row.calls))
    more = [Text(f" {len(rows) - PARTS} more", style="dim")] if len(rows) > PARTS else []
    title = "\ndispatched operators and graph nodes that differ, a call"
    return [Text(title, style="bold"), table, *more]


def _signed(ns: float) -> str:
    return f"{'+' if ns > 0 else '−' if ns < 0 else ''}{format_units.duration(abs(ns))}"


def _span(estimate: Estimate) -> str:
    return f"[{_signed(estimate.low)}, {_signed(estimate.high)}]"


def _interval(estimate: Estimate) -> str:
    return f"{_signed(estimate.point)} {_span(estimate)} a call"
