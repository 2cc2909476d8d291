"""``gradbench compare --bisect``: which commit made it slower or bigger."""

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, get_args

import typer

from ..errors import GradbenchError, Impossible
from ..exit_status import ExitStatus
from ..git import GitError
from ..plurals import counted
from ..printable import printable
from ..store.jsonl import check_writable
from .app import err, out, say
from .history import commit_address
from .leftovers import clean_up
from .printing import print_prose
from .request import Request, check_named_again, obstacles
from .screen import Screen, print_json, shown

if TYPE_CHECKING:
    from ..analysis.bisection import Findings
    from ..analysis.bisection_changes import Change
    from ..analysis.bisection_text import Files
    from ..comparison.checkouts import Project
    from ..comparison.effort import Effort
    from ..records.bisection import Bisection
    from ..store.bisections import BisectionFile

STATUSES: Final = (
    "With --bisect: 1 where the bad commit is worse than the good one in any figure, 0 where it is "
    "not, 3 where the budget ended before that was known."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked of a bisection, beside the cells; ``given`` are options that begin one."""

    span: str | None
    resume: str | None
    first_parent: bool
    paths: tuple[str, ...]
    times: str | None
    build: str
    strict: bool
    everything: bool
    as_json: bool
    results: Path
    reports: Path
    given: tuple[str, ...]


def check_choices(times: str | None, span: str | None) -> None:
    """Raise `Impossible` unless it says whose times are bisected, and between which commits."""
    from ..comparison import commits
    from ..records.bisection import Times

    if times is not None and times not in get_args(Times):
        raise Impossible(f"--times is one of {', '.join(get_args(Times))}, not {times!r}")
    if span is not None:
        commits.ends_of(span)


def bisect(request: Request, asked: Asked, effort: "Effort") -> None:
    """Find the commits that changed a figure; print them, write a page, exit with the status."""
    from ..comparison import checkouts
    from ..comparison.bisector import Bisector

    for folder, option in ((asked.results, "--results"), (asked.reports, "--reports")):
        check_writable(folder, option)
    began = time.monotonic()
    clean_up()
    with (
        err.status("loading torch") as status,
        checkouts.opened_project(Path.cwd(), at_commits=True, build=asked.build) as project,
    ):
        if asked.resume is None:
            file, record = _begin(request, asked, effort, project)
        else:
            file, record = _go_on(request, asked, asked.resume, project)
        with file:
            bisector = Bisector(
                project,
                file,
                record,
                replication=effort.replication,
                say=lambda words: say(status, words),
            )
            try:
                budget_s = effort.budget_s - (time.monotonic() - began)
                found = bisector.run(budget_s=budget_s)
            except KeyboardInterrupt:
                measured = counted(len(bisector.record.counted), "count")
                how = _how(bisector.record, file, asked)
                err.print(f"stopped: {measured} and all times so far are kept; {how}")
                raise typer.Exit(ExitStatus.INTERRUPTED) from None
        files = _files(project, found)
    page = _write_page(found, files, file, asked)
    _show(found, files, file, asked, page=page, seconds=time.monotonic() - began)
    raise typer.Exit(found.status(strict=asked.strict))


def say_what_is_shared(folders: Sequence[Path]) -> None:
    """Say which folders of the checkout no version has for itself, so that all import from them."""
    for folder in folders:
        err.print(
            f"git ignores {shown(repr(str(folder)))}, which is on the import path: what is "
            "imported from there is the same for both versions"
        )


def _begin(
    request: Request, asked: Asked, effort: "Effort", project: "Project"
) -> "tuple[BisectionFile, Bisection]":
    """Return the file and the record of a new bisection, when all that was asked for is checked."""
    from ..comparison import checkouts, commits, worktree
    from ..records.bisection import Bisection, Times
    from ..runner import preflight
    from ..store import bisections
    from ..workloads.models import sources_of

    assert asked.span is not None
    times = asked.times or "silent"
    paths = commits.from_root(project.inside, asked.paths)
    span = commits.between(project.root, asked.span, first_parent=asked.first_parent, paths=paths)
    cells, _, models = request.cells({})
    own = sources_of(cells, models)
    checkouts.check(cells, own, itself=project.itself, other_python=False)
    preflight.check(cells, models)
    left_out = obstacles(cells, models)
    for why in dict.fromkeys(left_out.values()):
        which = counted(sum(reason == why for reason in left_out.values()), "cell")
        err.print(f"[dim]left out: {which}: {shown(why)}[/dim]")
    cells = [cell for cell in cells if cell not in left_out]
    if not cells:
        err.print("nothing measured: no cell can run on this machine")
        raise typer.Exit(ExitStatus.NOTHING_MEASURED)
    if worktree.is_dirty(project.root, outputs=(asked.results, asked.reports)):
        err.print(
            "the working tree has uncommitted changes: they are in no commit, and not looked at"
        )
    if hint := worktree.hint_at_submodules(project.root, asked.build):
        err.print(hint)
    say_what_is_shared(project.ignored)
    which = "along first parents" if asked.first_parent else "of the full history"
    number = len(span.commits)
    err.print(
        f"[dim]{span.good[:10]}..{span.bad[:10]}: {counted(number, 'commit')} {which}, about "
        f"{counted(number.bit_length(), 'step')} for each change[/dim]"
    )
    record = Bisection(
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        asked=asked.span,
        good=span.good,
        bad=span.bad,
        first_parent=asked.first_parent,
        paths=paths,
        cells=tuple(cells),
        sources=own,
        times=cast("Times", times),
        threshold=effort.threshold,
        processes=effort.processes,
        seed=effort.seed,
        build=asked.build,
        instructions=effort.instructions,
        commits=span.commits,
        border=span.border,
    )
    return bisections.create(asked.results), record


def _go_on(
    request: Request, asked: Asked, name: str, project: "Project"
) -> "tuple[BisectionFile, Bisection]":
    """Return the file and the record of a bisection that was cut short.

    A file says which code its models are, and somebody else may have written it: whoever goes on
    names them again, and git says anew which commits there are.
    """
    from ..comparison import commits, instruction_counts
    from ..store import bisections

    leave_out = [*(option for option in request.given if option != "--model"), *asked.given]
    if leave_out:
        raise Impossible(
            f"a resumed bisection goes on as it began: leave out {', '.join(leave_out)}"
        )
    file, record = bisections.resume(asked.results, name)
    with ExitStack() as stack:
        stack.enter_context(file)
        check_named_again(record.sources, request)
        _check_built_alike(record, asked)
        if record.instructions and (why := instruction_counts.obstacle()):
            raise Impossible(f"it counts instructions, which cannot be done here: {why}")
        span = commits.between(
            project.root,
            f"{record.good}..{record.bad}",
            first_parent=record.first_parent,
            paths=record.paths,
        )
        if [one.id for one in span.commits] != [one.id for one in record.commits]:
            raise GradbenchError(
                f"{str(project.root)!r} has other commits between {record.good[:10]} and "
                f"{record.bad[:10]} than {file.path.name}: begin anew"
            )
        stack.pop_all()  # whoever asked closes it
    kept = counted(len(record.counted), "count")
    replicates = counted(sum(len(one.logs) for one in record.timed), "replicate")
    err.print(f"[dim]going on with {shown(file.path.stem)}: {kept} and {replicates} are kept[/dim]")
    return file, replace(record, commits=span.commits, border=span.border)


def _check_built_alike(record: "Bisection", asked: Asked) -> None:
    """Raise `Impossible` unless the command that builds is given again as it was."""
    if asked.build == record.build:
        return
    if not record.build:
        raise Impossible("it was begun without --build: leave that out")
    raise Impossible(
        "it goes on with the build command that it began with, which somebody else may have "
        f"written: give it again, --build {shlex.quote(printable(record.build))}"
    )


def _how(record: "Bisection", file: "BisectionFile", asked: Asked) -> str:
    """Return in words how to go on."""
    own = ",".join(record.sources)
    models = f" --model {shlex.quote(own)}" if own else ""
    build = f" --build {shlex.quote(record.build)}" if record.build else ""
    where = f" --results {shlex.quote(str(asked.results))}"
    name = file.path.stem
    return shown(f"go on with: gradbench compare --resume {name}{models}{build}{where}")


def _files(project: "Project", found: "Findings") -> "Files":
    """Return the files that each culprit changes, and how much of each."""
    from ..comparison.commits import changed_files

    files = {}
    for commit in dict.fromkeys(one for culprit in found.culprits for one in culprit.suspects):
        try:
            changed = changed_files(project.root, found.graph.by_id[commit])
        except GitError:  # of a shallow clone, whose first commits have no parents there
            continue
        files[commit] = [(one.path, one.words) for one in changed]
    return files


def _write_page(
    found: "Findings",
    files: "Files",
    file: "BisectionFile",
    asked: Asked,
) -> Path:
    from ..history.commit_links import linker
    from ..report.bisection import render
    from ..report.template import save

    html = render(found, files, name=file.path.stem, link=linker(commit_address(None)))
    return save(html, asked.reports / f"bisection-{file.path.stem}.html")


def _show(
    found: "Findings",
    files: "Files",
    file: "BisectionFile",
    asked: Asked,
    *,
    page: Path,
    seconds: float,
) -> None:
    from ..analysis.bisection_text import answer, notes
    from ..terminal.bisection_tables import bisection_tables
    from ..terminal.run_tables import WIDE

    status = found.status(strict=asked.strict)
    if asked.as_json:
        places = {"record": str(file.path), "page": str(page)}
        print_json({"status": int(status), **places, **_as_plain(found, files)}, indent=1)
        return
    width = out.columns(piped=WIDE)
    screen = Screen(width=width)
    for part in bisection_tables(found, files, everything=asked.everything, width=width):
        screen.print(part)
    for note in notes(found):
        print_prose(note, style="dim")
    print_prose(answer(found), style="bold")
    if not found.is_finished:
        out.print(_how(found.record, file, asked))
    out.print(f"records  {shown(str(file.path))}\npage     {shown(str(page))}")
    out.print(f"[dim]{seconds:.0f} s[/dim]")


def _as_plain(found: "Findings", files: "Files") -> dict[str, Any]:
    """Return what came of it as plain data for JSON."""
    from ..analysis.bisection_changes import UNITS
    from ..analysis.bisection_text import answer, columns, notes, rows

    record, shown_columns = found.record, columns(found)
    return {
        "answer": answer(found),
        "asked": record.asked,
        "good": record.good,
        "bad": record.bad,
        "first_parent": record.first_parent,
        "finished": found.is_finished,
        "culprits": [
            {
                "verdict": culprit.verdict,
                "suspects": [asdict(found.graph.by_id[one]) for one in culprit.suspects],
                "files": {one: dict(files.get(one, ())) for one in culprit.suspects},
                "changes": [
                    {
                        "id": str(change.key.cell),
                        "cell": asdict(change.key.cell),
                        "figure": change.key.figure,
                        "verdict": change.verdict,
                        "unit": UNITS.get(change.key.figure, "count"),
                        "compared_with": change.before,
                        "before": change.old,
                        "after": change.new,
                        "interval": _interval(change),
                        "why": printable(change.words),
                    }
                    for change in culprit.changes
                ],
            }
            for culprit in found.culprits
        ],
        "commits": [
            {
                **asdict(row.commit),
                "role": row.role,
                "reason": row.reason,
                "figures": [
                    {"figure": column.figure, "cells": list(map(str, column.cells)), "value": value}
                    for column, value in zip(shown_columns, row.values, strict=True)
                    if value is not None
                ],
            }
            for row in rows(found, shown_columns)
        ],
        "times_not_compared": [str(cell) for cell in found.times.left_out],
        "notes": [printable(note) for note in notes(found)],
    }


def _interval(change: "Change") -> list[float] | None:
    return [change.estimate.low, change.estimate.high] if change.estimate is not None else None
