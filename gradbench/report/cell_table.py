"""Every cell of a run: a row of the page's table, and what stands behind it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from markupsafe import Markup

from ..analysis import commands, compilations, dataframes, format_units
from ..analysis.compilations import COMPILE_TIME
from ..analysis.run_view import MEMORY, TIME, Value, View, spaced
from ..experiment.matrix import Block, Cell, by_block
from ..plurals import counted
from ..records.measurements import NOTHING_TO_READ, Measurement, Skipped
from ..stats.estimates import Floats
from . import sparklines

Columns = Mapping[str, str]  # meter -> heading
BESIDE: Final[Columns] = {
    "latency": "p99 latency",
    "compile_time": "compile time",
    "host_time": "host time",
    "device_time": "device time",
    "bound": "bound by",
    "energy": "energy",
    "instructions": "instructions",
    "output_difference": "output",
}
"""The meters that have a column beside the step's time, where any cell was read by them.

``bound`` is no meter but a note of the step's time: which clock takes longer, the host's or the
device's.
"""
BELOW: Final[Columns] = {
    "saved_for_backward": "saved in step",
    "peak_allocated": "peak",
    "peak_reserved": "reserved",
    "fragmentation": "fragmentation",
    "device_process": "device process",
    "peak_rss": "process",
}
"""The same beside the step's memory."""


@dataclass(frozen=True, slots=True)
class Row:
    """A cell in the table; ``sentence`` says why it has no number at all."""

    number: int
    cell: Cell
    setting: str
    first: bool  # of its block
    time: Value
    times: Mapping[str, Value]  # by reference
    throughput: Value
    beside: Sequence[Value]
    memory: Value
    memories: Mapping[str, Value]
    below: Sequence[Value]
    sentence: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One meter of a cell."""

    meter: str
    value: Value


@dataclass(frozen=True, slots=True)
class Behind:
    """What stands behind a cell's row."""

    number: int
    cell: Cell
    rounds: Markup | None
    facts: Mapping[str, str]
    readings: Sequence[Reading]
    unreadable: Sequence[str]
    pytest: str | None


@dataclass(frozen=True, slots=True)
class Drawer:
    """A block and its cells, on demand."""

    number: int
    block: Block
    control: str
    again: str | None
    distributions: Markup | None
    modules: Mapping[str, str]
    cells: Sequence[Behind]


def read_in(views: Sequence[View], columns: Columns) -> Columns:
    """Return the columns of meters that read any cell of these runs."""
    measured = [o for v in views for o in v.run.outcomes if isinstance(o, Measurement)]
    read = {o.meter for o in measured} | {"bound" for o in measured if "bound" in o.notes}
    return {meter: heading for meter, heading in columns.items() if meter in read}


def groups(
    view: View, references: Sequence[str], *, beside: Columns, below: Columns
) -> list[tuple[str, list[Row]]]:
    """Return a table a kind of machine, with a title where there are several.

    Each has a row a cell, those of a block together, with these columns besides the first ones.
    """
    return [
        (_title(view, kind, cells), list(_rows(view, cells, references, beside, below)))
        for kind, cells in view.kinds.items()
    ]


def _title(view: View, kind: str, cells: Sequence[Cell]) -> str:
    machines = dict.fromkeys(machine for cell in cells if (machine := view.machine(cell)))
    return f"{kind} ({', '.join(machines)})" if machines else kind


def _rows(
    view: View, cells: Sequence[Cell], references: Sequence[str], beside: Columns, below: Columns
) -> Iterator[Row]:
    for block, members in by_block(cells).items():
        setting = block.setting.replace(f"{block.cell.device}-{block.cell.model}-", "", 1)
        for place, cell in enumerate(members):
            yield Row(
                number=view.numbers[cell],
                cell=cell,
                setting=f"{block.cell.device} {setting}",
                first=place == 0,
                time=view.value(cell, TIME),
                times={name: view.ratio(cell, TIME, name) for name in references},
                throughput=view.throughput(cell),
                beside=[_reading(view, cell, meter) for meter in beside],
                memory=view.value(cell, MEMORY),
                memories={name: view.ratio(cell, MEMORY, name) for name in references},
                below=[_reading(view, cell, meter) for meter in below],
                sentence=_sentence(view, cell),
            )


