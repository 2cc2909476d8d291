"""The command ``ci``: measure, gate, compare and tell, in one line of a CI job."""

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from .. import own_python
from ..exit_status import ExitStatus
from ..experiment.toml_config import choose
from ..printable import printable
from ..process_tree import ProcessTree
from .app import app, err, examples, out
from .exports import places
from .gate import baseline_of
from .request import Request, takes_request
from .screen import shown

UNWINDING_S: Final = 30.0
"""How long a command that is asked to end may put things in order."""

if TYPE_CHECKING:
    from ..ci_job import Ended, Job, Part


@app.command(
    epilog=examples(
        "gradbench ci --preset tiny --baseline benchmarks/baseline.jsonl",
        "gradbench ci --config bench.toml --base origin/main",
    )
)
@takes_request
def ci(
    request: Request,
    *,
    base: Annotated[
        str | None, typer.Option(metavar="REV", help="Compare with this revision, side by side.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Gate against this run or file.")
    ] = None,
    fail_on: Annotated[
        str, typer.Option(help="What fails the job: regression, inconclusive (that too) or never.")
    ] = "regression",
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the run, verdicts and reports.")
    ] = Path("gradbench-ci"),
    semantics: Annotated[
        bool, typer.Option(help="What the modes do on this torch, for the page.")
    ] = True,
) -> None:
    """Measure, gate and compare as asked, and report the result to the CI system.

    The folder then holds the run in results/, its page, gate.json and compare.json, summary.md,
    annotations.txt and junit.xml. Under GitHub Actions the summary and the annotations are shown.
    The exit status is the gravest of gate's and compare's.
    """
    from ..ci_job import parts, perform

    wanted = parts(
        request.arguments(),
        folder=output,
        base=base,
        baselines=baseline or (),
        fail_on=fail_on,
        semantics=semantics,
    )
    if request.config is not None:
        choose(file=request.config)
    _look(base, baseline or (), output, fail_on=fail_on)
    job = perform(wanted, folder=output, call=_call, locator=places)
    _tell_github(job)
    out.print(f"{shown(job.words)}\nsummary  {shown(str(job.summary))}")
    raise typer.Exit(job.exit_status(fail_on))


def _look(base: str | None, baseline: Sequence[str], folder: Path, *, fail_on: str) -> None:
    """Look at what is to be compared with before anything is measured: it takes minutes.

    Raise `GradbenchError` for a revision that is none or a file that cannot be read; exit where
    there is no baseline, unless the job is to look on.
    """
    from ..ci_job import RESULTS
    from ..comparison import worktree

    if base is not None:
        worktree.commit(worktree.repository(Path.cwd()), base)
    if baseline:
        _, why_none = baseline_of(baseline, folder / RESULTS)
        if why_none and fail_on != "never":
            err.print(f"[red]gradbench:[/red] no baseline: {shown(why_none)}")
            raise typer.Exit(ExitStatus.NO_BASELINE)


def _call(part: "Part") -> "Ended":
    """Run a part in a process of its own; show what it prints, unless that is for us to read."""
    from ..ci_job import Ended

    err.print(f"[bold]gradbench {shown(' '.join(part.arguments))}[/bold]")
    command = own_python.command(*part.arguments)
    pipe = subprocess.PIPE if part.verdicts else None
    with ProcessTree(command, stdout=pipe, own_session=False) as process:  # it hears Ctrl-C itself
        try:
            output = process.stdout.read() if process.stdout is not None else b""
            status = process.wait()
        except BaseException:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(UNWINDING_S)
            raise
    return Ended(status, output.decode(errors="replace"))


def _tell_github(job: "Job") -> None:
    """Show summary and annotations where GitHub looks for them, and set the step's outputs."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print(job.annotations.read_text("utf-8"), end="")
    for variable, text in (
        ("GITHUB_STEP_SUMMARY", job.summary.read_text("utf-8")),
        ("GITHUB_OUTPUT", f"status={job.status}\nfolder={printable(str(job.summary.parent))}\n"),
    ):
        if path := os.environ.get(variable):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(text)
