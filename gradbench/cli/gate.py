"""The command ``gate``: runs held against a baseline, an exit status for CI."""

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import Impossible, StoreError
from ..exit_status import GATE, ExitStatus
from ..experiment.toml_file import TomlFile
from ..gate import rules
from .app import (
    AsJson,
    Results,
    SameToo,
    Strict,
    app,
    err,
    examples,
    one_line_errors,
    out,
    say,
)
from .printing import print_prose
from .screen import Screen, print_json, shown

if TYPE_CHECKING:
    from ..gate.result import GateResult
    from ..records.run import Run


def exit_statuses(statuses: Iterable[ExitStatus]) -> str:
    """Return in a line what a command's exit statuses mean."""
    return f"Exit status: {' | '.join(f'{int(one)} {one.words}' for one in sorted(statuses))}."


STATUSES = exit_statuses(GATE)


@app.command(
    epilog=examples(
        "gradbench gate --baseline results/baseline latest",
        "gradbench gate --baseline 'main-*.jsonl' 'pr-*.jsonl' --strict",
        "gradbench gate --save-baseline results/baseline/tiny.jsonl latest",
        before=exit_statuses([*GATE, ExitStatus.SELF_TEST_FAILED]),
    )
)
def gate(
    candidates: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="Candidate: runs, files, globs. Without: latest."),
    ] = None,
    *,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Runs, files, folders or globs to compare with."),
    ] = None,
    rules_file: Annotated[
        Path | None,
        typer.Option("--rules", help="TOML file instead of \\[tool.gradbench.gate]."),
    ] = None,
    correction: Annotated[
        str | None,
        typer.Option(
            help="How the tests of the whole table are corrected: holm (the chance of any false "
            "alarm is at most alpha; default) or fdr (the share of false alarms is)."
        ),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="The chance, or share, of false alarms (0.01).")
    ] = None,
    strict: Strict = False,
    everything: SameToo = False,
    as_json: AsJson = False,
    save_baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the run's exact figures there; no verdicts."),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="First validate the gate on this machine.")
    ] = False,
    results: Results = Path("results"),
) -> None:
    """Compare runs with a baseline and exit 1 on a regression.

    Bytes that repeat are judged as they are: one more is a regression. Ratios between grad modes
    and times are judged by tests over the whole table; times only where both runs come from one
    machine and one software.
    """
    with one_line_errors():
        _check_choices(correction, alpha)
        check_rules_file(rules_file)
        if self_test and save_baseline is None and baseline is None and not candidates:
            _prove()
            return
        if save_baseline is not None:
            of_verdicts = {
                "--baseline": baseline,
                "--rules": rules_file,
                "--correction": correction,
                "--alpha": alpha is not None,
                "--strict": strict,
                "--all": everything,
                "--json": as_json,
            }
            given = [name for name, value in of_verdicts.items() if value]
            if given:
                raise Impossible(
                    f"--save-baseline judges nothing: leave out {', '.join(given)}, or judge apart"
                )
            _save(candidates or ["latest"], save_baseline, results, self_test=self_test)
            return
        if baseline is None:
            raise Impossible("nothing to compare with: give --baseline RUN")
        _gate(
            candidates or ["latest"],
            baseline,
            rules_file=rules_file,
            asked={"correction": correction, "alpha": alpha, "strict": strict or None},
            self_test=self_test,
            everything=everything,
            as_json=as_json,
            results=results,
        )


def _check_choices(correction: str | None, alpha: float | None) -> None:
    """Raise `Impossible` for a value that none of these can have."""
    if correction is not None and correction not in rules.CORRECTIONS:
        raise Impossible(f"--correction is holm or fdr, not {correction!r}")
    if alpha is not None and not 0 < alpha < 1:
        raise Impossible(f"--alpha is a chance between 0 and 1, not {alpha!r}")


def check_rules_file(path: Path | None) -> None:
    """Raise `BadConfig` for a file of rules that cannot be read, before what is missing is said."""
    if path is not None:
        TomlFile.read(path)


