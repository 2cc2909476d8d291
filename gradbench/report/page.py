"""The page: runs and figures in, HTML out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from .. import tables, units, words
from .._version import __version__
from ..behaviour import Behaviour
from ..checks import Check
from ..errors import StoreError
from ..estimates import Estimate
from ..matrix import Block, Cell, by_block
from ..records import Fact, Measurement, Outcome, Skipped
from ..store import Run
from . import history
from .figures import BRIGHT, COLOURS, FIGURES, GRID, INK, styled
from .semantics import section as semantics_section

REFERENCES: Final = ("global_on", "no_grad")
CAPTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "time_ratios": (
        "Step time against global_on",
        "Each mark is the median of paired rounds, its bar the 95 % interval. The grey band is "
        "what the block's own A/A control, global_off against no_grad, cannot tell from 1: a mark "
        "inside it is no difference.",
    ),
    "peak_memory": (
        "Memory that a step adds",
        "The most bytes that were live at once during a step, less what was there before it "
        "(parameters, buffers, optimizer state, the batch). Counted, not sampled: it repeats to "
        "the byte.",
    ),
    "throughput": (
        "Throughput over batch size",
        "Samples per second, from the median step. Lines that meet at the right say that the "
        "mode's fixed cost is lost in the arithmetic there.",
    ),
}


@dataclass(frozen=True, slots=True)
class Value:
    """A table cell: words, and how they should look."""

    text: str
    title: str = ""
    kind: str = ""  # "", "faster", "slower", "reason"


@dataclass(frozen=True, slots=True)
class Row:
    """A measured cell as the page's table shows it."""

    mode: str
    values: tuple[Value, ...]
    sentence: str = ""  # instead of values


@dataclass(frozen=True, slots=True)
class Group:
    """A block as the page's table shows it."""

    block: Block
    control: str
    rows: tuple[Row, ...]


Checks = tuple[Sequence[Check], Mapping[str, Any]]


