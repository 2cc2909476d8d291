"""JUnit XML: a test case a figure, for the CI systems that are not GitHub's."""

from collections.abc import Iterable, Sequence
from typing import Final
from xml.etree import ElementTree as ET

from ..analysis import dataframes, format_units
from ..experiment.matrix import Block
from ..gate.figure_verdicts import FigureVerdict
from ..plurals import counted
from ..printable import printable
from ..records.measurements import Outcome, Skipped
from ..records.run import Run
from ..stats.verdicts import Verdict
from .numbers import BROKEN, Exported, only
from .source_locations import Locate, SourceLocation, nowhere
from .verdict_text import change_in_words

FILE: Final = "junit.xml"


def export(runs: Sequence[Run], *, locate: Locate = nowhere) -> Exported:
    """Return one run's outcomes: passed with a number, skipped with a reason, or in error.

    What nobody expects is an error (`BROKEN`); that a mode cannot train is a skipped case.
    """
    run = only(runs, "JUnit")
    root = ET.Element("testsuites", name="gradbench")
    suites: dict[Block, ET.Element] = {}
    for outcome in run.outcomes:
        suite = suites.get(outcome.cell.block)
        if suite is None:
            suite = suites[outcome.cell.block] = _suite(root, outcome.cell.block)
            suite.set("timestamp", printable(run.header.started_at))
        case = _case(suite, f"{outcome.cell.grad_mode} {outcome.meter}", outcome.cell.block)
        _place(case, locate(outcome.cell))
        _add_outcome(case, outcome)
    return Exported({FILE: _text(root)})


def judged(rows: Iterable[FigureVerdict], *, locate: Locate = nowhere) -> str:
    """Return a verdict table as JUnit XML: worse is a failure, inconclusive is skipped."""
    root = ET.Element("testsuites", name="gradbench")
    suites: dict[Block, ET.Element] = {}
    for row in rows:
        suite = suites.get(row.cell.block)
        if suite is None:
            suite = suites[row.cell.block] = _suite(root, row.cell.block)
        case = _case(suite, f"{row.cell.grad_mode} {row.meter}", row.cell.block)
        _place(case, locate(row.cell))
        words = printable(f"{change_in_words(row)}: {row.reason}")
        if row.verdict is Verdict.WORSE:
            ET.SubElement(case, "failure", type=row.verdict.value, message=words)
        elif row.verdict is Verdict.INCONCLUSIVE:
            ET.SubElement(case, "skipped", type=row.verdict.value, message=words)
        ET.SubElement(case, "system-out").text = words
    return _text(root)


def _suite(root: ET.Element, block: Block) -> ET.Element:
    return ET.SubElement(root, "testsuite", name=printable(str(block)))


def _case(suite: ET.Element, name: str, block: Block) -> ET.Element:
    return ET.SubElement(suite, "testcase", name=printable(name), classname=printable(str(block)))


def _place(case: ET.Element, place: SourceLocation | None) -> None:
    if place is not None:
        case.set("file", printable(place.file))
        case.set("line", str(place.line))


def _add_outcome(case: ET.Element, outcome: Outcome) -> None:
    if isinstance(outcome, Skipped):
        kind = "error" if outcome.cause in BROKEN else "skipped"
        reason = printable(outcome.reason)
        ET.SubElement(case, kind, type=outcome.cause, message=reason)
        return
    lines = []
    for name, figure in dataframes.figures(outcome).items():
        text = f"{name} {format_units.quantity(figure.point, outcome.unit)}"
        if figure.exact:
            text += f", exactly {figure.point:,.0f} {outcome.unit}"
        elif figure.rounds > 1:
            low, high = (
                format_units.quantity(end, outcome.unit) for end in (figure.low, figure.high)
            )
            text += f" [{low}, {high}] in {counted(figure.rounds, 'round')}"
        lines.append(text)
    ET.SubElement(case, "system-out").text = "\n".join(map(printable, lines))


def _text(root: ET.Element) -> str:
    for suite in root:
        cases = suite.findall("testcase")
        suite.set("tests", str(len(cases)))
        for attribute, tag in (
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