def _gate(
    candidates: Sequence[str],
    baseline: Sequence[str],
    *,
    rules_file: Path | None,
    asked: dict[str, Any],
    self_test: bool,
    everything: bool,
    as_json: bool,
    results: Path,
) -> None:
    """Judge the candidates, after a self-test if it is asked for; exit with the status.

    All that is named is looked at before anything is measured.
    """
    from ..gate import decide as gating

    candidate_runs = _load(candidates, results)
    if not candidate_runs:
        err.print(f"[red]gradbench:[/red] no run fits {shown(', '.join(candidates))}")
        raise typer.Exit(ExitStatus.NOTHING_MEASURED)
    baseline_runs, why_none = baseline_of(baseline, results)
    if why_none:
        err.print(f"[yellow]no baseline: {shown(why_none)}[/yellow]")
    baseline_runs = _without_candidates(baseline_runs, candidate_runs, results)
    by = _rules(rules_file, asked, [*candidate_runs, *baseline_runs])
    if self_test and baseline_runs:
        _prove()
    decision = gating.decide(baseline_runs, candidate_runs, by=by)
    status = decision.status(strict=by.strict)
    if as_json:
        print_json(as_plain(decision, status), indent=1)
    elif baseline_runs or status is not ExitStatus.NO_BASELINE:  # or all is said
        show(decision, everything=everything)
        if any(each.unit == "ns" for each in decision.figure_verdicts):
            print_prose(
                "times, latency apart, are the 10th percentile of a run's rounds, so they "
                "differ from the medians of gradbench show",
                style="dim",
            )
        out.print(conclusion(decision, status))
    raise typer.Exit(status)


def _without_candidates(
    baseline_runs: "Sequence[Run]", candidate_runs: "Sequence[Run]", results: Path
) -> "list[Run]":
    """Return the runs of a baseline that are no candidates, too, as of a folder that holds all.

    Raise `Impossible` where there is no other: a run is equal to itself, whatever was measured.
    """
    others = [run for run in baseline_runs if run not in candidate_runs]
    both = sorted((run for run in baseline_runs if run in candidate_runs), key=lambda run: run.name)
    if both and not others:
        from ..store.jsonl import Store

        earlier = Store(results).before(both[0])
        such_as = f", such as the run before it, {earlier}" if earlier else ""
        raise Impossible(
            f"{both[0].name} is on both sides, and a run is always equal to itself: "
            f"give another as --baseline{such_as}"
        )
    for run in both:
        words = f"{shown(run.name)} is the candidate: it is left out of the baseline"
        err.print(f"[yellow]{words}[/yellow]")
    return others


def baseline_of(names: Sequence[str], results: Path) -> "tuple[list[Run], str]":
    """Return the runs of a baseline, or none and why: names, folders and globs may fit none."""
    try:
        runs = _load(names, results)
    except MissingRun as missing:
        return [], str(missing)
    return runs, "" if runs else f"no run fits {', '.join(map(repr, names))}"


class MissingRun(StoreError):
    """A run that was asked for by name and is not there."""


def _load(names: Sequence[str], results: Path) -> "list[Run]":
    """Return the runs that names, paths, folders and globs stand for, each once.

    Of a glob or a folder, a file that cannot be read is named and left out.
    """
    from ..store.jsonl import SEALED, Store, load

    store, loaded = Store(results), {}
    for name in names:
        if not name.strip():  # as a path it would be the current folder
            raise StoreError(f"{name!r} names no run: give its name, a file, a folder or a glob")
        if Path(name).is_dir():
            paths = sorted(Path(name).glob(f"*{SEALED}"))
        elif glob.has_magic(name) and not Path(name).exists():
            near = [Path(path) for path in glob.glob(name)]  # noqa: PTH207 # may be absolute
            there = [results / path for path in glob.glob(name, root_dir=results)]  # noqa: PTH207 # as above
            paths = sorted(near or there)
        else:
            try:
                path = store.find(name)
            except StoreError as error:
                raise MissingRun(str(error)) from error
            loaded[path.resolve()] = load(path)
            continue
        if not paths and len(names) > 1:  # the others would stand for it without a word
            raise MissingRun(f"no run fits {name!r}: leave it out, or say where its runs are")
        for path in paths:
            try:
                loaded[path.resolve()] = load(path)
            except StoreError as error:
                err.print(f"[yellow]left out: {shown(str(error))}[/yellow]")
    return list(loaded.values())


