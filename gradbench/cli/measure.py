"""Commands that measure: ``list`` says what, ``run`` does it."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ClusterLost, Impossible, StoreError
from ..exit_status import ExitStatus
from ..experiment import shards
from ..experiment.matrix import GRAD_MODES, by_block
from ..host_locks import WAITING
from ..plurals import counted
from . import cluster, standard_streams
from .app import (
    Reference,
    Reports,
    Results,
    Verbose,
    app,
    check_reference,
    err,
    examples,
    out,
    say_in_log,
)
from .asked_run import AskedRun, refuse_given
from .leftovers import clean_up
from .printing import print_run, resume_command
from .request import Request, checked_plan, takes_request
from .screen import shown
from .semantics import load_or_examine

if TYPE_CHECKING:
    from ..recording import Recording
    from ..records.run import Run
    from ..runner import Progress


@app.command("list")
@takes_request
def list_cells(request: Request) -> None:
    """Show the cells a run would measure, and why any would be skipped here."""
    cells, _, models = request.cells({})
    from ..runner import preflight

    preflight.check(cells, models)
    skipped = 0
    for cell in cells:
        why = preflight.obstacle(cell, models)
        skipped += why is not None
        out.print(shown(str(cell)) + (f"  [dim]skipped here: {shown(why[1])}[/dim]" if why else ""))
    blocks = counted(len(by_block(cells)), "block")
    out.print(f"{counted(len(cells), 'cell')} in {blocks}, {skipped} skipped here")


@app.command(
    epilog=examples(
        "gradbench run",
        "gradbench run --preset tiny --model mlp_deep --batch-size 1,32",
        "gradbench run --model mypkg.nets:make --input 8,3,224,224",
        "gradbench run --resume latest",
        "gradbench run --on ray --address 10.0.0.7:6379",
    )
)
@takes_request
def run(
    request: Request,
    *,
    meter: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel="Measuring", help="Meters. Without it: all but instructions."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(rich_help_panel="Measuring", help="Seconds of timing for a block."),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            rich_help_panel="Measuring", help="Seconds after which a block's process is killed."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(rich_help_panel="Measuring", help="Of weights, inputs and order.")
    ] = None,
    results: Results = Path("results"),
    reports: Reports = Path("reports"),
    no_page: Annotated[
        bool, typer.Option("--no-page", rich_help_panel="Records", help="Write no page.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            rich_help_panel="Records", metavar="RUN", help="Go on with a run that was cut short."
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            rich_help_panel="Records",
            metavar="I/N",
            help="Only part I of N, by block; join them with merge.",
        ),
    ] = None,
    side_by_side: Annotated[
        bool,
        typer.Option(
            "--side-by-side/--one-at-a-time",
            rich_help_panel="Measuring",
            help="Of several GPUs: blocks of each at once, or one after the other.",
        ),
    ] = True,
    on: Annotated[
        str | None,
        typer.Option(
            rich_help_panel="Clusters",
            metavar="ray|slurm",
            help="Measure on a cluster: ray on all of its machines at once; slurm submits an array "
            "job, a shard a task.",
        ),
    ] = None,
    tasks: Annotated[
        int | None,
        typer.Option(
            rich_help_panel="Clusters",
            metavar="N",
            min=1,
            help="Tasks of the array job. Without it: one a block, 8 at most.",
        ),
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel="Clusters",
            metavar="KEY=VALUE",
            help="An option of sbatch, such as partition=gpu, gres=gpu:1 or time=2:00:00.",
        ),
    ] = None,
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait",
            rich_help_panel="Clusters",
            help="Leave once the tasks are submitted, whose runs are then not joined.",
        ),
    ] = False,
    address: cluster.Address = None,
    deadline: cluster.Deadline = None,
    allow_different_versions: cluster.DifferentVersions = False,
    reference: Reference = GRAD_MODES[0],
    semantics: Annotated[
        bool, typer.Option(help="What the modes do on this torch, for the page: once a version.")
    ] = True,
    verbose: Verbose = False,
) -> None:
    """Measure: records into results/, a page into reports/, a table here.

    Options narrow a preset to the values it has and widen it by values it lacks; give one several
    times, or values with commas. Ctrl-C keeps what is finished.
    """
    check_reference(reference)
    plan = checked_plan(budget_s=budget, limit_s=limit, seed=seed)
    cluster.check_deadline(deadline)
    if shard is not None:
        shards.parse(shard)
    clean_up()
    cluster.check_options(
        on,
        ray={
            "--address": address is not None,
            "--deadline": deadline is not None,
            "--allow-different-versions": allow_different_versions,
        },
        slurm={"--tasks": tasks is not None, "--sbatch": bool(sbatch), "--no-wait": no_wait},
    )
    if on is not None and not side_by_side:
        raise Impossible(
            "--one-at-a-time is of the GPUs of this machine: leave it out with --on, where each "
            "GPU has one block at a time"
        )
    asked = AskedRun(
        request=request,
        plan=plan,
        meter=meter,
        shard=shard,
        resume=resume,
        results=results,
        reports=reports,
    )
    if on == cluster.RAY:
        with cluster.connected(
            address,
            deadline_s=deadline,
            versions=allow_different_versions,
            sources=asked.sources(),
            outputs=(results, reports),
        ) as elsewhere:
            finished, path = _measure(asked.recording(at_once=False, elsewhere=elsewhere))
    elif on is not None:
        finished, path = _measure_on_slurm(
            asked, tasks=tasks, sbatch=sbatch or (), wait=not no_wait
        )
    else:
        finished, path = _measure(asked.recording(at_once=side_by_side))
    folder = "" if results == Path("results") else f" --results {shlex.quote(str(results))}"
    print_run(finished, reference, verbose=verbose, more=f"gradbench show --verbose{folder}")
    examines = semantics and finished.measured  # which takes a while: not for a page of reasons
    _write_page(finished, path, None if no_page else reports, semantics=examines)
    if not finished.measured:
        raise typer.Exit(ExitStatus.NOTHING_MEASURED)


def _measure(recording: "Recording") -> "tuple[Run, Path]":
    """Measure all of a recording; return the run and its file."""
    try:
        with progress(len(recording.header.cells)) as listener, recording:
            for _ in recording.measure(progress=listener):
                pass
            return recording.finish(), recording.path
    except KeyboardInterrupt:
        _say_what_is_kept(recording.path)
        raise typer.Exit(ExitStatus.INTERRUPTED) from None
    except ClusterLost:
        _say_what_is_kept(recording.path)
        raise


def _measure_on_slurm(
    asked: AskedRun, *, tasks: int | None, sbatch: Sequence[str], wait: bool
) -> "tuple[Run, Path]":
    """Measure by a job of Slurm; return the joined run and its file."""
    from ..cluster import slurm
    from . import on_slurm

    slurm.options(sbatch)  # before anything is written
    if asked.shard is not None:
        raise Impossible("--on deals out the shards itself: leave out --shard, or give --tasks")
    if asked.resume is not None:
        given = ["--tasks"] if tasks is not None else []
        refuse_given([*asked.request.given, *asked.fixed, *given])
        folder = on_slurm.find(asked.resume, results=asked.results)
    else:
        header, _ = asked.header()
        folder = on_slurm.begin(header, tasks, results=asked.results)
    options = slurm.options(on_slurm.remembered(folder, sbatch))
    return on_slurm.measure(folder, options, wait=wait, results=asked.results)


def _write_page(run: "Run", path: Path, reports: Path | None, *, semantics: bool) -> None:
    """Print where the records are; write a run's page where there is a folder for it; say where.

    The page has what the modes do on the run's torch.
    """
    from ..recording import write_page

    _print_where(f"records  {shown(str(path))}")  # before a page that may find no room
    if reports is None:
        return
    torch = run.environment.facts.get("torch")
    behaviour = load_or_examine(path.parent, torch=str(torch)) if semantics and torch else None
    page = write_page(run, path.parent, reports, semantics=behaviour)
    _print_where(f"page     {shown(str(page))}")


def _print_where(line: str) -> None:
    """Print a line, on standard error too where nobody reads the output."""
    out.print(line)
    if standard_streams.lost() is not None:
        err.print(line)


@contextmanager
def progress(cells: int) -> Iterator[Callable[["Progress"], None]]:
    """Show a bar for each device with what it runs.

    Where nobody looks, a line per block, and one more where it has to wait for another run.
    """
    from rich import progress as bars

    bar = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        console=err,
        transient=True,
        refresh_per_second=2,  # drawing takes time from what is measured
        disable=not err.is_terminal,
    )
    lines = {"": bar.add_task(f"{counted(cells, 'cell')}: loading torch", total=None)}
    printed: list[str] = []

    def listen(event: "Progress") -> None:
        block, device = str(event.block), event.block.cell.device
        if err.is_terminal:
            if "" in lines:  # the first device takes the line that there is
                lines[device] = lines.pop("")
            elif device not in lines:
                lines[device] = bar.add_task("", total=event.total)
            bar.update(lines[device], description=shown(f"{block} {event.doing}"))
            for line in lines.values():
                bar.update(line, completed=event.done, total=event.total)
        else:
            waits = f": {WAITING}" if event.doing == WAITING else ""
            if block + waits not in printed:
                printed.append(block + waits)
                say_in_log(f"[{event.begun}/{event.total}] {block}{waits}")

    with bar:
        yield listen


def _say_what_is_kept(path: Path) -> None:
    from ..store.jsonl import load

    try:
        kept = load(path)
    except StoreError:  # it was stopped before its first line
        err.print("stopped: nothing was measured")
        return
    if kept.sealed:
        page = f"gradbench report {kept.name} --results {shlex.quote(str(path.parent))}"
        err.print(f"stopped; the run is complete, its page comes by: {shown(page)}")
        return
    total = len(by_block(kept.header.cells))
    err.print(
        f"stopped: {total - len(kept.unfinished())} of {counted(total, 'block')} are kept; "
        f"go on with: {shown(resume_command(kept, path.parent))}"
    )
