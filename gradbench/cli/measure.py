"""Commands that measure: ``list`` says what, ``run`` does it."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..comparison.leftovers import remove_leftovers
from ..errors import BadModel, Impossible
from ..exit_status import ExitStatus
from ..experiment import shards, toml_config
from ..experiment.matrix import GRAD_MODES, by_block
from ..plurals import counted
from ..store.jsonl import check_writable
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
    split,
)
from .printing import print_run, resume_command
from .request import Request, check_named_again, takes_request
from .screen import shown
from .semantics import load_or_examine

if TYPE_CHECKING:
    from ..experiment.model_source import ModelSource
    from ..recording import Recording
    from ..records.measurements import Environment, Started
    from ..records.run import Run
    from ..runner import Progress
    from ..runner.block_runner import BlockRunner
    from ..workloads.models import Model


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
    wait: Annotated[
        bool,
        typer.Option(
            rich_help_panel="Clusters", help="Wait for the tasks and join their runs, or leave."
        ),
    ] = True,
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
    for words in remove_leftovers():
        err.print(f"[dim]{shown(words)}[/dim]")
    plan = {"budget_s": budget, "limit_s": limit, "seed": seed}
    given = {name: value for name, value in plan.items() if value is not None}
    cluster.check_options(
        on,
        ray={
            "--address": address is not None,
            "--deadline": deadline is not None,
            "--allow-different-versions": allow_different_versions,
        },
        slurm={"--tasks": tasks is not None, "--sbatch": bool(sbatch), "--no-wait": not wait},
    )
    if on == cluster.RAY:
        sources = _sources(request, resume, results)
        with cluster.connected(
            address, deadline_s=deadline, versions=allow_different_versions, sources=sources
        ) as elsewhere:
            if resume is None:
                recording = _begin(
                    request,
                    given,
                    meter,
                    shard,
                    results=results,
                    reports=reports,
                    at_once=False,
                    elsewhere=elsewhere,
                )
            else:
                options = _fixed_options(given, meter, shard)
                recording = _go_on(
                    resume, request, options, results=results, at_once=False, elsewhere=elsewhere
                )
            finished, path = _measure(recording)
    elif on is not None:
        finished, path = _measure_on_slurm(
            request,
            plan=given,
            meter=meter,
            resume=resume,
            fixed=_fixed_options(given, meter, shard),
            tasks=tasks,
            sbatch=sbatch or (),
            wait=wait,
            results=results,
            reports=reports,
        )
    elif resume is None:
        finished, path = _measure(
            _begin(
                request, given, meter, shard, results=results, reports=reports, at_once=side_by_side
            )
        )
    else:
        options = _fixed_options(given, meter, shard)
        finished, path = _measure(
            _go_on(resume, request, options, results=results, at_once=side_by_side)
        )
    from ..recording import write_page

    print_run(finished, reference, verbose=verbose)
    torch = finished.environment.facts.get("torch")
    behaviour = load_or_examine(path.parent, torch=str(torch)) if semantics and torch else None
    page = write_page(finished, path.parent, reports, semantics=behaviour)
    where = f"records  {shown(str(path))}\npage     {shown(str(page))}"
    out.print(where)
    if standard_streams.lost() is not None:  # whoever reads errors is to know that they are there
        err.print(where)
    if not finished.measured:
        raise typer.Exit(ExitStatus.NOTHING_MEASURED)


def _measure(recording: "Recording") -> "tuple[Run, Path]":
    """Measure all of a recording, here; return the run and its file."""
    try:
        with progress(len(recording.header.cells)) as listener, recording:
            for _ in recording.measure(progress=listener):
                pass
            return recording.finish(), recording.path
    except KeyboardInterrupt:
        _say_what_is_kept(recording.path)
        raise typer.Exit(ExitStatus.INTERRUPTED) from None


def _measure_on_slurm(
    request: Request,
    *,
    plan: Mapping[str, float],
    meter: Sequence[str] | None,
    resume: str | None,
    fixed: Sequence[str],
    tasks: int | None,
    sbatch: Sequence[str],
    wait: bool,
    results: Path,
    reports: Path,
) -> "tuple[Run, Path]":
    """Measure by a job of Slurm; return the joined run and its file. ``fixed`` were given, too."""
    from ..cluster import slurm
    from . import on_slurm

    options = slurm.options(sbatch)
    if "--shard" in fixed:
        raise Impossible("--on deals out the shards itself: leave out --shard, or give --tasks")
    if resume is not None:
        _leave_out([*request.given, *fixed, *(["--tasks"] if tasks is not None else [])])
        folder = on_slurm.find(resume, results=results)
    else:
        header, _ = _header(request, plan, meter, None, reports=reports)
        folder = on_slurm.begin(header, tasks, results=results)
    return on_slurm.measure(folder, options, wait=wait, results=results)


def _begin(
    request: Request,
    plan: Mapping[str, float],
    meter: Sequence[str] | None,
    shard: str | None,
    *,
    results: Path,
    reports: Path,
    at_once: bool,
    elsewhere: cluster.Cluster | None = None,
) -> "Recording":
    """Return the recording of a new run, when all that was asked for is checked."""
    from ..recording import Recording
    from ..store.jsonl import Store

    there = elsewhere.devices() if elsewhere is not None else None
    header, models = _header(request, plan, meter, shard, reports=reports, there=there)
    who = _measured_by(header, models, at_once=at_once, elsewhere=elsewhere)
    return Recording(Store(results).create(), header, models=models, measured_by=who)


def _header(
    request: Request,
    plan: Mapping[str, float],
    meter: Sequence[str] | None,
    shard: str | None,
    *,
    reports: Path,
    there: Sequence[str] | None = None,
) -> "tuple[Started, Mapping[str, Model]]":
    """Return the header of a new run and its models, when all that was asked for is checked."""
    from ..runner import preflight, started

    cells, chosen, models = request.cells(plan, there=there)
    meters = split(meter, "--meter") or list(preflight.DEFAULT_METERS)
    preflight.check(cells, models, meters)
    cells = shards.parse(shard).take(cells) if shard is not None else cells
    check_writable(reports, "--reports")
    header = started(
        cells,
        plan=chosen,
        meters=meters,
        models=models,
        shard=shard or "",
        places=toml_config.places(request.config, cells) if request.config else None,
    )
    return header, models


def _fixed_options(
    plan: Mapping[str, float], meter: Sequence[str] | None, shard: str | None
) -> list[str]:
    """Return the options that were given and that a resumed run cannot heed."""
    options = [f"--{name.removesuffix('_s')}" for name in plan]
    others = (("meter", meter), ("shard", shard))
    return options + [f"--{name}" for name, value in others if value is not None]


def _sources(request: Request, resume: str | None, results: Path) -> "Mapping[str, ModelSource]":
    """Return the models that are not built in: of the request, or of the run that goes on."""
    from ..store.jsonl import Store, load

    return request.sources() if resume is None else load(Store(results).find(resume)).header.sources


def _leave_out(options: Sequence[str]) -> None:
    if options:
        raise Impossible(f"a resumed run goes on as it began: leave out {', '.join(options)}")


def _measured_by(
    header: "Started",
    models: Mapping[str, "Model"],
    *,
    at_once: bool,
    elsewhere: cluster.Cluster | None,
    known: "Mapping[str, Environment] | None" = None,
) -> "BlockRunner | None":
    """Return who measures the blocks, None for whoever measures them where nobody is named."""
    from ..experiment.plan import Plan
    from ..runner import side_by_side

    if elsewhere is not None:
        return elsewhere.measures(header, models, known)
    if not at_once:
        return None
    plan = Plan.of(header.plan)
    return side_by_side.here(header.cells, plan=plan, models=models, meters=header.meters)


def _go_on(
    name: str,
    request: Request,
    options: Sequence[str],
    *,
    results: Path,
    at_once: bool,
    elsewhere: cluster.Cluster | None = None,
) -> "Recording":
    """Return the recording of a run that was cut short; ``options`` are others it cannot heed.

    A file says which code its models are, and somebody else may have written it: whoever goes on
    with models that are not built in names them again.
    """
    from ..recording import Recording
    from ..store.jsonl import Store, load

    _leave_out([*(option for option in request.given if option != "--model"), *options])
    store = Store(results)
    own = load(store.find(name)).header.sources
    if not own and "--model" in request.given:
        _leave_out(["--model"])
    check_named_again(own, request)
    writer, cut = store.resume(name)
    if cut.dropped:
        err.print(f"[yellow]{shown(cut.dropped)}[/yellow]")
    models = _models_of(cut)
    who = _measured_by(
        cut.header, models, at_once=at_once, elsewhere=elsewhere, known=cut.environments
    )
    return Recording(writer, cut.header, models=models, resumed=cut, measured_by=who)


@contextmanager
def progress(cells: int) -> Iterator[Callable[["Progress"], None]]:
    """Show a bar for each device with what it runs; where nobody looks, a line per block."""
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
            bar.update(lines[device], description=f"{shown(block)} {event.doing}")
            for line in lines.values():
                bar.update(line, completed=event.done, total=event.total)
        elif block not in printed:
            printed.append(block)
            print(f"[{event.begun}/{event.total}] {block}", file=sys.stderr, flush=True)

    with bar:
        yield listen


def _models_of(cut: "Run") -> Mapping[str, "Model"]:
    from ..workloads.own_models import models_of

    models = models_of(cut.header.sources)
    for cell in cut.header.cells:
        if cell.model not in models:
            raise BadModel(
                f"model {cell.model!r} was given in Python: resume there, run(..., resumed=run)"
            )
    return models


def _say_what_is_kept(path: Path) -> None:
    from ..store.jsonl import load

    kept = load(path)
    total = len(by_block(kept.header.cells))
    err.print(
        f"stopped: {total - len(kept.unfinished())} of {counted(total, 'block')} are kept; "
        f"go on with: {shown(resume_command(kept, path.parent))}"
    )
