"""Commands for CI: ``export`` for other tools, ``merge`` for the shards of one matrix."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import Impossible, UnknownName
from ..plurals import counted
from ..printable import without_commands
from .app import Results, app, err, examples, one_line_errors, out
from .screen import shown

if TYPE_CHECKING:
    from ..exports.source_locations import Locate
    from ..records.run import Run

WORKSPACE = "GITHUB_WORKSPACE"
"""Where GitHub says the repository is checked out: annotations count files from there."""


@app.command(
    epilog=examples(
        "gradbench export bencher latest -o bencher.json",
        "gradbench export asv results/*.jsonl -o .asv/results",
        "gradbench export annotations --verdicts gate.json",
    )
)
def export(
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="markdown, annotations, junit, github-action-benchmark, bencher, asv, pyperf, "
            "otava.",
        ),
    ],
    run_names: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Without any: the latest.")
    ] = None,
    *,
    verdicts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="What gate --json or compare --json printed, for markdown, annotations, junit; "
            "then a RUN is needed only for its tables.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The file, or the folder of a format of several. Without it: printed.",
        ),
    ] = None,
    results: Results = Path("results"),
) -> None:
    """Write runs, or the verdicts on them, as other tools read them."""
    with one_line_errors():
        from ..exports.formats import FORMATS, export, write
        from ..exports.verdict_file import read_verdicts

        if format_name not in FORMATS:
            raise UnknownName("format", format_name, FORMATS)
        format_ = FORMATS[format_name]
        if format_.folder and output is None:
            raise Impossible(f"{format_name} is several files: say where with -o FOLDER")
        judged = read_verdicts(verdicts) if verdicts else None
        runs = load_runs(run_names, results) if run_names or judged is None else []
        exported = export(format_name, runs, verdicts=judged, locate=places(runs))
        if output is None:
            for text in exported.files.values():
                # its commands are what GitHub is to obey; of any other text none is
                print(text if format_name == "annotations" else without_commands(text), end="")
        else:
            written = write(exported, output, folder=format_.folder)
            where = output if format_.folder else written[0]
            count = f"  ({counted(len(written), 'file')})" if format_.folder else ""
            out.print(shown(str(where)) + count)
        if exported.left_out:
            many = counted(len(exported.left_out), "outcome")
            err.print(
                f"[yellow]no place in {format_name} for {many}, "
                f"such as {shown(exported.left_out[0])}; export markdown names all reasons[/yellow]"
            )


@app.command(epilog=examples("gradbench merge shard-*/results/*.jsonl"))
def merge(
    run_names: Annotated[list[str], typer.Argument(metavar="RUN...", help="The shards.")],
    *,
    allow_different_machines: Annotated[
        bool,
        typer.Option(
            "--allow-different-machines",
            help="Join shards of machines that differ: ratios and exact figures still hold.",
        ),
    ] = False,
    results: Results = Path("results"),
) -> None:
    """Join the shards of one matrix (run --shard 1/3, 2/3, 3/3) into one run.

    Shards of machines that differ are refused, unless --allow-different-machines says that times
    of two machines will not be compared.
    """
    with one_line_errors():
        from ..store.jsonl import Store
        from ..store.merge_shards import merge as join

        runs = load_runs(run_names, results)
        merged = join(runs, different_machines=allow_different_machines)
        run = Store(results).save(merged.records)
        for remark in merged.remarks:
            err.print(f"[yellow]{shown(remark)}[/yellow]")
        out.print(f"records  {shown(str(Store(results).find(run.name)))}")


def tell_markdown(names: list[str] | None, output: Path | None, *, results: Path) -> None:
    """Print runs as Markdown, or write them to a file and print where it is."""
    from ..exports.formats import export, write

    exported = export("markdown", load_runs(names, results))
    if output is None:
        print(*map(without_commands, exported.files.values()), sep="", end="")
    else:
        (path,) = write(exported, output, folder=False)
        out.print(shown(str(path)))


def load_runs(names: list[str] | None, results: Path) -> "list[Run]":
    """Return the runs of those names, each once, and say what could not be read of them."""
    from ..store.jsonl import Store, load

    store = Store(results)
    paths = {path.resolve(): path for path in map(store.find, names or ["latest"])}
    runs = [load(path) for path in paths.values()]
    for dropped in filter(None, (run.dropped for run in runs)):
        err.print(f"[yellow]{shown(dropped)}[/yellow]")
    return runs


def places(runs: "Sequence[Run]") -> "Locate":
    """Return where each cell comes from, as a path from the repository's root."""
    from ..exports.source_locations import locator

    workspace = os.environ.get(WORKSPACE)
    return locator(runs, Path.cwd(), repository=Path(workspace) if workspace else None)