def render(
    runs: Run | Sequence[Run],
    *,
    checks: Checks | None = None,
    semantics: Behaviour | None = None,
    commit_url: str = "",
) -> str:
    """Return one self-contained HTML page about one or more runs; several show their history.

    ``checks`` is what a self-check found and where (`gradbench.checks.load`), ``semantics`` what
    the modes were seen to do (`gradbench.behaviour.load`), ``commit_url`` the address of a
    commit's page, with ``{commit}`` in it. Raise `StoreError` without a run.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise StoreError("there is no run to report")
    environment = Environment(
        loader=PackageLoader("gradbench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [_section(run, f"run{number}") for number, run in enumerate(runs)]
    return environment.get_template("page.html.j2").render(
        runs=sections,
        semantics=semantics
        and semantics_section(semantics, runs, figures=_figures_of_meters(sections[0])),
        version=__version__,
        colours=COLOURS,
        bright=BRIGHT,
        references=REFERENCES,
        checks=checks[0] if checks else (),
        checked=checks[1] if checks else {},
        history=history.of_runs(runs, commit_url=commit_url) if len(runs) > 1 else None,
    )


def write(
    runs: Run | Sequence[Run],
    path: Path,
    *,
    checks: Checks | None = None,
    semantics: Behaviour | None = None,
    commit_url: str = "",
) -> Path:
    """Write the page; raise `StoreError` where that cannot be."""
    html = render(runs, checks=checks, semantics=semantics, commit_url=commit_url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, "utf-8", errors="backslashreplace")
    except OSError as error:
        raise StoreError(f"cannot write the page {str(path)!r}: {error.strerror}") from error
    return path


def answer(run: Run) -> list[str]:
    """Return in a few sentences, computed from the run, what the modes cost here."""
    have = {(o.cell, o.meter): o for o in run.outcomes if isinstance(o, Measurement)}
    blocks = by_block(c for c in run.started.cells if c.workload == "inference")
    sentences = []
    for device in sorted({block.cell.device for block in blocks}):
        cells = [block.cell for block in blocks if block.cell.device == device]
        memory, durations = (
            [
                change.point
                for cell in cells
                for mode in ("no_grad", "inference_mode")
                if (change := _change(have, tables.at(cell, mode), cell, meter)) is not None
            ]
            for meter in ("peak_transient", "step_time")
        )
        if memory:
            least, most = units.factor(min(memory)), units.factor(max(memory))
            times = least if least == most else f"{least} to {most}"
            sentences.append(
                f"On {device}, an inference step under no_grad or inference_mode adds {times} "
                "times the memory that it adds under global_on."
            )
        if durations:
            fastest, slowest = min(durations), max(durations)
            sentences.append(f"It takes {fastest:.2f} to {slowest:.2f} times as long.")
        controls = [c for cell in cells if (c := tables.control(run, cell)) is not None]
        if controls:
            off = max(abs(control.point - 1) for control in controls)
            held = sum(control.low <= 1 <= control.high for control in controls)
            sentences.append(
                f"The A/A control, global_off against no_grad, which set the same flag, is off by "
                f"{off:.1%} at most, and its 95 % interval holds 1 in {held} of {len(controls)} "
                "blocks."
            )
    return sentences or ["No block of this run has two measured modes to compare."]


def _change(
    have: Mapping[tuple[Cell, str], Measurement], cell: Cell, reference: Cell, meter: str
) -> Estimate | None:
    sides = have.get((cell, meter)), have.get((reference, meter))
    if sides[0] is None or sides[1] is None:
        return None
    return tables.ratio(sides[0], sides[1])


def _section(run: Run, mark: str) -> dict[str, object]:
    figures = [
        (name, *CAPTIONS[name], _svg(figure, salt=f"{mark}-{name}"))
        for name, draw in FIGURES.items()
        if (figure := styled(draw, run)) is not None
    ]
    return {
        "name": run.name,
        "mark": mark,
        "started": run.started.started,
        "command": " ".join(run.started.command),
        "sealed": run.sealed,
        "dropped": run.dropped,
        "unfinished": [str(block) for block in run.unfinished()],
        "answer": answer(run),
        "figures": figures,
        "groups": list(_groups(run)),
        "reasons": list(words.reasons(run)),
        "unreadable": _unreadable(run),
        "findings": words.findings(run),
        "spent": words.spent(run),
        "facts": _facts(run),
    }


def _figures_of_meters(section: Mapping[str, Any]) -> dict[str, str]:
    """Return meter -> href of the figure that shows it, of those that a section has."""
    shown = {"time_ratios": "step_time", "peak_memory": "peak_transient"}
    return {
        shown[name]: f"#{section['mark']}-figure-{name}"
        for name, *_ in section["figures"]
        if name in shown
    }


def _facts(run: Run) -> dict[str, Fact]:
    facts: dict[str, Fact] = {**run.environment.facts}
    if run.ended is not None:
        facts["load_after"] = run.ended.load_after
    return facts


def _groups(run: Run) -> Iterator[Group]:
    have = {(outcome.cell, outcome.meter): outcome for outcome in run.outcomes}
    for block, cells in by_block(run.started.cells).items():
        control = tables.control(run, cells[0])
        floor = tables.noise(run, cells[0])
        yield Group(
            block=block,
            control=units.interval(control.low, control.high) if control else "",
            rows=tuple(_row(cell, have, floor) for cell in cells),
        )


def _row(cell: Cell, have: Mapping[tuple[Cell, str], Outcome], floor: float) -> Row:
    outcomes = {meter: outcome for (c, meter), outcome in have.items() if c == cell}
    time = outcomes.get("step_time")
    stopped = [o for o in outcomes.values() if isinstance(o, Skipped) and o.cause != "unreadable"]
    if outcomes and len(stopped) == len(
        [o for o in outcomes.values() if not (isinstance(o, Skipped) and o.cause == "unreadable")]
    ):
        first = stopped[0] if stopped else next(iter(outcomes.values()))
        assert isinstance(first, Skipped)
        what = "cannot train here" if first.cause == "cannot_train" else _spaced(first.cause)
        return Row(cell.grad_mode, (), f"{what}: {first.reason}")
    values = [_value(time)]
    values += [_ratio(cell, have, "step_time", name, floor) for name in REFERENCES]
    values.append(_throughput(time))
    values.append(_tail(outcomes.get("latency")))
    values.append(_value(outcomes.get("peak_transient")))
    values += [_ratio(cell, have, "peak_transient", name, 0.0) for name in REFERENCES]
    values += [
        _value(outcomes.get(meter))
        for meter in ("saved_for_backward", "peak_allocated", "peak_rss")
    ]
    return Row(cell.grad_mode, tuple(values))


def _throughput(time: Outcome | None) -> Value:
    if not isinstance(time, Measurement):
        return Value("")
    rate = tables.throughput(time)
    return Value(units.rate(rate.point), f"{units.rate(rate.low)} to {units.rate(rate.high)}")


def _tail(latency: Outcome | None) -> Value:
    if not isinstance(latency, Measurement):
        return _value(latency)
    figures = tables.figures(latency)
    told = ", ".join(
        f"{name.removeprefix('latency_')} {units.duration(figure.point)} "
        f"({units.duration(figure.low)} to {units.duration(figure.high)})"
        for name, figure in figures.items()
    )
    calls = len(latency.values)
    return Value(units.duration(figures["latency_p99"].point), f"{calls} single calls: {told}")


def _value(outcome: Outcome | None) -> Value:
    if outcome is None:
        return Value("not measured", kind="reason")
    if isinstance(outcome, Skipped):
        return Value(_spaced(outcome.cause), outcome.reason, "reason")
    figure = tables.estimate(outcome)
    text = units.quantity(figure.point, outcome.unit)
    if figure.exact or figure.rounds == 1:
        return Value(text, f"{figure.point:,.0f} {outcome.unit}")
    spread = (
        f"{units.quantity(figure.low, outcome.unit)} to {units.quantity(figure.high, outcome.unit)}"
    )
    notes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in outcome.notes.items())
    return Value(text, f"{spread} in {figure.rounds} rounds of {outcome.iterations}; {notes}")


def _ratio(
    cell: Cell,
    have: Mapping[tuple[Cell, str], Outcome],
    meter: str,
    reference: str,
    floor: float,
) -> Value:
    ours, theirs = have.get((cell, meter)), have.get((tables.at(cell, reference), meter))
    if not (isinstance(ours, Measurement) and isinstance(theirs, Measurement)):
        return Value("")
    if cell.grad_mode == reference:
        return Value("1", kind="reference")
    change = tables.ratio(ours, theirs)
    if change is None:
        return Value("", "the reference is 0 bytes: there is no ratio")
    kind = "faster" if change.high < 1 - floor else "slower" if change.low > 1 + floor else ""
    if change.exact:
        return Value(units.factor(change.point), "exact", kind)
    text = f"{units.factor(change.point)} {units.interval(change.low, change.high)}"
    title = f"{change.rounds} pairs; a change of {change.detectable:.1%} would have been seen"
    return Value(text, title, kind)


def _unreadable(run: Run) -> list[str]:
    said = {
        f"{outcome.meter} on {outcome.cell.device}: {outcome.reason}"
        for outcome in run.outcomes
        if isinstance(outcome, Skipped) and outcome.cause == "unreadable"
    }
    return sorted(said)


def _spaced(cause: str) -> str:
    return cause.replace("_", " ")


def _svg(figure: Figure, *, salt: str) -> Markup:
    """Return the figure as inline SVG in the page's own colours, its ids apart from others'."""
    buffer = StringIO()
    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "text.parse_math": False}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1
    )
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    for mode, colour in COLOURS.items():
        svg = svg.replace(colour.lower(), f"var(--{mode})")
    prefix = re.sub(r"\W", "-", salt)
    svg = re.sub(r'(<[a-zA-Z][^<>]*?\s)id="', rf'\g<1>id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return Markup(svg)  # noqa: S704 # matplotlib escapes the text that it draws
