"""The command ``semantics``: what the modes do on this torch, and whether that is on record."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..errors import StoreError
from ..exit_status import ExitStatus
from ..records.semantics import (
    FILE,
    NOT_RUN,
    Behaviour,
    check_place,
    counted,
    load_of,
    save,
    sights,
    state_words,
    to_json,
)
from ..store.jsonl import check_writable
from .app import AsJson, Results, app, err, examples, one_line_errors, out, say
from .screen import Screen, shown


@app.command(
    epilog=examples("gradbench semantics --pitfalls", "gradbench semantics --json > semantics.json")
)
def semantics(
    *,
    claims: Annotated[
        bool, typer.Option("--claims", help="Each claim of the article, its verdict, the fact.")
    ] = False,
    pitfalls: Annotated[
        bool, typer.Option("--pitfalls", help="Each pitfall, whether it reproduces here, its cure.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="The states, and what operations do in each.")
    ] = False,
    as_json: AsJson = False,
    results: Results = Path("results"),
) -> None:
    """Execute what the modes do on this torch: truth table, claims, pitfalls.

    Exits 0 if all is as recorded for this version of torch, 1 if not, with what differs. The
    answers are saved in results/semantics.json and shown on every page.
    """
    with one_line_errors():
        check_writable(results, "--results")
        check_place(results / FILE)
        behaviour = _examine()
        save(behaviour, results / FILE)
        if as_json:
            print(to_json(behaviour))
        else:
            for wanted, lines in ((table, _table), (claims, _claims), (pitfalls, _pitfalls)):
                if wanted:
                    lines(behaviour)
            _summary(behaviour)
            out.print(f"saved    {shown(str(results / FILE))}")
        for difference in behaviour.differences:
            err.print(f"[red]changed:[/red] {shown(difference)}")
    raise typer.Exit(ExitStatus.CHECK_FAILED if behaviour.differences else ExitStatus.OK)


def _examine() -> Behaviour:
    """Run everything."""
    with err.status("loading torch") as status:
        from ..semantics import examine

        return examine(say=(lambda words: say(status, words)) if err.is_terminal else _silent)


def load_or_examine(results: Path, *, torch: str) -> Behaviour:
    """Return what a results folder has on this version of torch; run everything if it has not."""
    known = load_of(results / FILE, torch=torch)
    if known is not None:
        return known
    err.print(
        "[dim]checking what the modes do on this torch: once per version, under a minute[/dim]"
    )
    behaviour = _examine()
    try:
        save(behaviour, results / FILE)
    except StoreError as error:  # the run is measured: its page is to have it all the same
        err.print(f"[yellow]not kept for the next run: {shown(str(error))}[/yellow]")
    return behaviour


def _silent(_: str) -> None:
    """Where nobody looks, a line for each of a hundred proofs would be noise."""


def _summary(behaviour: Behaviour) -> None:
    counts = ", ".join(
        f"{count} {verdict}" for verdict, count in counted(behaviour).items() if count
    )
    reproduced = [pitfall for pitfall in behaviour.pitfalls if pitfall.shown == "yes"]
    silent = sum(pitfall.silent for pitfall in reproduced)
    cured = sum(pitfall.cured == "yes" for pitfall in reproduced)
    out.print(f"[bold]torch {shown(behaviour.torch)}[/bold], Python {behaviour.python}")
    out.print(
        f"table    {len(behaviour.table)} combinations, {len(sights(behaviour.table))} different "
        "outcomes by state and input"
    )
    out.print(f"claims   {len(behaviour.claims)} of the article: {counts}")
    out.print(
        f"pitfalls {len(behaviour.pitfalls)}: {len(reproduced)} reproduce here, "
        f"{silent} of them silently; the cures of {cured} work"
    )
    for name, reason in _not_run(behaviour):
        out.print(f"[dim]not run  {shown(name)}: {shown(reason)}[/dim]")
    where = f"the record of torch {behaviour.recorded}"
    if behaviour.torch.startswith(f"{behaviour.recorded}."):
        against = where
    else:
        against = f"{where}, the nearest there is"
    changed = len(behaviour.differences)
    out.print(f"record   {changed or 'nothing'} differs from {against}")
    total = sum(behaviour.seconds.values())
    out.print(f"took     {total:.1f} s")


def _not_run(behaviour: Behaviour) -> Iterator[tuple[str, str]]:
    for claim in behaviour.claims:
        if claim.verdict == NOT_RUN:
            yield claim.id, claim.seen
    for pitfall in behaviour.pitfalls:
        if pitfall.shown == NOT_RUN:
            yield pitfall.id, pitfall.shown_seen


def _table(behaviour: Behaviour) -> None:
    constructs = list(dict.fromkeys(step.construct for step in behaviour.transitions))
    states = list(dict.fromkeys(step.before for step in behaviour.transitions))
    after = {(step.before, step.construct): step.after for step in behaviour.transitions}
    moves = Table(box=None, header_style="dim", pad_edge=False, title="entering, from a state")
    moves.add_column("from")
    for construct in constructs:
        moves.add_column(construct)
    for before in states:
        leads = (state_words(after[before, construct]) for construct in constructs)
        moves.add_row(state_words(before), *leads)
    does = Table(box=None, header_style="dim", pad_edge=False, title="what operations do there")
    operations = [name for name, _ in sights(behaviour.table)[0].outcomes]
    for heading in ("state", "input", *operations, "combinations"):
        does.add_column(heading, overflow="fold")
    for sight in sights(behaviour.table):
        state = state_words((sight.grad, sight.inference))
        outcomes = (outcome.words for _, outcome in sight.outcomes)
        does.add_row(state, sight.input, *outcomes, str(sight.contexts))
    restored = sum(row.restored and row.restored_after_error for row in behaviour.table)
    console = Screen(width=out.columns(piped=200))
    console.print(moves, "", does, "")
    out.print(
        f"{restored} of {len(behaviour.table)} combinations restore the state before, "
        "also after an error"
    )
    out.print("[dim]row by row: gradbench.semantics.truth_table(), or --json[/dim]\n")


def _claims(behaviour: Behaviour) -> None:
    for claim in behaviour.claims:
        colour = {"holds": "green", "fails": "red", "raised": "red"}.get(claim.verdict, "yellow")
        out.print(f"[{colour}]{claim.verdict}[/{colour}]: {shown(claim.says)}")
        out.print(f"  [dim]{shown(claim.place)} ({claim.id})[/dim]")
        out.print(f"  {shown(claim.truth)}")
        if claim.seen:
            out.print(f"  seen: {shown(claim.seen)}")
    out.print()


def _pitfalls(behaviour: Behaviour) -> None:
    for pitfall in behaviour.pitfalls:
        reproduces = {"yes": "[red]reproduces here[/red]", "no": "[green]not here[/green]"}.get(
            pitfall.shown, f"[yellow]{pitfall.shown}[/yellow]"
        )
        kind = "silent" if pitfall.silent else "loud"
        out.print(f"[bold]{shown(pitfall.title)}[/bold] ({kind}, {reproduces})")
        for label, words in (
            ("happens", pitfall.happens),
            ("why", pitfall.why),
            ("cure", pitfall.cure),
            ("seen", pitfall.shown_seen),
            (f"cured: {pitfall.cured}", pitfall.cured_seen),
            ("versions", ", ".join(pitfall.versions) or "none on record"),
        ):
            out.print(f"  {label}: {shown(words)}")
        out.print(f"  [dim]{pitfall.link}[/dim]")
    out.print()
