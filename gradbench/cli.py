"""The command line: parse, call, print, return a status."""

import inspect
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from . import verdicts
from .config import choose, locate, parse_input
from .errors import BadModel, GradbenchError, Impossible, UnknownName
from .matrix import GRAD_MODES, Cell, by_block, select
from .plan import Plan
from .presets import PRESETS
from .store import check_writable

if TYPE_CHECKING:
    from rich.status import Status

    from .models import Model
    from .runner import Progress
    from .store import Run, Store, Writer

USAGE: Final = 2
INTERRUPTED: Final = 130
SPOILT: Final = 1
WATCH_S: Final = 1.0
SELFCHECK: Final = "selfcheck.json"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="What PyTorch's grad modes cost, in memory and in time, on your model and your machine.",
    epilog="Start with [bold]gradbench run --preset tiny[/bold], under a minute. "
    "Also: [bold]pytest --benchmark-only[/bold] in a checkout, or [bold]import gradbench[/bold].",
)
out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)

Results = Annotated[Path, typer.Option(help="Folder of runs.")]
Reports = Annotated[Path, typer.Option(help="Folder of pages.")]
Reference = Annotated[str, typer.Option(help="Grad mode that the table's ratios are taken to.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name, its beginning, path or latest.")]

_AXES: Final[Mapping[str, str]] = {
    "model": "A built-in model, or your own as package.module:factory (with --input).",
    "workload": "What a step does: inference, training, training_reenabled, frozen_backbone.",
    "grad_mode": f"{', '.join(GRAD_MODES)}.",
    "device": "cpu, cuda, cuda:N. Without it: cpu, and cuda where there is one.",
    "batch_size": "Samples in a step.",
    "dtype": "float32, bfloat16, float16.",
    "threads": "Threads within an operator.",
    "memory_format": "contiguous, or channels_last for images.",
    "compile": "off, on: through torch.compile.",
    "entry": "held: the mode entered once around many steps; per_call: in each step.",
    "malloc": "pinned: timed processes keep freed memory; system: as users have it.",
    "l2": "hot, cold: a GPU's cache between steps.",
}


class Request:
    """The options that say what to measure, which several commands share."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.config: Path | None = options["config"]
        self._preset: str = options["preset"]
        self._input: str | None = options["input"]
        self._selections = {axis: _split(options[axis]) for axis in _AXES}
        self.given = [
            f"--{name.replace('_', '-')}" for name in ("config", "input", *_AXES) if options[name]
        ] + (["--preset"] if self._preset != "quick" else [])

    @staticmethod
    def parameters() -> list[inspect.Parameter]:
        """Return the options as the parameters of a function."""

        def option(name: str, type_: object, default: object, text: str) -> inspect.Parameter:
            info = typer.Option(f"--{name.replace('_', '-')}", help=text, rich_help_panel="Matrix")
            return inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[type_, info],
            )

        presets = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
        return [
            option("preset", str, "quick", f"{presets}."),
            option("config", Path | None, None, "A TOML file instead of a preset."),
            *(option(axis, list[str] | None, None, text) for axis, text in _AXES.items()),
            option("input", str | None, None, "What your own model takes, B first: 8,3,224,224."),
        ]

    def cells(
        self, plan: Mapping[str, float]
    ) -> tuple[list[Cell], Plan, dict[str, "Model"], dict[str, tuple[int, ...]]]:
        """Return cells, plan, models and the input shapes of the user's own models."""
        from . import devices
        from .models import MODELS

        paths = [name for name in self._selections["model"] if ":" in name]
        if bool(paths) != (self._input is not None):
            raise BadModel(
                f"model {paths[0]!r} needs --input: its batch size and shape, as in 8,3,224,224"
                if paths
                else "--input goes with --model package.module:factory"
            )
        inputs: dict[str, tuple[int, ...]] = {}
        selections = dict(self._selections)
        if self._input is not None:
            batch, *shape = parse_input(self._input)
            inputs = {path: tuple(shape) for path in paths}
            selections["batch_size"] = selections["batch_size"] or [str(batch)]
        choice = choose(preset=self._preset, file=self.config, selections=selections, plan=plan)
        cells = list(choice.cells)
        if self.config is None and not selections["device"]:
            cells = select(cells, "device", devices.available())
        return cells, choice.plan, {**MODELS, **own_models(inputs)}, inputs


