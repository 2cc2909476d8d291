"""The command ``compare``: base and candidate side by side, in one job on one machine."""

import math
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ..errors import GradbenchError, Impossible
from ..exit_status import ExitStatus
from ..experiment.matrix import Cell
from ..plurals import counted
from . import bisect as bisecting, cluster, compare_on_ray
from .app import AsJson, SameToo, Strict, app, err, examples, out, say
from .gate import STATUSES, as_plain, check_rules_file, conclusion, show
from .leftovers import clean_up
from .request import Request, obstacles, takes_request
from .screen import print_json, shown

if TYPE_CHECKING:
    from ..comparison.effort import Effort
    from ..gate.result import NotCompared
    from ..workloads.models import Model

BISECTING: Final = "Bisecting"
"""What help calls the options of --bisect."""
OF_BISECTION: Final = {"first_parent": "--first-parent", "times": "--times", "paths": "-- PATH"}
FOLDERS: Final = {"results": "--results", "reports": "--reports"}
OF_EFFORT: Final = {
    "threshold": "--threshold",
    "processes": "--processes",
    "seed": "--seed",
    "instructions": "--instructions",
}
"""Options that a bisection, once begun, goes on with."""


@app.command(
    epilog=examples(
        "gradbench compare --base main --model mypkg.nets:make --input 8,3,224,224",
        "gradbench compare --base-python /envs/old/bin/python --preset tiny",
        "gradbench compare --bisect v1.0..main --model mypkg.nets:make --input 8,3,224,224",
        "gradbench compare --on ray --address 10.0.0.7:6379 --base main --model mypkg.nets:make",
        before=f"{STATUSES} {bisecting.STATUSES}",
    )
)
@takes_request
def compare(
    request: Request,
    *,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- PATH]...", help="With --bisect: only commits that touch these paths."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="REV", help="Revision of this repository to start from.")
    ] = None,
    base_python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The base's interpreter, with its torch and psutil."),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(help="The smallest change of a time that is worse or better, as a share."),
    ] = 0.03,
    processes: Annotated[
        int, typer.Option(help="Processes for each cell; as many fresh ones or more confirm.")
    ] = 5,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Begin nothing that would end later; what is open is inconclusive.",
        ),
    ] = None,
    limit: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="For one answer of a side about a cell; then it is killed, and other cells of "
            "that model and workload are not tried.",
        ),
    ] = 120.0,
    instructions: Annotated[
        bool,
        typer.Option(
            "--instructions",
            help="Count instructions under valgrind too: half a minute, and 20 s for each cell. "
            "With --bisect: of cells whose other counts are equal at both ends.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of weights, inputs and order.")] = 0,
    build: Annotated[
        str,
        typer.Option(
            metavar="COMMAND",
            help="Run by the shell in each revision that is checked out, before it is imported.",
        ),
    ] = "",
    rules_file: Annotated[
        Path | None,
        typer.Option(
            "--rules",
            metavar="FILE",
            help="TOML file instead of \\[tool.gradbench.gate], for what bytes may differ by.",
        ),
    ] = None,
    strict: Strict = False,
    everything: SameToo = False,
    as_json: AsJson = False,
    on: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=cluster.PANEL,
            metavar="CLUSTER",
            help="Make replicates on a cluster: ray on all of its equal machines at once.",
        ),
    ] = None,
    address: cluster.Address = None,
    deadline: cluster.Deadline = None,
    allow_different_versions: cluster.DifferentVersions = False,
    bisect: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=BISECTING,
            metavar="GOOD..BAD",
            help="Find the commits between two revisions that changed a figure.",
        ),
    ] = None,
    first_parent: Annotated[
        bool,
        typer.Option(
            "--first-parent",
            rich_help_panel=BISECTING,
            help="Take merges as one commit each, instead of looking into them.",
        ),
    ] = False,
    times: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=BISECTING,
            metavar="WHICH",
            help="Whose times are bisected: silent (cells whose counts are equal at both ends; "
            "default), all, none (seconds a commit).",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=BISECTING,
            metavar="NAME",
            help="Go on with a bisection that was cut short: its name, a path or latest.",
        ),
    ] = None,
    results: Annotated[
        Path, typer.Option(rich_help_panel=BISECTING, help="Folder of runs.")
    ] = Path("results"),
    reports: Annotated[
        Path, typer.Option(rich_help_panel=BISECTING, help="Folder of pages.")
    ] = Path("reports"),
) -> None:
    """Compare the working tree with another revision or torch; exit 1 when slower or bigger.

    Both are imported into one process, each from its own tree, and take turns of 0.1 ms on the same
    weights; where that cannot be, two processes take turns. Several such processes are compared,
    and what the first ones suspect must be confirmed by fresh ones. A change that is sure and
    smaller than --threshold is within tolerance, and exits 0.

    The bytes that a step saves for backward, and those that it adds at most, are read first. They
    are judged as gradbench gate judges them: one byte more is worse.

    With --bisect it finds the commits that made it slower or bigger: by what the steps make torch
    do first, which repeats, and by times where that is the same.
    """
    cluster.check_named(on, cluster.RAY)  # a wrong choice is said before what is missing
    bisecting.check_choices(times, bisect)
    if not (bisect or resume):
        check_rules_file(rules_file)
    cluster.check_deadline(deadline)
    effort = _effort(
        threshold=threshold,
        processes=processes,
        budget=budget,
        limit_s=limit,
        instructions=instructions,
        seed=seed,
    )
    if build and not (base or bisect or resume):
        raise Impossible("--build goes with --base or --bisect, which check revisions out")
    given = request.typed(OF_BISECTION)
    _check_what_is_compared(
        sides={"--base": base, "--base-python": base_python},
        commits={"--bisect": bisect, "--resume": resume},
        given=[*given, *request.typed(FOLDERS)],
    )
    given_on_ray = {
        "--address": address is not None,
        "--deadline": deadline is not None,
        "--allow-different-versions": allow_different_versions,
    }
    cluster.check_options(on, ray=given_on_ray)
    if on is not None and build:
        raise Impossible("--build is run here, and what it makes goes nowhere: leave out --on ray")
    _check_spreads(on, bisects=not (base or base_python), instructions=instructions)
    _check_rules(rules_file, bisects=not (base or base_python))
    if on is None:
        _check_interpreter(base_python)
    effort = _counting_where_it_can(effort)
    if bisect is None and resume is None:
        _compare(
            request,
            effort,
            base=base,
            base_python=base_python,
            build=build,
            strict=strict,
            rules_file=rules_file,
            everything=everything,
            as_json=as_json,
            outputs=(results, reports),
            on_ray=compare_on_ray.Asked(
                address=address, deadline_s=deadline, versions=allow_different_versions
            )
            if on == cluster.RAY
            else None,
        )
        return
    asked = bisecting.Asked(
        span=bisect,
        resume=resume,
        first_parent=first_parent,
        paths=tuple(paths or ()),
        times=times,
        build=build,
        strict=strict,
        everything=everything,
        as_json=as_json,
        results=results,
        reports=reports,
        given=(*given, *request.typed(OF_EFFORT)),
    )
    bisecting.bisect(request, asked, effort)


