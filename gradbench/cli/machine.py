"""Commands about the machine: ``env`` states its facts, ``selfcheck`` proves the measuring."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from ..errors import Impossible
from ..exit_status import ExitStatus
from ..plurals import counted
from ..records import selfcheck as records
from ..records.selfcheck import CPU, Check
from ..store.jsonl import check_writable
from .app import AsJson, Results, app, err, one_line_errors, out, say
from .screen import Screen, print_json, shown

WATCH_S: Final = 1.0


@app.command()
def env(
    *,
    as_json: AsJson = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Name possible interference, and exit 1 if there is any; remove what killed "
            "commands left.",
        ),
    ] = False,
) -> None:
    """Print the facts that decide whether two runs may be compared."""
    with one_line_errors():
        if check and as_json:
            raise Impossible("--json is of the facts, and --check of what it names: give one")
        from .. import devices
        from ..runner.environment import capture, watch

        facts = {**capture(devices.available()).facts, **(watch(WATCH_S) if check else {})}
        if check:
            from ..analysis.diagnosis import before_a_run
            from ..comparison.leftovers import remove_leftovers

            for words in remove_leftovers():
                out.print(shown(words))
            warnings = before_a_run(facts)
            for finding in warnings:
                out.print(f"{finding.name}: {finding.sentence}: {finding.remedy}")
            out.print("nothing here would interfere with a run" if not warnings else "")
            raise typer.Exit(ExitStatus.CHECK_FAILED if warnings else ExitStatus.OK)
        if as_json:
            print_json(dict(facts), indent=2)
            return
        width = max(map(len, facts))
        for name, value in facts.items():
            out.print(f"{name:{width}}  {shown(str(value))}")


@app.command()
def selfcheck(
    *,
    device: Annotated[
        str, typer.Option(help="What to validate: cpu, or an accelerator such as cuda or cuda:1.")
    ] = CPU,
    thorough: Annotated[
        bool, typer.Option(help="Of the CPU: hundreds of trials, which time for ten minutes alone.")
    ] = False,
    strict: Annotated[
        bool, typer.Option(help="Exit 1 when any target is missed, those of times included.")
    ] = False,
    as_json: AsJson = False,
    results: Results = Path("results"),
) -> None:
    """Validate the measurement on this machine, by A/A tests and injected slowdowns.

    Equal arms must come out equal, an injected slowdown must be detected, memory must match
    arithmetic. It takes under two minutes. The results are saved in results/selfcheck.json and
    shown on every page. The exit status is 1 when memory differs from arithmetic. A missed target
    of times says how well this machine measures, now: only with --strict it is 1, too.

    Of an accelerator, each line is ok, BAD or unreadable with a reason, and the exit status is 1
    when any is BAD. It takes under ten minutes; results/selfcheck-cuda.json is the file to attach
    to a report of a bug.
    """
    with one_line_errors():
        check_writable(results, "--results")
        records.check_place(records.path(results, device))
        if device != CPU:
            if thorough or strict:
                option = "--thorough" if thorough else "--strict"
                raise Impossible(f"{option} is of the CPU's self-check: leave it out")
            _of_an_accelerator(device, results, as_json=as_json)
            return
        from ..selfcheck import checks as checking
        from ..selfcheck.effort import QUICK, THOROUGH

        effort = THOROUGH if thorough else QUICK
        with err.status("loading torch") as status:
            checks, facts = checking.run(effort, say=lambda words: say(status, words))
        path = records.path(results)
        checking.save(checks, facts, path)
        if as_json:
            print(path.read_text("utf-8"))
        else:
            from ..terminal import run_tables

            width = out.columns(piped=run_tables.WIDE + 40)
            Screen(width=width).print(run_tables.check_table(checks))
            where = f"{facts['cpu']}, {counted(facts['cores'], 'core')}, torch {facts['torch']}"
            _say_where(where, facts, path)
    _end(checks, strict=strict)


def _end(checks: Sequence[Check], *, strict: bool) -> NoReturn:
    """End the command: a missed target of times is the machine's, one of bytes is never."""
    missed = any(check.passed is False and (strict or check.exact) for check in checks)
    raise typer.Exit(ExitStatus.CHECK_FAILED if missed else ExitStatus.OK)


def _of_an_accelerator(device: str, results: Path, *, as_json: bool) -> None:
    """Ask everything about the device; exit with `ExitStatus.CHECK_FAILED` if a line is BAD."""
    from ..selfcheck import device_checks
    from ..selfcheck.checks import save

    with err.status("loading torch") as status:
        checks, facts = device_checks.run(device, say=lambda words: say(status, words))
    path = records.path(results, device)
    save(checks, facts, path)
    bad = sum(check.passed is False for check in checks)
    if as_json:
        print(path.read_text("utf-8"))
    else:
        from ..store.comparability import processor
        from ..terminal.run_tables import check_lines

        for line in check_lines(checks):
            out.print(line)
        where = f"{processor(facts, device)}, torch {facts.get('torch')}"
        _say_where(where, facts, path)
        if bad:
            err.print(
                f"[red]{bad} of {len(checks)} BAD[/red]: attach {shown(str(path))} to a report"
            )
    raise typer.Exit(ExitStatus.CHECK_FAILED if bad else ExitStatus.OK)


def _say_where(where: str, facts: Mapping[str, Any], path: Path) -> None:
    out.print(f"{where}, load {facts['load_before']} before, {facts['load_after']} after")
    out.print(f"saved    {shown(str(path))}")
