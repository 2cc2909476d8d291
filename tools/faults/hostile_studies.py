"""What is shown of a study, a notebook and a CI job, where a hostile text is all that it knows."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from gradbench import ci_job
from gradbench.advisor import Advised
from gradbench.analysis.advice import Advice, as_plain
from gradbench.analysis.explanation import MODES
from gradbench.ci_job import Ended, Part, perform
from gradbench.cli.screen import Screen, print_json, shown
from gradbench.exports.source_locations import locator
from gradbench.records.advice import Finding, LargestBatch, Study, Trial
from gradbench.records.explanation import Explanation, ModuleCounts, OperatorCounts
from gradbench.records.run import Run
from gradbench.report import Report, write
from gradbench.store.jsonl import Store
from gradbench.terminal.advice_screen import COLUMNS, advice_screen, at_length
from gradbench.terminal.explanation_tables import explanation_tables

ROUNDS = (100.0, 110.0, 105.0, 103.0, 101.0, 104.0, 102.0)


def study_of(run: Run, text: str) -> Study:
    """Return a study of a run's inference in which every word is the text."""
    cells = tuple(cell for cell in run.header.cells if cell.workload == "inference")
    return Study(
        run=run,
        cells=cells,
        findings=(Finding(what=text, line=text, cure=text),),
        batches=(LargestBatch(purpose=text, cell=cells[0], reason=text),),
        memory_of=text,
        trials=(Trial(name=text, fails=text), Trial(name=text, not_tried=text)),
        thorough=text,
    )


def explanation_of(text: str) -> Explanation:
    """Return an explanation of one module and one operator of that name."""
    counts = {
        mode: {text: ModuleCounts(operators={text: number}, nodes={text: number})}
        for number, mode in enumerate(MODES)
    }
    times = {mode: {text: tuple(ns + 9 * n for ns in ROUNDS)} for n, mode in enumerate(MODES)}
    operators = {
        mode: {text: OperatorCounts(calls=number, nodes=number)}
        for number, mode in enumerate(MODES)
    }
    return Explanation(
        classes={text: text},
        counts=counts,
        host_ns=times,
        operators=operators,
        operator_ns=times,
    )


def printed(run: Run, text: str) -> Iterator[tuple[str, str]]:
    """Yield what commands and Python show of a study, by what shows it."""
    advice, explanation = Advice(study_of(run, text)), explanation_of(text)
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        Screen(width=COLUMNS).print(advice_screen(advice))
        for line in at_length(advice):
            Screen(soft_wrap=True).print(shown(line))
        print_json(as_plain(advice))
    yield "advise", screen.getvalue()
    yield "repr of advise", repr(Advised(advice))
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        Screen(width=COLUMNS).print(explanation_tables(explanation, text))
        print_json(asdict(explanation))
    yield "explain", screen.getvalue()


def write_pages(runs: list[Run], text: str, folder: Path) -> None:
    """Write the page of a study, and what notebooks show, as pages."""
    advice = Advice(study_of(runs[0], text))
    write(runs[0], folder / "study.html", advice=advice, explanation=explanation_of(text))
    fragments = {
        "advice_in_a_notebook": Advised(advice)._repr_html_(),
        "report_in_a_notebook": Report(runs)._repr_html_(),
    }
    for name, fragment in fragments.items():
        page = f"<!doctype html><meta charset=utf-8><title>notebook</title>{fragment}"
        (folder / f"{name}.html").write_text(page, "utf-8", errors="backslashreplace")


def write_job(run: Run, verdicts: str, folder: Path) -> None:
    """Write the summary, the annotations and the JUnit XML of a CI job with these verdicts."""

    def call(part: Part) -> Ended:
        if part.name == "run":
            Store(folder / ci_job.RESULTS).save(run.records)
            return Ended(0, "")
        return Ended(1, verdicts)

    wanted = ci_job.parts([], folder=folder, baselines=["base"])
    perform(wanted, folder=folder, call=call, locator=partial(locator, root=folder))