def _check_what_is_compared(
    *,
    sides: Mapping[str, str | None],
    commits: Mapping[str, str | None],
    given: Sequence[str],
) -> None:
    """Raise `Impossible` unless it is one of: a base, a range of commits, a bisection cut short."""
    of_sides = [name for name, value in sides.items() if value is not None]
    of_commits = [name for name, value in commits.items() if value is not None]
    if len(of_commits) > 1:
        raise Impossible("--resume goes on with the range that it began with: leave out --bisect")
    if of_commits and of_sides:
        raise Impossible(f"{of_commits[0]} names both sides: leave out {', '.join(of_sides)}")
    if given and not of_commits:
        meant = "" if of_sides else "; a revision to compare with, with --base"
        raise Impossible(f"{', '.join(given)} goes with --bisect GOOD..BAD{meant}")
    if not of_sides and not of_commits:
        raise Impossible(
            "nothing to compare with: give --base REV, --base-python PATH, or both; "
            "or --bisect GOOD..BAD"
        )


def _check_spreads(on: str | None, *, bisects: bool, instructions: bool) -> None:
    """Raise `Impossible` for what a cluster does not do."""
    if on is not None and bisects:
        raise Impossible("--on ray goes with --base or --base-python: a bisection is made here")
    if on is not None and instructions:
        raise Impossible("--instructions are counted here: leave out --on ray")


def _check_interpreter(python: str | None) -> None:
    """Raise `Impossible` for an interpreter that cannot be run here."""
    if python is not None and shutil.which(python) is None:
        raise Impossible(
            f"--base-python {python!r} is no program that can be run: give the path of a Python"
        )


def _check_rules(rules_file: Path | None, *, bisects: bool) -> None:
    """Raise `Impossible` for rules of what may differ where any difference is looked for."""
    if rules_file is not None and bisects:
        raise Impossible("--rules goes with --base or --base-python: a bisection finds any change")


def _effort(
    *,
    threshold: float,
    processes: int,
    budget: float | None,
    limit_s: float,
    instructions: bool,
    seed: int,
) -> "Effort":
    """Return how hard to compare; raise for a value that none can have."""
    from ..comparison.effort import Effort
    from ..comparison.replicate_effort import Replication

    return Effort(
        threshold=threshold,
        processes=processes,
        budget_s=math.inf if budget is None else budget,
        instructions=instructions,
        seed=seed,
        replication=Replication(limit_s=limit_s),
    )


