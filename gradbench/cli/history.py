"""Commands over many runs: ``history`` shows series and their changes, ``pack`` makes Parquet."""

import filecmp
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ..errors import Impossible, StoreError
from ..exit_status import ExitStatus
from ..experiment.matrix import AXES
from ..git import GitError, git
from ..plurals import counted
from .app import AsJson, app, check_page_name, err, examples, one_line_errors, out, split
from .screen import Screen, print_json_list, shown

if TYPE_CHECKING:
    from ..history.figures import Origin
    from ..history.parquet_write import Packer
    from ..history.series import Series

ROWS: Final = 30
"""Series without a change that are listed where none has one, unless all are asked for."""

CommitUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="A commit's page, {commit} in its place. Without it: as git's origin says.",
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE...",
        help="Folders of runs (and what lies below), run files, packs, URLs of packs. "
        "Without any: results.",
    ),
]


@app.command(
    epilog=examples(
        "gradbench history artifacts/ --meter step_time --grad-mode inference_mode",
        before="Exit status: 0 shown, 1 with --fail-on-worse where a figure got worse among its "
        "last points, 2 wrong usage, 5 nothing to show.",
    )
)
def history(
    sources: Sources = None,
    *,
    model: Annotated[list[str] | None, typer.Option(help="Only these models.")] = None,
    workload: Annotated[list[str] | None, typer.Option(help="Only these workloads.")] = None,
    grad_mode: Annotated[list[str] | None, typer.Option(help="Only these grad modes.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="Only these devices.")] = None,
    meter: Annotated[list[str] | None, typer.Option(help="Only these meters.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="Only runs of this day (UTC) and after it.")
    ] = None,
    branch: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Only runs of commits that are on this branch, as the checkout here knows it.",
        ),
    ] = None,
    renamed: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="A model that has a new name.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="List the series without a change too.")
    ] = False,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write a page as well.")
    ] = None,
    commit_url: CommitUrl = None,
    fail_on_worse: Annotated[
        int | None,
        typer.Option(
            metavar="POINTS",
            min=1,
            help="Exit 1 where one of the last POINTS is a regression.",
        ),
    ] = None,
) -> None:
    """Show every metric over the commits it was measured at, and where its level changed.

    Times have a series per machine; their ratios to the block's first grad mode span machines. A
    change of a time takes five points on each side and 2%; of a deterministic metric, any
    difference.
    """
    with one_line_errors():
        from ..history import chosen as chosen_by, series as past
        from ..history.series_text import protocols

        chosen = chosen_by.Chosen(
            models=tuple(split(model, "--model")),
            workloads=_known("workload", workload),
            grad_modes=_known("grad_mode", grad_mode),
            devices=chosen_by.canonical_devices(split(device, "--device")),
            meters=tuple(split(meter, "--meter")),
            since=chosen_by.parse_since(since) if since is not None else "",
            commits=_commits_of(branch) if branch is not None else None,
            renamed=chosen_by.parse_renamed(renamed or ()),
        )
        check_page_name(output)
        url = commit_address(commit_url)
        figures = past.read(sources or ["results"], chosen)
        series, left_out = past.history(figures, chosen=chosen)
        warnings = [*figures.warnings, *left_out, *protocols(series)]
        for words in warnings:
            err.print(f"[yellow]{shown(words)}[/yellow]")
        if output is not None:
            pages = _write_page(series, output, warnings=warnings, commit_url=url)
    if as_json:
        _print_json(series, warnings=warnings, commit_url=url)
    else:
        origins = [one for one in figures.origins.values() if chosen.takes_run(one)]
        _print(series, origins=origins, every=every)
        if output is not None:
            more = f" and {counted(pages - 1, 'page')} behind it" if pages > 1 else ""
            out.print(f"page     {shown(str(output))}{more}")
    if not series:
        if not as_json:
            err.print(
                "no figure there: measure with gradbench run, or ask for less with fewer options"
            )
        raise typer.Exit(ExitStatus.NOTHING_MEASURED)
    if fail_on_worse is not None and any(_worse(one, fail_on_worse) for one in series):
        raise typer.Exit(ExitStatus.REGRESSION)


@app.command(
    epilog=examples(
        "gradbench pack results -o pack",
        "gradbench pack artifacts -o s3://bucket/gradbench",
        "gradbench history s3://bucket/gradbench",
    )
)
def pack(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SOURCE...", help="Folders of runs, or run files."),
    ] = None,
    *,
    output: Annotated[str, typer.Option("-o", "--output", help="Folder or URL of the dataset.")],
    rounds: Annotated[bool, typer.Option(help="Raw rounds too.")] = True,
) -> None:
    """Add runs to a Parquet dataset that pandas, DuckDB and Spark read directly.

    A row is a figure of a cell. Runs that the dataset has already are left out, so the same command
    may run after every measurement.
    """
    with one_line_errors():
        from ..history.parquet_write import Packer

        warnings: list[str] = []
        by_name: dict[str, Path] = {}
        with Packer(output, rounds=rounds) as packer:
            for path in _run_files(sources or [Path("results")], warnings):
                _pack_one(packer, path, by_name, warnings)
        packed = packer.packed
    for words in warnings:
        err.print(f"[yellow]{shown(words)}[/yellow]")
    for name in packed.files:
        out.print(shown(name))
    out.print(
        f"added {counted(packed.runs, 'run')}, {counted(packed.rows, 'row')}; "
        f"there before: {counted(packed.before, 'run')}"
    )
    if not packed.runs and not packed.before:
        raise typer.Exit(ExitStatus.NOTHING_MEASURED)