def drawers(view: View) -> Iterator[Drawer]:
    """Yield what stands behind each block."""
    for number, (block, cells) in enumerate(view.blocks.items()):
        control = view.control(cells[0])
        timed = {
            c.grad_mode: dataframes.per_step(m) for c in cells if (m := view.measurement(c, TIME))
        }
        yield Drawer(
            number=number,
            block=block,
            control=format_units.interval(control.low, control.high) if control else "",
            again=commands.again(cells[0], view.run.header),
            distributions=sparklines.distributions(
                timed, unit="ns", label=f"distribution of step times of {block}, by mode"
            )
            if timed
            else None,
            modules=_modules(view, cells),
            cells=[_behind(view, cell, timed.get(cell.grad_mode)) for cell in cells],
        )


def _reading(view: View, cell: Cell, meter: str) -> Value:
    if meter == "bound":
        return _bound(view, cell)
    if meter == COMPILE_TIME:
        return compilations.value(view, cell)
    return view.tail(cell) if meter == "latency" else view.value(cell, meter)


def _bound(view: View, cell: Cell) -> Value:
    """Return whether the host or the device takes longer over a step, or why nobody knows."""
    measured = view.measurement(cell, TIME)
    word, _, reason = str(measured.notes.get("bound", "") if measured else "").partition(": ")
    return Value(word, reason, kind="reason" if reason else "")


def _sentence(view: View, cell: Cell) -> str:
    why = view.stopped(cell)
    if why is None:
        return ""
    what = "cannot train here" if why.cause == "cannot_train" else spaced(why.cause)
    return f"{what}: {why.reason}"


def _behind(view: View, cell: Cell, values: Floats | None) -> Behind:
    outcomes = view.outcomes(cell)
    unreadable = [
        meter
        for meter, outcome in outcomes.items()
        if isinstance(outcome, Skipped) and outcome.cause == "unreadable"
    ]
    readings = [
        Reading(meter, _reading(view, cell, meter))
        for meter, outcome in outcomes.items()
        if not (isinstance(outcome, Skipped) and outcome.cause in NOTHING_TO_READ)
    ]
    why = view.stopped(cell)
    if why is not None and len({reading.value for reading in readings}) == 1:
        readings = [Reading("every meter", readings[0].value)]
    measured, drawing = view.measurement(cell, TIME), None
    if values is not None:
        low, high = (format_units.duration(float(np.quantile(values, q))) for q in (0.05, 0.95))
        many = counted(len(values), "round")
        label = f"{many} of {cell} in run order, nine in ten between {low} and {high}"
        drawing = sparklines.in_order(values, mode=cell.grad_mode, unit="ns", label=label)
    return Behind(
        number=view.numbers[cell],
        cell=cell,
        rounds=drawing,
        facts=_facts(measured, values) if measured is not None and values is not None else {},
        readings=readings,
        unreadable=unreadable,
        pytest=commands.through_pytest(cell),
    )


def _facts(measured: Measurement, values: Floats) -> dict[str, str]:
    """Return how a cell was timed, in words."""
    quarter, three = np.quantile(values, [0.25, 0.75])
    outliers = int((values > three + 1.5 * (three - quarter)).sum())  # Tukey's upper fence
    count = measured.iterations
    each = f"{count}" if isinstance(count, int) else f"{min(count)} to {max(count)}"
    facts = {
        "rounds": f"{len(values):,}",
        "iterations a round": each,
        "outliers": f"{outliers} ({outliers / len(values):.1%})",
    }
    return facts | {
        spaced(name): format_units.digits(value) if isinstance(value, float) else str(value)
        for name, value in measured.notes.items()
    }


def _modules(view: View, cells: Sequence[Cell]) -> dict[str, str]:
    """Return the bytes that modules of a block saved for backward, in the mode that saved most."""
    modules = [view.run.breakdowns[c].titled() for c in cells if c in view.run.breakdowns]
    most = max(modules, key=lambda saved: sum(saved.values()), default={})
    return {name: format_units.size(size) for name, size in most.items() if size}
