"""A run as the terminal shows it."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from .app import err, out

if TYPE_CHECKING:
    from ..records.run import Run


def print_run(run: "Run", reference: str) -> None:
    """Print a run's table, what has no number, possible interference, where time went."""
    from ..analysis import run_sentences as words
    from ..analysis.diagnosis import possible_interference
    from ..terminal import run_tables

    width = out.width if out.is_terminal else run_tables.WIDE
    Console(highlight=False, width=width).print(
        run_tables.run_tables(run, reference=reference, width=width)
    )
    for reason in words.reasons(run):
        out.print(f"[dim]{escape(reason)}[/dim]")
    if words.predicted(run):
        out.print(f"[dim]{escape(words.predicted(run))}[/dim]")
    for line in possible_interference(run):
        out.print(f"[yellow]possible interference: {escape(line)}[/yellow]")
    if run.dropped:
        err.print(f"[yellow]{escape(run.dropped)}[/yellow]")
    out.print(f"[dim]{escape(words.spent(run))}[/dim]")


def print_scaling(run: "Run", reference: str) -> None:
    """Print the straight lines through a run's peaks, or that there is nothing to draw one."""
    from ..analysis import dataframes
    from ..terminal import prediction_tables, run_tables

    table = prediction_tables.scaling_tables(dataframes.peaks(run), reference=reference)
    width = out.width if out.is_terminal else run_tables.WIDE
    words = "no cells of this run differ in batch size, depth, width or resolution only"
    Console(highlight=False, width=width).print(table if table is not None else words)