def commit_address(given: str | None) -> str:
    """Return the template of commits' addresses: as given, or as the remote ``origin`` says."""
    from ..history.commit_links import commit_url, linker

    if given is not None:
        linker(given)  # says what is wrong with it
        return given
    try:
        return commit_url(git("remote", "get-url", "origin"))
    except GitError:
        return ""


def _run_files(sources: Sequence[Path], warnings: list[str]) -> Iterator[Path]:
    """Yield the files of sealed runs in folders and among files; say of the others why not."""
    from ..history.sqlite_index import run_files
    from ..store.jsonl import PART

    for source in sources:
        if not source.exists():
            raise StoreError(f"no runs in {str(source)!r}: there is no such folder or file")
        for path in run_files(source, warnings) if source.is_dir() else [source]:
            if path.name.endswith(PART):
                warnings.append(f"{path} is not complete: it is left out until it is")
            else:
                yield path


def _pack_one(packer: "Packer", path: Path, by_name: dict[str, Path], warnings: list[str]) -> None:
    """Pack a run; one that is there already is not read again.

    ``by_name`` are the files so far: of two runs that have one name, one counts, which is said.
    """
    from ..store.jsonl import load, run_name

    name = run_name(path)
    first = by_name.setdefault(name, path)
    if first is not path and not _are_equal(first, path):
        both = f"{str(first)!r} and {str(path)!r}"
        warnings.append(f"{both} differ and are both run {name}: one counts")
    if packer.has(name):
        return
    try:
        run = load(path)
    except StoreError as error:
        warnings.append(str(error))
    else:
        packer.add(run)


def _are_equal(one: Path, other: Path) -> bool:
    """Return whether two files are equal; what cannot be read is said elsewhere."""
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return True


def _commits_of(branch: str) -> frozenset[str]:
    """Return the commits that a branch reaches; raise `Impossible` where git knows none."""
    try:
        return frozenset(git("rev-list", "--end-of-options", branch, "--").split())
    except GitError as error:
        raise Impossible(f"--branch {branch!r}: {error}") from error


def _known(axis: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the values of an option that narrows an axis; raise `UnknownName` for another."""
    values = tuple(split(given, AXES[axis].option))
    for value in values:
        AXES[axis].check(value)
    return values


def _write_page(
    series: Sequence["Series"], path: Path, *, warnings: Sequence[str], commit_url: str
) -> int:
    """Write the page, and those behind it; return how many there are."""
    from ..history.commit_links import linker
    from ..report import history_pages

    return history_pages.save(series, path, link=linker(commit_url), warnings=warnings)


def _print_json(series: Sequence["Series"], *, warnings: Sequence[str], commit_url: str) -> None:
    from ..history.series_text import plain

    rest = {"warnings": list(warnings), "commit_url": commit_url}
    print_json_list("series", map(plain, series), rest)


def _print(series: Sequence["Series"], *, origins: Collection["Origin"], every: bool) -> None:
    from ..history.series_text import short
    from ..terminal import run_tables
    from ..terminal.series_table import table

    changed = [one for one in series if one.changes]
    still = [one for one in series if not one.changes and len(one.values) > 1]
    unchanged = still if every else [] if changed else still[:ROWS]
    listed = [*changed, *unchanged]
    width = out.columns(piped=run_tables.WIDE + 40)
    if listed:
        Screen(width=width).print(table(listed, width=width))
    lone = sum(len(one.values) == 1 for one in series)
    summary = [
        f"{len(changed)} of {len(series)} series changed their level",
        *(
            [f"{len(still) - len(unchanged)} more without a change: --all lists them"]
            if len(unchanged) < len(still)
            else []
        ),
        *([f"{lone} {'has' if lone == 1 else 'have'} one point only"] if lone else []),
    ]
    measured = {origin.commit for origin in origins if not origin.dirty}  # none is no commit
    at_one = len(measured) == 1 and not any(origin.dirty for origin in origins)
    if series and lone == len(series) and len(origins) > 1 and at_one and "" not in measured:
        summary = [
            f"{counted(len(origins), 'run')} of one commit ({short(measured.pop())}): one point; "
            "measure at another commit"
        ]
    out.print(f"[dim]{shown('; '.join(summary))}[/dim]")


def _worse(series: "Series", last: int) -> bool:
    return any(
        change.verdict == "worse" and change.at >= len(series.values) - last
        for change in series.changes
    )
