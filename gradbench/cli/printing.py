"""A run as the terminal shows it."""

import itertools
import re
import shlex
import textwrap
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..plurals import counted
from ..printable import printable
from .app import err, out
from .screen import Screen, shown, shown_lines

if TYPE_CHECKING:
    from ..analysis.advice import Advice
    from ..records.explanation import Explanation
    from ..records.run import Run

PROSE: Final = 100
"""Columns of prose where no terminal says how many there are."""
NOTES: Final = 5
"""Lines beneath a run's tables, unless all are asked for."""

SENTENCES: Final = 4
"""Of axes beside the grad mode, unless all are asked for."""

STYLES: Final = {"lost": "red", "interference": "yellow", "aside": "dim"}


def print_run(
    run: "Run", reference: str, *, verbose: bool = False, more: str = "--verbose"
) -> None:
    """Print a run's tables, what they say in a sentence or two, and the notes that matter most.

    ``more`` is what shows those that are left out.
    """
    from ..analysis import evaluations, headline, other_axes
    from ..analysis.closing_notes import closing_notes
    from ..analysis.run_view import View
    from ..terminal import run_tables

    width = out.columns(piped=run_tables.WIDE)
    Screen(width=width).print(run_tables.run_tables(run, reference=reference, width=width))
    view = View(run)
    for sentence in (*headline.answer(view), *evaluations.sentences(view)):
        for line in wrapped(sentence):
            out.print(marked(line))
    beside = other_axes.sentences(view)
    for sentence in beside if verbose else beside[:SENTENCES]:
        print_prose(sentence, style="default")
    if not verbose and len(beside) > SENTENCES:
        out.print(f"[dim]{len(beside) - SENTENCES} more such lines: {shown(more)}[/dim]")
    if run.dropped:
        err.print(f"[yellow]{shown(run.dropped)}[/yellow]")
    print_tracebacks(run)
    notes = closing_notes(run)
    kept = [note for note in notes if note.always]
    others = [note for note in notes if not note.always]
    few = [note for note in others if not note.in_full]
    room = NOTES - len(kept)
    if verbose:
        few = others
    elif len(few) < len(others) or len(few) > room:
        few = few[: room - 1]
    hidden = len(others) - len(few)
    for note in few:
        print_prose(note.text, style=STYLES[note.kind])
    if hidden:
        out.print(f"[dim]{counted(hidden, 'more note')}: {shown(more)}, and on the page[/dim]")
    for note in kept:
        print_prose(note.text, style=STYLES[note.kind])


def print_tracebacks(run: "Run") -> None:
    """Print what the user's own code raised, each traceback once, from their first frame on."""
    from ..analysis import run_sentences

    for line, traceback in run_sentences.tracebacks(run):
        print_frames(line, traceback)


def print_frames(line: str, traceback: str) -> None:
    """Print a traceback of the user's, after a line that says whose step raised it."""
    out.print(f"[red]{shown(line)}[/red]\n{shown_lines(traceback)}")


def print_prose(text: str, *, style: str) -> None:
    """Print text, of others too, in lines that can be read."""
    for line in wrapped(text):
        out.print(f"[{style}]{shown(line)}[/{style}]")


def wrapped(text: str) -> list[str]:
    """Return text in lines that fit the screen; names stay whole, and what goes on is indented."""
    return textwrap.wrap(
        printable(text),
        out.columns(piped=PROSE),
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def marked(sentence: str) -> str:
    """Return a sentence as markup, its names in backticks in bold instead."""
    return re.sub(r"`([^`]*)`", r"[bold]\1[/bold]", shown(sentence))


def resume_command(run: "Run", results: Path | None = None) -> str:
    """Return the command that goes on with a run that was cut short."""
    own = ",".join(run.header.sources)
    models = f" --model {shlex.quote(own)}" if own else ""
    where = f" --results {shlex.quote(str(results))}" if results is not None else ""
    return f"gradbench run --resume {run.name}{models}{where}{_cluster_options(run)}"


def _cluster_options(run: "Run") -> str:
    """Return the options by which a run on a Ray cluster goes on there, as it was begun."""
    if _given(run.header.command, "--on") != "ray":
        return ""
    address = _given(run.header.command, "--address")
    return " --on ray" + (f" --address {shlex.quote(address)}" if address else "")


def _given(command: Sequence[str], option: str) -> str | None:
    """Return the value that a command line gives an option, as its next word or behind ``=``."""
    for word, following in itertools.zip_longest(command, command[1:]):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else following
    return None


def print_scaling(run: "Run", reference: str) -> None:
    """Print the straight lines through a run's peaks, or that there is nothing to draw one."""
    from ..analysis import dataframes
    from ..terminal import prediction_tables, run_tables

    table = prediction_tables.scaling_tables(dataframes.peaks(run), reference=reference)
    width = out.columns(piped=run_tables.WIDE)
    words = "no cells of this run differ in batch size, depth, width or resolution only"
    Screen(width=width).print(table if table is not None else words)


def open_study(
    run: "Run",
    results: Path,
    reports: Path,
    *,
    advice: "Advice | None" = None,
    explanation: "Explanation | None" = None,
) -> None:
    """Write the page of a study's run, with what was found of it, and show it in the browser."""
    from ..records import selfcheck, semantics
    from ..report import write

    torch = run.environment.facts.get("torch")
    page = write(
        run,
        reports / f"{run.name}.html",
        checks=selfcheck.load_all(results),
        semantics=semantics.load_of(results / semantics.FILE, torch=torch),
        advice=advice,
        explanation=explanation,
    )
    out.print(f"page     {shown(str(page))}")
    open_page(page)


def open_page(page: Path) -> None:
    """Show a page in the browser, or say that there is none."""
    if not webbrowser.open(page.resolve().as_uri()):
        err.print("found no browser to open the page with")
