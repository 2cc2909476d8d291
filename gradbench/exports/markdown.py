"""A run, and the verdicts on it, as Markdown: GitHub's job summary, a comment, a file.

GitHub takes 1024 KiB a step and shows nothing of a summary that is larger: then rows of the tables
give way to the verdicts, the reasons and the warnings, and a line says how many.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ..analysis import dataframes, format_units, run_sentences
from ..analysis.diagnosis import possible_interference
from ..analysis.run_view import TIME, View
from ..experiment.matrix import GRAD_MODES, Cell, by_block
from ..gate.figure_verdicts import FigureVerdict
from ..plurals import counted
from ..printable import printable
from ..records.measurements import Measurement, Skipped
from ..records.run import Run
from ..stats.verdicts import GRAVEST_FIRST, Verdict
from .numbers import Exported
from .verdict_file import Verdicts
from .verdict_text import values_in_words

FILE: Final = "summary.md"
LIMIT: Final = 1024 * 1024
"""Bytes that GitHub takes of a step's summary."""
REASONS: Final = 200
"""Sentences of one list; a run that breaks everywhere would say little more."""
FACTS: Final = ("torch", "python", "cpu", "cores", "gpu", "host", "git_commit", "protocol")


def export(runs: Sequence[Run], *, reference: str = GRAD_MODES[0]) -> Exported:
    """Return one file about all runs."""
    return Exported({FILE: summary(runs, reference=reference)})


def summary(
    runs: Sequence[Run],
    *,
    verdicts: Verdicts | None = None,
    reference: str = GRAD_MODES[0],
    limit: int = LIMIT,
) -> str:
    """Return verdicts, if there are any, and each run's tables, in at most ``limit`` bytes.

    Of a run: each mode's step time against ``reference`` with its interval and verdict, the
    memory that is counted to the byte, what could not be measured and why, and possible
    interference.
    """
    parts = [(part, True) for part in (judged(verdicts) if verdicts else ())]
    for run in runs:
        parts += [(part, True) for part in _head(run)]
        parts += [(part, False) for part in _tables(run, reference)]
        parts += [(part, True) for part in _remarks(run)]
    return _fit(parts, limit)


def judged(verdicts: Verdicts) -> Iterator[str]:
    """Yield a verdict table in parts: counts, what is not the same, what is, folded, the rest."""
    rows = verdicts.rows
    count = {verdict: sum(row.verdict is verdict for row in rows) for verdict in GRAVEST_FIRST}
    counts = ", ".join(f"{number} {verdict.value}" for verdict, number in count.items() if number)
    yield f"## gradbench: {counts or 'nothing was judged'}\n\n"
    loud = [row for verdict in GRAVEST_FIRST[:-1] for row in rows if row.verdict is verdict]
    if loud:
        yield from _verdict_table(loud)
        yield "\n"
    quiet = [row for row in rows if row.verdict is Verdict.SAME]
    if quiet:
        heading = f"<details><summary>{len(quiet)} the same</summary>\n\n"
        yield heading + "".join(_verdict_table(quiet)) + "\n</details>\n\n"
    yield from _list("What has no verdict, and why", verdicts.not_compared)


def _verdict_table(rows: Iterable[FigureVerdict]) -> Iterator[str]:
    yield "| verdict | cell | meter | baseline → candidate | why |\n|---|---|---|---|---|\n"
    for row in rows:
        word = f"**{row.verdict.value}**" if row.verdict is Verdict.WORSE else row.verdict.value
        cells = (str(row.cell), row.meter, values_in_words(row), row.reason)
        yield f"| {word} | {' | '.join(map(escaped, cells))} |\n"


def _head(run: Run) -> Iterator[str]:
    blocks = by_block(run.header.cells)
    numbers = sum(isinstance(outcome, Measurement) for outcome in run.outcomes)
    size = f"{counted(len(run.header.cells), 'cell')} in {counted(len(blocks), 'block')}"
    outcomes = f"{counted(numbers, 'number')}, {counted(len(run.outcomes) - numbers, 'reason')}"
    yield f"## Run {escaped(run.name)}\n\n{size}; {outcomes}. "
    yield f"{escaped(run_sentences.spent(run))}.\n\n"
    facts = run.environment.facts
    listed = ", ".join(
        f"{name} {facts[name]}"
        for known in FACTS
        for name in facts
        if name == known or name.endswith(f" {known}")  # as in "cuda:1 gpu"
    )
    yield f"{escaped(listed) or 'The environment was not recorded.'}\n\n"