def _rules(path: Path | None, asked: dict[str, Any], runs: "Sequence[Run]") -> rules.Rules:
    """Return the rules of a file, or of the nearest pyproject.toml, with options on top."""
    meters = {record.meter for run in runs for record in run.outcomes}
    by = rules.in_force(meters, path=path)
    return replace(by, **{key: value for key, value in asked.items() if value is not None})


def _save(names: Sequence[str], path: Path, results: Path, *, self_test: bool) -> None:
    from ..store.baseline import check_place, exact_records
    from ..store.jsonl import check_name, write

    runs = _load(names, results)
    if len(runs) != 1:
        raise Impossible(f"--save-baseline takes one run, and {', '.join(names)} is {len(runs)}")
    check_place(path)
    check_name(path)
    records = list(exact_records(runs[0]))
    if self_test:
        _prove()
    out.print(shown(str(write(records, path))))


def _prove() -> None:
    from ..selfcheck.gate import prove
    from ..terminal.run_tables import check_table

    with err.status("loading torch") as status:
        checks = list(prove(say=lambda words: say(status, words)))
    Screen(width=out.columns(piped=120)).print(check_table(checks))
    if not all(check.passed for check in checks):
        err.print(
            "[red]gradbench:[/red] the self-test failed: a gate on this machine proves nothing"
        )
        raise typer.Exit(ExitStatus.SELF_TEST_FAILED)


def show(decision: "GateResult", *, everything: bool) -> None:
    """Print a decision: verdicts, worse first, then what has none."""
    from ..gate.result_text import not_compared_lines
    from ..terminal import verdict_tables

    width = out.columns(piped=verdict_tables.WIDE)
    console = Screen(width=width)
    for table in verdict_tables.verdict_tables(
        decision.figure_verdicts, everything=everything, width=width
    ):
        console.print(table)
    hint = " (--all says why)"
    for line in not_compared_lines(decision.not_compared, everything=everything, hint=hint):
        print_prose(line, style="dim")
    made = Counter(one.machine for one in decision.replicates)
    if made:
        counts = ", ".join(f"{shown(name)} {made[name]}" for name in sorted(made))
        print_prose(f"replicates of cells by machine: {counts}", style="dim")


def conclusion(decision: "GateResult", status: int) -> str:
    """Return a decision in a sentence, for the console."""
    from ..stats.verdicts import Verdict

    counts = ", ".join(
        f"{number} {verdict}"
        for verdict, number in decision.counts.items()
        if number or verdict is not Verdict.WITHIN  # which only compare gives
    )
    match status:
        case ExitStatus.NOTHING_MEASURED:
            untimed = [one.reason for one in decision.not_compared if one.meter == "step_time"]
            untimed += [one.reason for one in decision.figure_verdicts if one.candidate is None]
            reasons = Counter(filter(None, untimed))
            why = reasons.most_common(1)[0][0] if reasons else "the candidate has no number at all"
            return f"nothing measured: {shown(why.splitlines()[-1])}"
        case ExitStatus.NO_BASELINE:
            return "no comparable baseline: nothing could be judged"
        case ExitStatus.REGRESSION:
            return f"[red]regression[/red]: {counts}"
        case ExitStatus.INCONCLUSIVE:
            return f"[yellow]inconclusive[/yellow]: {counts}"
        case _:
            return f"no regression: {counts}"


def as_plain(decision: "GateResult", status: int) -> dict[str, Any]:
    """Return a decision as plain data for JSON."""
    return {
        "status": int(status),
        "counts": dict(decision.counts),
        "verdicts": [
            {**asdict(figure_verdict), "id": str(figure_verdict.cell)}
            for figure_verdict in decision.figure_verdicts
        ],
        "not_compared": [{**asdict(each), "id": str(each.cell)} for each in decision.not_compared],
        **(_on_machines(decision) if decision.machines else {}),
    }


def _on_machines(decision: "GateResult") -> dict[str, Any]:
    """Return which machines of a cluster made which replicates, as plain data."""
    return {
        "machines": {name: dict(facts) for name, facts in decision.machines.items()},
        "replicates": [
            {"id": str(one.cell), "machine": one.machine, "change": one.change}
            for one in decision.replicates
        ],
    }
