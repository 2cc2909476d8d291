"""What making tokens takes, as a table for the terminal: a row a mode."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..analysis import format_units
from ..analysis.generation import Making, settings, timed
from ..analysis.run_view import TIME, View
from ..printable import printable

HEADINGS: Final = (
    *("first\ntoken", "each\ntoken", "tokens\nper second"),
    *("cache", "a token\nadds", "left\nbehind"),
)
LEGEND: Final = (
    "first token: a prefill. each token: a decode, on a full cache. tokens per "
    "second: of whole sequences; (d) of decodes. cache: what the last decode finds. "
    "a token adds: bytes that stay alive. left behind: bytes that stay alive after "
    "the sequence."
)
SHRINKS: Final = "Below 0, a token lets go of more than it adds: the cache is cut as it slides."


def generation_tables(view: View) -> Iterator[RenderableType]:
    """Yield a table for each setting that makes tokens, and what its columns say."""
    tables = False
    for name, makings in settings(view):
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column("", min_width=16, no_wrap=True)
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True, min_width=7)
        rows = {making.mode: list(_figures(view, making)) for making in makings}
        if not any(map(any, rows.values())):
            continue
        for mode, figures in rows.items():
            table.add_row(Text(f"  {mode}"), *figures)
        yield Text(f"\n{printable(f'tokens[{name}]')}", style="bold")
        yield table
        yield from _asides(makings)
        tables = True
    if tables:
        yield Text(LEGEND, style="dim")


def _asides(makings: Sequence[Making]) -> Iterator[Text]:
    """Yield what a reader of the table would take for an error."""
    peaks: dict[int, list[str]] = {}
    for making in makings:
        if making.cache_at_peak_bytes is not None:
            peaks.setdefault(making.cache_at_peak_bytes, []).append(making.mode)
    for nbytes, modes in peaks.items():
        words = f"at the peak the old cache and the new one, {format_units.size(nbytes)} together"
        yield Text(f"  {', '.join(modes)}: {words}", style="dim")
    if any(making.growth is not None and making.growth.token_bytes < 0 for making in makings):
        yield Text(f"  {SHRINKS}", style="dim")


def _figures(view: View, making: Making) -> Iterator[str]:
    for workload in ("prefill", "decode"):
        cell = timed(view, making, workload)
        yield view.value(cell, TIME).text if cell is not None else ""
    whole, alone = timed(view, making, "generate"), timed(view, making, "decode")
    if whole is not None:
        yield view.throughput(whole).text
    else:
        yield f"{view.throughput(alone).text} (d)" if alone is not None else ""
    yield format_units.size(making.cache_bytes) if making.cache_bytes is not None else ""
    growth = making.growth
    yield format_units.size(growth.token_bytes) if growth is not None else ""
    yield format_units.size(growth.left_bytes) if growth is not None else ""
