"""Commands about the machine: ``env`` states its facts, ``selfcheck`` proves the measuring."""

import json
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape

from ..exit_status import ExitStatus
from ..records.selfcheck import FILE
from ..store.jsonl import check_writable
from .app import Results, app, err, one_line_errors, out, say

WATCH_S: Final = 1.0


@app.command()
def env(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Name possible interference; exit 1 if there is any.")
    ] = False,
) -> None:
    """Print the facts that decide whether two runs may be compared."""
    with one_line_errors():
        from .. import devices
        from ..runner.environment import capture, watch

        facts = {**capture(devices.available()).facts, **(watch(WATCH_S) if check else {})}
        if check:
            from ..analysis.diagnosis import before_a_run

            warnings = before_a_run(facts)
            for finding in warnings:
                out.print(f"{finding.name}: {finding.sentence}: {finding.remedy}")
            out.print("nothing here would interfere with a run" if not warnings else "")
            raise typer.Exit(ExitStatus.CHECK_FAILED if warnings else ExitStatus.OK)
        if as_json:
            print(json.dumps(dict(facts), indent=2))
            return
        width = max(map(len, facts))
        for name, value in facts.items():
            out.print(f"{name:{width}}  {escape(str(value))}")


@app.command()
def selfcheck(
    *,
    thorough: Annotated[
        bool, typer.Option(help="Hundreds of trials, which time for ten minutes alone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    results: Results = Path("results"),
) -> None:
    """Validate the measurement on this machine, by A/A tests and injected slowdowns.

    Equal arms must come out equal, an injected slowdown must be detected, memory must match
    arithmetic. It takes under two minutes. The results are saved in results/selfcheck.json and
    shown on every page.
    """
    with one_line_errors():
        check_writable(results, "--results")
        from ..selfcheck import checks as checking
        from ..selfcheck.effort import QUICK, THOROUGH

        effort = THOROUGH if thorough else QUICK
        with err.status("loading torch") as status:
            checks, facts = checking.run(effort, say=lambda words: say(status, words))
        path = results / FILE
        checking.save(checks, facts, path)
        if as_json:
            print(path.read_text("utf-8"))
            return
        from ..terminal import run_tables

        width = out.width if out.is_terminal else run_tables.WIDE + 40
        Console(highlight=False, width=width).print(run_tables.check_table(checks))
        where = f"{facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}"
        out.print(f"{where}, load {facts['load_before']} before, {facts['load_after']} after")
        out.print(f"saved    {escape(str(path))}")
