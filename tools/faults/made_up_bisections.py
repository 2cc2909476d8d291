"""A repository of a few commits, and the record of a bisection of them, made up."""

import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradbench.comparison import commits
from gradbench.experiment.matrix import Cell
from gradbench.experiment.model_source import ModelSource
from gradbench.records.bisection import Bisection, CellCounts, CountedCommit, TimedCell
from gradbench.store import bisections

NETS = "from torch import nn\n\ndef make():\n    return nn.Linear(8, 8)\n"
MODEL = "nets.make"


def make_repository(root: Path) -> None:
    """Make a repository with a model and four commits."""
    (root / "nets.py").write_text(NETS, "utf-8")
    git(root, "init", "-q")
    git(root, "add", "nets.py")
    for subject in ("first", "second", "third", "last"):
        git(root, "commit", "-q", "--allow-empty", "-m", subject)


def git(root: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *arguments], cwd=root, check=True)


def row_of(root: Path) -> dict[str, Any]:
    """Return the content of a file: the second commit adds an operator, the last is slower."""
    span = commits.between(root, "HEAD~3..HEAD", first_parent=False)
    modes = ("global_on", "no_grad")
    cells = tuple(
        Cell(model=MODEL, workload="inference", grad_mode=mode, batch_size=4) for mode in modes
    )
    good, second, third, last = (span.good, *(one.id for one in span.commits))
    counts = {good: 1, second: 2, third: None, last: 2}
    record = Bisection(
        started_at="2026-01-02T03:04:05+00:00",
        asked="HEAD~3..HEAD",
        good=good,
        bad=last,
        first_parent=False,
        paths=(),
        cells=cells,
        sources={MODEL: ModelSource(build="nets:make", input=("B,8",))},
        times="all",
        threshold=0.03,
        processes=3,
        seed=0,
        commits=span.commits,
        border=span.border,
        facts={"torch": "2.13.0", "python": "3.11.7"},
        counted=tuple(
            CountedCommit(
                commit=commit,
                cells=()
                if number is None
                else tuple(
                    CellCounts(
                        cell=cell,
                        operators={"aten.addmm.default": number},
                        nodes=number,
                        saved_bytes=256,
                        peak_bytes=512,
                    )
                    for cell in cells
                ),
                skipped="" if number is not None else "ImportError: half done",
                seconds=1.5,
            )
            for commit, number in [(good, 1), *counts.items()]
        ),
        timed=tuple(
            TimedCell(base=good, commit=last, cell=cell, logs=(0.1, 0.11, 0.09) * 2, apart="why")
            for cell in cells
        ),
    )
    return {"kind": bisections.KIND, "schema": bisections.SCHEMA, **asdict(record)}
