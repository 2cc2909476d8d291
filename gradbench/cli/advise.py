"""The command ``advise``: which mode to use for a model's inference here, in a minute."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..exit_status import ExitStatus
from ..store.jsonl import check_writable
from .app import AsJson, OpenPage, Reports, Results, app, err, examples, out, say, size_in_bytes
from .printing import open_study, print_tracebacks
from .request import Request, checked_plan, takes_one_model
from .screen import Screen, print_json, shown


@app.command(
    epilog=examples(
        "gradbench advise --model resnet18_224 --batch-size 8",
        "gradbench advise --model mypkg.nets:make --input 8,3,224,224",
        "gradbench advise --model mlp_tiny --memory 16GiB --open",
    )
)
@takes_one_model
def advise(
    request: Request,
    *,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Fit batches to it: 16GiB. Without it: all there is."),
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Seconds of timing for a block.")] = None,
    try_compile: Annotated[
        bool,
        typer.Option("--try-compile", help="Try torch.compile, too: up to some minutes more."),
    ] = False,
    as_json: AsJson = False,
    open_: OpenPage = False,
    results: Results = Path("results"),
    reports: Reports = Path("reports"),
) -> None:
    """Say which grad mode to use for a model's inference, in about a minute.

    A short run of the modes in turns, a look at the model for what costs or breaks, and the
    largest batches that fit. The run is sealed in results/studies/, apart from those of run: show
    and report take its path.
    """
    memory_bytes = size_in_bytes(memory, "--memory")
    checked_plan(budget_s=budget)
    for folder, option in ((results, "--results"), *(((reports, "--reports"),) if open_ else ())):
        check_writable(folder, option)
    cell, model = request.one_model("advise")
    from ..advisor import Question, study
    from ..advisor.study import PLAN
    from ..analysis.advice import Advice, as_plain
    from ..store.jsonl import Store
    from ..terminal.advice_screen import COLUMNS, advice_screen, at_length

    question = Question(
        cell=cell,
        model=model,
        plan=replace(PLAN, budget_s=budget) if budget is not None else PLAN,
        memory_bytes=memory_bytes,
        compiles=try_compile,
    )
    store = Store(results).studies
    with err.status("loading torch") as status:
        advice = Advice(study(question, store, say=lambda words: say(status, words)))
    if as_json:
        print_json(as_plain(advice), indent=2)
    else:
        width = min(out.columns(piped=COLUMNS), COLUMNS)
        Screen(width=width).print(advice_screen(advice))
        print_tracebacks(advice.study.run)
        for line in at_length(advice):
            out.print(shown(line))
        out.print(f"[dim]records  {shown(str(store.folder / advice.study.run.name))}.jsonl[/dim]")
    if open_:
        open_study(advice.study.run, results, reports, advice=advice)
    if not advice.modes:
        raise typer.Exit(ExitStatus.NOTHING_MEASURED)
