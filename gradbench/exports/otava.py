"""Apache Otava: series over commits as CSV, and the YAML that says which way is better.

Otava can read no hole in a column, so figures that different runs hold are tests of their own. A
series of times never mixes machines; exact figures and ratios to the reference mode do not depend
on the machine's speed and span them. Protocols are never mixed.
"""

import csv
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Final

from ..analysis import dataframes
from ..errors import StoreError
from ..experiment.matrix import GRAD_MODES, Cell
from ..printable import spreadsheet
from ..records.measurements import Measurement
from ..records.run import Run
from .numbers import Exported, figures, machine_mark, slug, without_number

CONFIG: Final = "otava.yaml"
REFERENCE: Final = GRAD_MODES[0]
LOWER: Final = -1
"""Otava's word for "lower is better"; all that is exported here is."""


@dataclass(frozen=True, slots=True)
class _Point:
    """One number of one series: where it was measured, or "" where that does not matter."""

    cell: Cell
    figure: str
    machine: str
    value: float


@dataclass(frozen=True, slots=True)
class _Table:
    """A test of Otava's: columns that the same runs hold."""

    cell: Cell
    protocol: int
    machine: str
    runs: tuple[str, ...]
    columns: Mapping[str, Mapping[str, float]]  # figure -> run -> value


def export(runs: Sequence[Run]) -> Exported:
    """Return the YAML and a CSV a test, to be used from the folder they lie in.

    ``otava analyze --config-file otava.yaml all --since DATE``; it looks back one year if nothing
    is said, and exits 0 on a regression: read its ``--output json``. Rows are in the order of
    time. Raise `StoreError` without a number.
    """
    ordered = sorted(runs, key=lambda run: (run.header.started_at, run.name))
    machines = {machine_mark(run) for run in ordered}
    protocols = {run.header.protocol for run in ordered}
    files: dict[str, str] = {}
    lines = ["tests:"]
    names: dict[str, None] = {}
    by_name = {run.name: run for run in ordered}
    for table in _tables(ordered):
        suffix = "-times" if table.machine else ""
        suffix += f"-{table.machine}" if table.machine and len(machines) > 1 else ""
        suffix += f"-protocol{table.protocol}" if len(protocols) > 1 else ""
        name = _free(slug(f"{table.cell.workload}-{table.cell.id}{suffix}"), names)
        names[name] = None
        files[f"{name}.csv"] = _csv(table, by_name)
        lines += _yaml(name, table)
    if not names:
        raise StoreError("otava: these runs hold no number: there is nothing to export")
    lines += ["test_groups:", "  all:", *(f"  - {json.dumps(name)}" for name in names)]
    left_out = [line for run in ordered for line in without_number(run)]
    return Exported({CONFIG: "\n".join(lines) + "\n", **files}, left_out)


def _tables(runs: Sequence[Run]) -> Iterator[_Table]:
    series: dict[tuple[Cell, int, str, str], dict[str, float]] = {}
    for run in runs:
        for point in _points(run):
            key = (point.cell, run.header.protocol, point.machine, point.figure)
            series.setdefault(key, {})[run.name] = point.value
    grouped: dict[tuple[Cell, int, str, tuple[str, ...]], dict[str, dict[str, float]]] = {}
    for (cell, protocol, machine, figure), values in series.items():
        grouped.setdefault((cell, protocol, machine, tuple(values)), {})[figure] = values
    for (cell, protocol, machine, names), columns in grouped.items():
        yield _Table(cell, protocol, machine, names, columns)


def _points(run: Run) -> Iterator[_Point]:
    machine = machine_mark(run)
    have = {(o.cell, o.meter): o for o in run.outcomes if isinstance(o, Measurement)}
    for figure in figures(run):
        exact = figure.estimate.exact
        yield _Point(
            figure.cell, spreadsheet(figure.name), "" if exact else machine, figure.estimate.point
        )
        reference = have.get((dataframes.at(figure.cell, REFERENCE), figure.name))
        if figure.name == "step_time" and reference and figure.cell.grad_mode != REFERENCE:
            change = dataframes.ratio(figure.measurement, reference)
            if change is not None:
                name = f"step_time_to_{REFERENCE}"
                yield _Point(figure.cell, name, "", change.point)


def _free(name: str, taken: Container[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _csv(table: _Table, runs: Mapping[str, Run]) -> str:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["time", "commit", "run", *table.columns])
    for name in table.runs:
        run = runs[name]
        commit = str(run.environment.facts.get("git_commit", ""))
        values = [repr(values[name]) for values in table.columns.values()]
        known = (run.header.started_at, commit, name)
        writer.writerow([*map(spreadsheet, known), *values])
    return out.getvalue()


def _yaml(name: str, table: _Table) -> list[str]:
    lines = [
        f"  {json.dumps(name)}:",
        "    type: csv",
        f"    file: {json.dumps(name + '.csv')}",
        "    time_column: time",
        "    attributes: [commit, run]",
        "    metrics:",
    ]
    for figure in table.columns:
        lines += [
            f"      {json.dumps(f'{name}.{figure}')}:",  # Otava wants it unique over all tests
            f"        column: {json.dumps(figure)}",
            f"        direction: {LOWER}",
            "        scale: 1",
        ]
    return lines
