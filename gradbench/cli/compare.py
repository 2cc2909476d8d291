"""The command ``compare``: base and candidate side by side, in one job on one machine."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import Impossible
from ..experiment.matrix import Cell
from .app import app, err, examples, out, say
from .gate import STATUSES, as_plain, conclusion, show
from .request import Request, takes_request
from .screen import print_json, shown

if TYPE_CHECKING:
    from ..gate.result import NotCompared
    from ..workloads.models import Model


@app.command(
    epilog=examples(
        "gradbench compare --base main --model mypkg.nets:make --input 8,3,224,224",
        "gradbench compare --base-python /envs/old/bin/python --preset tiny",
        before=STATUSES,
    )
)
@takes_request
def compare(
    request: Request,
    *,
    base: Annotated[
        str | None, typer.Option(metavar="REV", help="Revision of this repository to start from.")
    ] = None,
    base_python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The base's interpreter, with its torch and psutil."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="The smallest change that is worse or better, as a share.")
    ] = 0.03,
    processes: Annotated[
        int, typer.Option(help="Processes for each cell; as many fresh ones or more confirm.")
    ] = 5,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Begin nothing that would end later; what is open is inconclusive.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, inputs and order.")] = 0,
    strict: Annotated[bool, typer.Option(help="Exit 3 when anything is inconclusive.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show what is the same too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Compare the working tree with another revision, or another torch, and exit 1 when slower.

    Both are imported into one process, each from its own tree, and take turns of 0.1 ms on the same
    weights; where that cannot be, two processes take turns. Several such processes are compared,
    and what the first ones suspect must be confirmed by fresh ones. A change that is sure and
    smaller than --threshold is within tolerance, and exits 0.
    """
    if base is None and base_python is None:
        raise Impossible("nothing to compare with: give --base REV, --base-python PATH, or both")
    from ..comparison import checkouts, leftovers, versions

    effort = versions.Effort(
        threshold=threshold,
        processes=processes,
        budget_s=math.inf if budget is None else budget,
        seed=seed,
    )
    began, here = time.monotonic(), Path.cwd()
    for words in leftovers.remove_leftovers():
        err.print(f"[dim]{shown(words)}[/dim]")
    with (
        err.status("loading torch") as status,
        checkouts.checked_out_versions(
            here=here, revision=base, base_python=base_python
        ) as checked_out,
    ):
        old, new, itself = checked_out
        cells, _, models = request.cells({})
        names = dict.fromkeys(cell.model for cell in cells)
        sources = {name: models[name].source for name in names if name in models}
        own = {name: source for name, source in sources.items() if source is not None}
        checkouts.check(cells, own, itself=itself, other_python=base_python is not None)
        left_out = _left_out(cells, models)
        if base is not None:
            _say_what_is_compared(base, old.tree, new.tree)
        decision = versions.compare(
            [cell for cell in cells if cell not in {one.cell for one in left_out}],
            base=old,
            candidate=new,
            effort=replace(
                effort, budget_s=max(effort.budget_s - (time.monotonic() - began), 1e-9)
            ),
            sources=own,
            say=lambda words: say(status, words),
        )
    decision = replace(decision, not_compared=(*left_out, *decision.not_compared))
    result = decision.status(strict=strict)
    if as_json:
        print_json(as_plain(decision, result), indent=1)
    else:
        show(decision, everything=everything)
        seconds = time.monotonic() - began
        out.print(f"{conclusion(decision, result)}  [dim]{seconds:.0f} s[/dim]")
    raise typer.Exit(result)


def _left_out(cells: Sequence[Cell], models: "Mapping[str, Model]") -> "tuple[NotCompared, ...]":
    """Return the cells that cannot run on this machine, with their reasons."""
    from ..gate.result import NotCompared
    from ..runner import preflight

    preflight.check(cells, models)
    obstacles = {cell: why for cell in cells if (why := preflight.obstacle(cell, models))}
    return tuple(
        NotCompared(cell=cell, meter="step_time", why="no number", reason=reason)
        for cell, (_, reason) in obstacles.items()
    )


def _say_what_is_compared(base: str, old: Path, new: Path) -> None:
    """Name the base's commit, and whether the candidate is more than a commit."""
    from ..comparison import worktree

    err.print(f"[dim]the base is {shown(base)}, commit {worktree.commit(old, 'HEAD')[:10]}[/dim]")
    if worktree.is_dirty(new):
        err.print("the working tree has uncommitted changes: they are part of the candidate")