def own_models(inputs: Mapping[str, tuple[int, ...]]) -> dict[str, "Model"]:
    """Return the user's models by import path."""
    from .models import from_path

    sys.path.insert(0, "")  # where the user stands, as python -m would have it
    return {path: from_path(path, shape=shape) for path, shape in inputs.items()}


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Request`; it gets them as its first argument."""

    @wraps(command)
    def wrapper(**options: Any) -> None:
        shared = {name: options.pop(name) for name in names}
        request = Request(shared)
        with one_line_errors(request.config):
            command(request, **options)

    parameters = Request.parameters()
    names = [parameter.name for parameter in parameters]
    own = list(inspect.signature(command).parameters.values())[1:]
    wrapper.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined] # what typer reads
    wrapper.__annotations__ = {p.name: p.annotation for p in [*parameters, *own]}
    return wrapper


@contextmanager
def one_line_errors(config: Path | None = None) -> Iterator[None]:
    """Turn errors of the user's into one line and exit status 2."""
    try:
        yield
    except GradbenchError as error:
        where = locate(config, error) if config and isinstance(error, UnknownName) else ""
        err.print(f"[red]gradbench:[/red] {escape(where + str(error))}")
        raise typer.Exit(USAGE) from None


@app.command("list")
@takes_request
def list_cells(request: Request) -> None:
    """Show the cells a run would measure, and why any would be skipped here."""
    cells, _, models, _ = request.cells({})
    from . import runner

    runner.check(cells, models)
    skipped = 0
    for cell in cells:
        why = runner.obstacle(cell, models)
        skipped += why is not None
        out.print(
            escape(str(cell)) + (f"  [dim]skipped here: {escape(why[1])}[/dim]" if why else "")
        )
    blocks = len(by_block(cells))
    many = f"{blocks} block{'s' * (blocks != 1)}"
    out.print(f"{len(cells)} cells in {many}, {skipped} skipped here")


@app.command(
    epilog="Examples: [bold]gradbench run[/bold]  |  "
    "[bold]gradbench run --preset tiny --model mlp_deep --batch-size 1,32[/bold]  |  "
    "[bold]gradbench run --model mypkg.nets:make --input 8,3,224,224[/bold]  |  "
    "[bold]gradbench run --resume latest[/bold]"
)
@takes_request
def run(
    request: Request,
    *,
    meter: Annotated[
        list[str] | None, typer.Option(help="Meters. Without it: all but instructions.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Seconds of timing for a block.")] = None,
    limit: Annotated[
        float | None, typer.Option(help="Seconds after which a block's process is killed.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, inputs and order.")] = None,
    results: Results = Path("results"),
    reports: Reports = Path("reports"),
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with a run that was cut short.")
    ] = None,
    reference: Reference = GRAD_MODES[0],
) -> None:
    """Measure: records into results/, a page into reports/, a table here.

    Options narrow a preset to the values it has and widen it by values it lacks; give one several
    times, or values with commas. Ctrl-C keeps what is finished.
    """
    from . import runner
    from .store import Store

    store = Store(results)
    _check_reference(reference)
    plan = {"budget_s": budget, "limit_s": limit, "seed": seed}
    given = {key: value for key, value in plan.items() if value is not None}
    if resume is not None:
        ignored = [
            *request.given,
            *(f"--{name[:-2] if name.endswith('_s') else name}" for name in given),
        ]
        ignored += ["--meter"] if meter else []
        if ignored:
            raise Impossible(f"a resumed run goes on as it began: leave out {', '.join(ignored)}")
    if resume is None:
        cells, chosen, models, inputs = request.cells(given)
        meters = _split(meter) or list(runner.DEFAULT_METERS)
        runner.check(cells, models, meters)
        check_writable(reports, "--reports")
        writer, cut = store.create(), None
    else:
        writer, cut = store.resume(resume)
        cells, meters, inputs = (
            list(cut.started.cells),
            list(cut.started.meters),
            dict(cut.started.inputs),
        )
        chosen = Plan(**cut.started.plan)  # type: ignore[arg-type] # numbers by name, as written
        models = _models_of(cut)
        if cut.dropped:
            err.print(f"[yellow]{escape(cut.dropped)}[/yellow]")
    with writer:
        try:
            with progress(len(cells)) as listener:
                records = runner.run(
                    cells,
                    plan=chosen,
                    models=models,
                    meters=meters,
                    inputs=inputs,
                    progress=listener,
                    resumed=cut,
                )
                for record in records:
                    writer.write(record)
        except KeyboardInterrupt:
            _say_what_is_kept(store, writer)
            raise typer.Exit(INTERRUPTED) from None
        path = writer.seal()
    _conclude(path, reports, reference)


@app.command()
def show(
    run_name: RunName = "latest",
    *,
    results: Results = Path("results"),
    reference: Reference = GRAD_MODES[0],
) -> None:
    """Print a run's table."""
    with one_line_errors():
        from .store import Store, load

        _check_reference(reference)
        _print_run(load(Store(results).find(run_name)), reference)


@app.command(epilog="Example: [bold]gradbench report latest -o page.html[/bold]")
def report(
    run_names: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Without any: the latest.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path(
        "reports/report.html"
    ),
    results: Results = Path("results"),
) -> None:
    """Write one self-contained HTML page from one or more runs."""
    with one_line_errors():
        from .report import write
        from .store import Store, load

        store = Store(results)
        loaded = [load(store.find(name)) for name in run_names or ["latest"]]
        for dropped in filter(None, (one.dropped for one in loaded)):
            err.print(f"[yellow]{escape(dropped)}[/yellow]")
        checks = verdicts.load(results / SELFCHECK)
        out.print(escape(str(write(loaded, output, checks=checks))))


@app.command()
def runs(*, results: Results = Path("results")) -> None:
    """List the runs in results/, and what is amiss with any."""
    with one_line_errors():
        from .store import Store, being_written

        store = Store(results)
        found, amiss = store.load_all()
        if not found and not amiss:
            err.print(f"no runs in {escape(repr(str(results)))}")
        where = "" if results == Path("results") else f" --results {shlex.quote(str(results))}"
        for one in found:
            total = len(by_block(one.started.cells))
            if one.sealed:
                state = "complete"
            elif being_written(store.find(one.name)):
                state = "still going"
            else:
                state = f"cut short: gradbench run --resume {one.name}{where}"
            out.print(f"{one.name}  {total - len(one.unfinished())} of {total} blocks  {state}")
        for complaint in amiss:
            err.print(f"[yellow]{escape(complaint)}[/yellow]")


@app.command()
def env(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Say what would spoil a run; exit 1 if anything would.")
    ] = False,
) -> None:
    """Print the facts that decide whether two runs may be compared."""
    with one_line_errors():
        from . import devices
        from .environment import capture, watch

        facts = {**capture(devices.available()).facts, **(watch(WATCH_S) if check else {})}
        if check:
            from .diagnosis import before_a_run

            found = before_a_run(facts)
            for finding in found:
                out.print(f"{finding.name}: {finding.sentence}: {finding.remedy}")
            out.print("nothing here would spoil a run" if not found else "")
            raise typer.Exit(SPOILT if found else 0)
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
        bool, typer.Option(help="Hundreds of trials: more than half an hour.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    results: Results = Path("results"),
) -> None:
    """Prove on this machine that the measuring can be believed, in under two minutes.

    Equal arms must come out equal, work of known size must be found, memory must match
    arithmetic. The answers are saved in results/selfcheck.json and shown on every page.
    """
    with one_line_errors():
        check_writable(results, "--results")
        from . import selfcheck as checking

        effort = checking.THOROUGH if thorough else checking.QUICK
        with err.status("loading torch") as status:
            found, facts = checking.run(effort, say=lambda words: _progress(status, words))
        path = results / SELFCHECK
        checking.save(found, facts, path)
        if as_json:
            print(path.read_text("utf-8"))
            return
        from . import terminal

        width = out.width if out.is_terminal else terminal.WIDE + 40
        Console(highlight=False, width=width).print(terminal.check_table(found))
        where = f"{facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}"
        out.print(f"{where}, load {facts['load_before']} before, {facts['load_after']} after")
        out.print(f"saved    {escape(str(path))}")


def _progress(status: "Status", words: str) -> None:
    if err.is_terminal:
        status.update(escape(words))
    else:
        print(words, file=sys.stderr, flush=True)


@contextmanager
def progress(cells: int) -> Iterator[Callable[["Progress"], None]]:
    """Show a bar with what is running; where nobody looks, a line per block instead."""
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
    task = bar.add_task(f"{cells} cells: loading torch", total=None)
    said: list[str] = []

    def listen(event: "Progress") -> None:
        block = str(event.block)
        if err.is_terminal:
            words = f"{escape(block)} {event.doing}"
            bar.update(task, description=words, completed=event.done, total=event.total)
        elif block not in said:
            said.append(block)
            print(f"[{event.done + 1}/{event.total}] {block}", file=sys.stderr, flush=True)

    with bar:
        yield listen


def _models_of(cut: "Run") -> dict[str, "Model"]:
    from .models import MODELS

    models = {**MODELS, **own_models(cut.started.inputs)}
    for cell in cut.started.cells:
        if cell.model not in models:
            raise BadModel(
                f"model {cell.model!r} was given in Python: resume there, run(..., resumed=run)"
            )
    return models


def _say_what_is_kept(store: "Store", writer: "Writer") -> None:
    from .store import load

    kept = load(store.find(writer.name))
    total = len(by_block(kept.started.cells))
    err.print(
        f"stopped: {total - len(kept.unfinished())} of {total} blocks are kept; "
        f"go on with: gradbench run --resume {writer.name} "
        f"--results {shlex.quote(str(store.folder))}"
    )


def _conclude(path: Path, reports: Path, reference: str) -> None:
    from .report import write
    from .store import load

    finished = load(path)
    _print_run(finished, reference)
    checks = verdicts.load(path.parent / SELFCHECK)
    page = write([finished], reports / f"{finished.name}.html", checks=checks)
    out.print(f"records  {escape(str(path))}\npage     {escape(str(page))}")


def _print_run(run: "Run", reference: str) -> None:
    from . import terminal, words

    width = out.width if out.is_terminal else terminal.WIDE
    Console(highlight=False, width=width).print(
        terminal.run_tables(run, reference=reference, width=width)
    )
    for reason in words.reasons(run):
        out.print(f"[dim]{escape(reason)}[/dim]")
    for finding in words.findings(run):
        out.print(f"[yellow]{escape(finding)}[/yellow]")
    if run.dropped:
        err.print(f"[yellow]{escape(run.dropped)}[/yellow]")
    out.print(f"[dim]{escape(words.spent(run))}[/dim]")


def _check_reference(name: str) -> None:
    if name not in GRAD_MODES:
        raise UnknownName("grad_mode", name, GRAD_MODES)


def _split(values: Sequence[str] | None) -> list[str]:
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def main() -> None:
    """Run the command line."""
    app(prog_name="gradbench")
