"""Commands that read what was recorded: ``show``, ``report``, ``runs``."""

from pathlib import Path
from typing import Annotated, Final

import typer

from ..errors import Impossible, UnknownName
from ..experiment.matrix import GRAD_MODES, by_block
from ..plurals import counted
from ..records import selfcheck, semantics
from .app import (
    OpenPage,
    Reference,
    Results,
    RunName,
    Verbose,
    app,
    check_page_name,
    check_reference,
    err,
    examples,
    one_line_errors,
    out,
)
from .exports import load_runs, tell_markdown
from .history import CommitUrl, commit_address
from .printing import open_page, print_run, print_scaling, resume_command
from .screen import shown

FORMATS: Final = ("html", "md")
PAGE: Final = Path("reports/report.html")


@app.command()
def show(
    run_name: RunName = "latest",
    *,
    results: Results = Path("results"),
    reference: Reference = GRAD_MODES[0],
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Peaks over batch size, depth and so on, too.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Print a run's table."""
    with one_line_errors():
        from ..store.jsonl import Store, load

        check_reference(reference)
        run = load(Store(results).find(run_name))
        print_run(run, reference, verbose=verbose)
        if scaling:
            print_scaling(run, reference)


@app.command(
    epilog=examples(
        "gradbench report latest -o page.html --open",
        "gradbench report BEFORE AFTER      the last held against the first",
    )
)
def report(
    run_names: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Without any: the latest.")
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=f"Without it: {PAGE}, or Markdown printed."),
    ] = None,
    results: Results = Path("results"),
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Every figure too, as PNG and SVG.")
    ] = None,
    open_: OpenPage = False,
    format_name: Annotated[
        str, typer.Option("--format", help="html: a page; md: Markdown, for a job summary.")
    ] = "html",
    commit_url: CommitUrl = None,
) -> None:
    """Write one self-contained HTML page, or Markdown, from one or more runs."""
    with one_line_errors():
        if format_name not in FORMATS:
            raise UnknownName("format", format_name, FORMATS)
        if format_name == "md":
            of_a_page = {"--figures": figures, "--open": open_, "--commit-url": commit_url}
            given = [name for name, value in of_a_page.items() if value]
            if given:
                raise Impossible(f"{', '.join(given)} goes with a page: leave out --format md")
            tell_markdown(run_names, output, results=results)
            return
        check_page_name(output)
        from ..gate import rules
        from ..report import save_figures, write

        loaded = load_runs(run_names, results)
        checks = selfcheck.load_all(results)
        torch = loaded[-1].environment.facts.get("torch")
        behaviour = semantics.load_of(results / semantics.FILE, torch=torch)
        url = commit_address(commit_url)
        meters = {outcome.meter for one in loaded for outcome in one.outcomes}
        page = write(
            loaded,
            output or PAGE,
            checks=checks,
            semantics=behaviour,
            commit_url=url,
            rules=rules.in_force(meters) if len(loaded) > 1 else None,
        )
        out.print(shown(str(page)))
        for one in loaded if figures is not None else ():
            assert figures is not None
            folder = figures / one.name if len(loaded) > 1 else figures
            for path in save_figures(one, folder):
                out.print(shown(str(path)))
        if open_:
            open_page(page)


@app.command()
def runs(
    *,
    results: Results = Path("results"),
    quarantine: Annotated[
        bool,
        typer.Option("--quarantine", help="Move runs that are not what was sealed to quarantine/."),
    ] = False,
) -> None:
    """List the runs in results/, and what is wrong with any."""
    with one_line_errors():
        from ..store.jsonl import Store, being_written, load

        store = Store(results)
        moved = store.set_broken_aside() if quarantine else []
        loaded, warnings = store.load_files()
        if not loaded and not warnings and not moved:
            err.print(f"no runs in {shown(repr(str(results)))}")
        where = None if results == Path("results") else results
        for path, listed in loaded.items():
            going = not listed.sealed and being_written(path)
            one = listed if listed.sealed or going else load(path)  # sealed by now, perhaps
            total = len(by_block(one.header.cells))
            if one.sealed:
                state = "complete"
            elif going:
                state = "still going"
            else:
                state = shown(f"cut short: {resume_command(one, where)}")
            blocks = f"{total - len(one.unfinished())} of {counted(total, 'block')}"
            out.print(f"{shown(one.name)}  {blocks}  {state}")
        for complaint in [*moved, *warnings]:
            err.print(f"[yellow]{shown(complaint)}[/yellow]")
