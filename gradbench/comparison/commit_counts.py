"""Counts what the cells' steps make torch do at one commit: seconds, and no clock in it."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource
from ..records.bisection import CellCounts
from ..workloads.steps import WORKLOADS
from .cell_requests import cell_request, like, own_sources
from .checkouts import Version
from .code_origins import check_modules, check_origin
from .process import Failed, LiveProcess, Lost, why_not_imported

Sources = Mapping[str, ModelSource]


class CannotStart(Exception):
    """A version that cannot be measured at all: its gradbench cannot be imported, say."""


def count(
    version: Version, cells: Sequence[Cell], sources: Sources, *, seed: int, limit_s: float
) -> tuple[tuple[CellCounts, ...], Mapping[str, str]]:
    """Return every cell's counts, and the versions of torch and Python; raise `CannotStart`.

    Each process has a hash seed of its own, so that counts which depend on it do not agree twice.
    One that gives no answer within the limit is killed.
    """
    by_cell: dict[Cell, CellCounts] = {}
    killed_once: set[Cell] = set()
    facts: Mapping[str, str] = {}
    while left := [cell for cell in cells if cell not in by_cell]:
        with _process(version, left, limit_s) as process:
            try:
                facts = process.hear()
            except Failed as failure:
                raise CannotStart(str(failure)) from failure
            if _imported(process, left, sources, by_cell):
                able = [cell for cell in left if cell not in by_cell]
                requests = {c: cell_request(c, sources.get(c.model), seed=seed) for c in able}
                _count(process, requests, by_cell, killed_once)
    return tuple(by_cell[cell] for cell in cells), facts


def _process(version: Version, cells: Sequence[Cell], limit_s: float) -> LiveProcess:
    return LiveProcess(
        [version],
        training=any(WORKLOADS[cell.workload].optimizes for cell in cells),
        limit_s=limit_s,
        randomized_layout={"PYTHONHASHSEED": str(random.randrange(1, 2**32))},
    )


def _imported(
    process: LiveProcess, cells: Sequence[Cell], sources: Sources, by_cell: dict[Cell, CellCounts]
) -> bool:
    """Import the models, and note the cells of those that cannot be; return whether it lives."""
    for name, source in own_sources(cells, sources).items():
        try:
            (file,) = process.imported(source.build)
        except Failed as failure:
            skipped = why_not_imported(source.build, failure)
            for cell in cells:
                if cell.model == name:
                    by_cell[cell] = CellCounts(cell=cell, skipped=skipped)
            if isinstance(failure, Lost):
                return False
        else:
            check_origin(process.versions[0], source.build, file)
    return True


def _count(
    process: LiveProcess,
    requests: Mapping[Cell, Mapping[str, Any]],
    by_cell: dict[Cell, CellCounts],
    killed_once: set[Cell],
) -> None:
    """Count cells until the process is lost, or one is killed that is to be tried again."""
    for cell, asked in requests.items():
        try:
            found = process.ask(**asked, examine="counts")
        except Failed as failure:
            if failure.killed and cell not in killed_once:  # once may be anybody's doing
                killed_once.add(cell)
                return
            by_cell[cell] = CellCounts(
                cell=cell, failure=failure.why, doubt=failure.doubt, by_others=failure.by_others
            )
            if isinstance(failure, Lost):
                left = [one for one in requests if one not in by_cell]
                for one in like(cell, left) if failure.late else ():
                    by_cell[one] = CellCounts(
                        cell=one, skipped=f"not tried: {failure.why} in {cell}"
                    )
                return
        else:
            check_modules(process.versions[0], found["outside"])
            by_cell[cell] = _counts(cell, found["operations"])


def _counts(cell: Cell, counts: Mapping[str, Any]) -> CellCounts:
    return CellCounts(
        cell=cell,
        operators=counts.get("operators"),
        nodes=counts.get("nodes"),
        saved_bytes=counts.get("saved_bytes"),
        peak_bytes=counts.get("peak_bytes"),
    )
