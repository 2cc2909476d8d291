"""The command ``explain``: why the modes differ on a model, by module and by operator."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from ..exit_status import ExitStatus
from ..store.jsonl import check_writable
from .app import AsJson, OpenPage, Reports, Results, app, err, examples, out, say
from .printing import marked, open_study, print_prose, print_tracebacks, wrapped
from .request import Request, checked_plan, takes_one_model
from .screen import Screen, print_json, shown


@app.command(
    epilog=examples(
        "gradbench explain --model resnet18_32 --batch-size 8",
        "gradbench explain --model mypkg.nets:make --input 8,3,224,224 --open",
    )
)
@takes_one_model
def explain(
    request: Request,
    *,
    budget: Annotated[
        float | None, typer.Option(help="Seconds of timing, for each of three passes.")
    ] = None,
    as_json: AsJson = False,
    open_: OpenPage = False,
    results: Results = Path("results"),
    reports: Reports = Path("reports"),
) -> None:
    """Say why the modes differ on a model: what autograd does in each.

    Counts repeat: operators dispatched, graph nodes, bytes saved for backward, views tracked,
    version counters. Host times by module and by operator come after them, with intervals; what
    these do not explain is said. The modes are measured as they are, too: that run is sealed in
    results/studies/.
    """
    checked_plan(budget_s=budget)
    for folder, option in ((results, "--results"), *(((reports, "--reports"),) if open_ else ())):
        check_writable(folder, option)
    cell, model = request.one_model("explain")
    from ..advisor import Question, explain as look
    from ..advisor.study import PLAN
    from ..analysis import headline, run_sentences
    from ..store.jsonl import Store
    from ..terminal.explanation_tables import explanation_tables
    from ..terminal.run_tables import WIDE

    plan = replace(PLAN, budget_s=budget) if budget is not None else PLAN
    question = Question(cell=cell, model=model, plan=plan)
    store = Store(results).studies
    with err.status("loading torch") as status:
        run, explanation = look(question, store, say=lambda words: say(status, words))
    if as_json:
        oddities = run_sentences.oddities(run)
        print_json({"run": run.name, "oddities": oddities, **asdict(explanation)}, indent=2)
    else:
        for sentence in headline.answer(run):
            for line in wrapped(sentence):
                out.print(marked(line))
        for oddity in run_sentences.oddities(run):
            print_prose(oddity, style="yellow")
        print_tracebacks(run)
        width = out.columns(piped=WIDE)
        Screen(width=width).print(explanation_tables(explanation, str(cell.block)))
        out.print(f"[dim]records  {shown(str(store.folder / run.name))}.jsonl[/dim]")
    if open_:
        open_study(run, results, reports, explanation=explanation)
    if not run.measured:
        raise typer.Exit(ExitStatus.NOTHING_MEASURED)