def _counting_where_it_can(effort: "Effort") -> "Effort":
    """Return the effort without instructions where these cannot be counted, and say why."""
    from ..comparison import instruction_counts

    no_counts = instruction_counts.obstacle() if effort.instructions else ""
    if no_counts:
        err.print(f"instructions are not counted: {shown(no_counts)}")
    return replace(effort, instructions=effort.instructions and not no_counts)


def _compare(
    request: Request,
    effort: "Effort",
    *,
    base: str | None,
    base_python: str | None,
    build: str,
    strict: bool,
    rules_file: Path | None,
    everything: bool,
    as_json: bool,
    outputs: Sequence[Path],
    on_ray: compare_on_ray.Asked | None,
) -> None:
    """Compare the working tree with the base; print verdicts and exit with the status."""
    from ..comparison import checkouts, versions
    from ..gate import rules
    from ..runner.meters import METERS
    from ..workloads.models import sources_of

    began, here = time.monotonic(), Path.cwd()
    by = rules.in_force(METERS, path=rules_file)
    clean_up()
    with ExitStack() as stack:
        status = stack.enter_context(err.status("loading torch"))
        old, new, itself = stack.enter_context(
            checkouts.checked_out_versions(
                here=here, revision=base, base_python=base_python, build=build
            )
        )
        spread = None
        if on_ray is not None:
            say(status, "sending both versions to the machines")
            sent = compare_on_ray.connected(
                on_ray, base=old, candidate=new, itself=itself, base_python=base_python
            )
            spread = stack.enter_context(sent)
        there = spread.cluster.devices() if spread is not None else None
        cells, _, models = request.cells({}, there=there)
        own = sources_of(cells, models)
        checkouts.check(cells, own, itself=itself, other_python=base_python is not None)
        left_out = _left_out(cells, models, elsewhere=spread is not None)
        if base is not None:
            _say_what_is_compared(base, old.tree, new.tree, build=build, outputs=outputs)
            bisecting.say_what_is_shared(old.environment)
        able = [cell for cell in cells if cell not in {one.cell for one in left_out}]
        left_s = max(effort.budget_s - (time.monotonic() - began), 1e-9)
        effort = replace(effort, budget_s=left_s, rules=by)
        decision = versions.compare(
            able,
            base=old,
            candidate=new,
            effort=effort,
            sources=own,
            replicates=spread.replicates(able, sources=own, effort=effort) if spread else None,
            say=lambda words: say(status, words),
        )
    decision = replace(decision, not_compared=(*left_out, *decision.not_compared))
    result = decision.status(strict=strict)
    if as_json:
        print_json(as_plain(decision, result), indent=1)
    else:
        show(decision, everything=everything)
        seconds = time.monotonic() - began
        out.print(f"{conclusion(decision, result)}  [dim]{seconds:.0f} s[/dim]")
        if result is ExitStatus.REGRESSION and base is not None and base_python is None:
            _say_how_to_bisect(request, base, here, build=build)
    raise typer.Exit(result)


def _left_out(
    cells: Sequence[Cell], models: "Mapping[str, Model]", *, elsewhere: bool
) -> "tuple[NotCompared, ...]":
    """Return the cells that cannot run, with their reasons.

    Of other machines this one knows only what holds where a cluster counts no devices.
    """
    from .. import devices
    from ..gate.result import NotCompared
    from ..runner import preflight

    preflight.check(cells, models)
    known = [
        cell for cell in cells if not (elsewhere and devices.find(cell.device).cluster_resource)
    ]
    return tuple(
        NotCompared(cell=cell, meter="step_time", why="no number", reason=reason)
        for cell, reason in obstacles(known, models).items()
    )


def _say_how_to_bisect(request: Request, base: str, here: Path, *, build: str) -> None:
    """Print the command that finds the commit, where there are several between base and HEAD."""
    from ..comparison import commits, worktree

    span = f"{base}..HEAD"
    try:
        between = commits.between(worktree.repository(here), span, first_parent=False)
    except GradbenchError:  # they part, or are one commit: what is worse is not committed
        return
    if len(between.commits) > 1:
        which = counted(len(between.commits), "commit")
        built = ["--build", build] if build else []
        asked = ["gradbench", "compare", "--bisect", span, *request.arguments(), *built]
        command = shlex.join(asked)
        err.print(f"[dim]which of {which} it was: {shown(command)}[/dim]")


def _say_what_is_compared(
    base: str, old: Path, new: Path, *, build: str, outputs: Sequence[Path]
) -> None:
    """Name the base's commit, and whether the candidate is more than a commit."""
    from ..comparison import worktree

    err.print(f"[dim]the base is {shown(base)}, commit {worktree.commit(old, 'HEAD')[:10]}[/dim]")
    if worktree.is_dirty(new, outputs=outputs):
        err.print("the working tree has uncommitted changes: they are part of the candidate")
    if hint := worktree.hint_at_submodules(old, build):
        err.print(hint)