def _remarks(run: Run) -> Iterator[str]:
    missing = [
        *run_sentences.reasons(run),
        *run_sentences.unreadable(run),
        *(f"{block}: the run was cut short" for block in run.unfinished()),
        *([run.dropped] if run.dropped else []),
    ]
    yield from _list("What could not be measured, and why", missing)
    yield from _list(
        "Predicted peaks that are marked, and why", run_sentences.prediction_marks(run)
    )
    yield from _list("Possible interference", possible_interference(run))


def _list(heading: str, lines: Sequence[str]) -> Iterator[str]:
    if not lines:
        return
    more = f"- and {len(lines) - REASONS} more\n" if len(lines) > REASONS else ""
    yield f"### {heading}\n\n"
    yield from (f"- {escaped(line)}\n" for line in lines[:REASONS])
    yield f"{more}\n"


def _tables(run: Run, reference: str) -> Iterator[str]:
    view = View(run)
    modes = [m for m in GRAD_MODES if any(cell.grad_mode == m for cell in view.cells)]
    others = [mode for mode in modes if mode != reference]
    if any(outcome.meter == TIME for outcome in run.outcomes):
        yield (
            f"### Step time, and each mode's ratio to {reference}\n\n"
            "Median of paired rounds with its 95% interval; below 1 is faster. A ratio inside "
            "the A/A control's noise is the same.\n\n"
        )
        yield _header(["block", reference, *others, "A/A control"])
        for block, cells in view.blocks.items():
            control = view.control(cells[0])
            yield _row(
                [
                    str(block),
                    _value(view, dataframes.at(cells[0], reference), TIME),
                    *(_change(view, dataframes.at(cells[0], mode), reference) for mode in others),
                    format_units.interval(control.low, control.high) if control else "none",
                ]
            )
        yield "\n"
    counted = {o.meter for o in run.outcomes if isinstance(o, Measurement) and o.exact}
    exact = [meter for meter in run.header.meters if meter in counted]
    if exact:
        yield "### Deterministic metrics\n\n"
        yield _header(["block", "meter", *modes])
        for block, cells in view.blocks.items():
            members = [dataframes.at(cells[0], mode) for mode in modes]
            for meter in exact:
                yield _row([str(block), meter, *(_exact(view, cell, meter) for cell in members)])
        yield "\n"


def _header(headings: Sequence[str]) -> str:
    return f"| {' | '.join(headings)} |\n|---{'|---:' * (len(headings) - 1)}|\n"


def _row(values: Iterable[str]) -> str:
    return f"| {' | '.join(map(escaped, values))} |\n"


def _change(view: View, cell: Cell, reference: str) -> str:
    change, verdict = view.change(cell, TIME, reference), view.verdict(cell, TIME, reference)
    if change is None or verdict is None:
        return _value(view, cell, TIME)
    interval = format_units.interval(change.low, change.high)
    return f"{format_units.factor(change.point)} {interval} {verdict.value}"


def _value(view: View, cell: Cell, meter: str) -> str:
    outcome = view.outcomes(cell).get(meter)
    if isinstance(outcome, Skipped) and outcome.cause == "cannot_train":
        return "cannot train here"
    return view.value(cell, meter).text


def _exact(view: View, cell: Cell, meter: str) -> str:
    measured, figure = view.measurement(cell, meter), view.estimate(cell, meter)
    if measured is None or figure is None:
        return _value(view, cell, meter)
    return f"{figure.point:,.0f} B" if measured.unit == "bytes" else f"{figure.point:,.0f}"


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in a table's cell or a list too."""
    text = " ".join(printable(text).split())
    text = re.sub(r"([\\`*|#~])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is plain
    text = re.sub(r"^\[(?=[^]]*\]:)|\](?=\()", r"\\\g<0>", text)  # a link, or what it refers to
    text = re.sub(r"^(\d+)(?=[.)]\s)|^(?=[-+=](?:\s|[-=]|$))", r"\1\\", text)  # a list, a rule
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fit(parts: Sequence[tuple[str, bool]], limit: int) -> str:
    """Join parts, in order, in at most ``limit`` bytes of UTF-8; say how many had no room.

    Of what is marked, a part is kept if all that is marked before it was; then, of the others,
    what the rest of the room takes.
    """
    room = limit - 200  # for the sentence at the end
    kept: dict[int, str] = {}
    for marked in (True, False):
        for index, (part, of_these) in enumerate(parts):
            if of_these is marked:
                room -= len(part.encode())
                if room < 0:
                    break
                kept[index] = part
    text = "".join(part for _, part in sorted(kept.items()))
    left = len(parts) - len(kept)
    if left:
        text += f"\n{left} more lines have no room here: the page and the records have them.\n"
    return text
