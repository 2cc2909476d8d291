"""GitHub's annotations: workflow commands that put a message at a line of a file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ..analysis import diagnosis
from ..experiment.matrix import Cell
from ..gate.figure_verdicts import FigureVerdict
from ..printable import printable
from ..records.measurements import Skipped
from ..records.run import Run
from ..stats.verdicts import Verdict
from .numbers import BROKEN, Exported, only
from .source_locations import Locate, SourceLocation, nowhere
from .verdict_text import values_in_words

FILE: Final = "annotations.txt"
LIMIT: Final = 10
"""Annotations of one kind that GitHub shows a step; the rest it drops without a word."""
KINDS: Final = ("error", "warning", "notice")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One message; ``kind`` is error, warning or notice."""

    kind: str
    title: str
    message: str
    place: SourceLocation | None = None

    def __str__(self) -> str:
        properties = {"title": self.title}
        if self.place is not None:
            properties = {"file": self.place.file, "line": str(self.place.line), **properties}
        pairs = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        return f"::{self.kind} {pairs}::{_data(self.message)}"


def export(runs: Sequence[Run], *, locate: Locate = nowhere) -> Exported:
    """Return what in one run needs a look, as text (`of_run`)."""
    return Exported({FILE: text(of_run(only(runs, "an annotation"), locate=locate))})


def judged(rows: Iterable[FigureVerdict], *, locate: Locate = nowhere) -> str:
    """Return a verdict table's annotations as text (`of_verdicts`)."""
    return text(of_verdicts(rows, locate=locate))


def of_run(run: Run, *, locate: Locate = nowhere) -> list[Annotation]:
    """Return an error a cell whose step broke, and a warning for possible interference."""
    broken: dict[tuple[Cell, str, str], list[str]] = {}
    for outcome in run.outcomes:
        if isinstance(outcome, Skipped) and outcome.cause in BROKEN:
            key = (outcome.cell, outcome.cause, outcome.reason)
            broken.setdefault(key, []).append(outcome.meter)
    annotations = [
        Annotation(
            "error",
            f"{cell} {cause.replace('_', ' ')}",
            f"{reason} ({', '.join(meters)})",
            locate(cell),
        )
        for (cell, cause, reason), meters in broken.items()
    ]
    return annotations + [
        Annotation("warning", "possible interference", line)
        for line in diagnosis.possible_interference(run)
    ]


def of_verdicts(rows: Iterable[FigureVerdict], *, locate: Locate = nowhere) -> list[Annotation]:
    """Return an error for what is worse, a warning for what is inconclusive."""
    kinds = {Verdict.WORSE: "error", Verdict.INCONCLUSIVE: "warning"}
    return [
        Annotation(
            kinds[row.verdict],
            f"{row.cell} {row.meter} {row.verdict.value}",
            ": ".join(filter(None, (values_in_words(row), row.reason))),
            locate(row.cell),
        )
        for row in rows
        if row.verdict in kinds
    ]


def text(annotations: Iterable[Annotation]) -> str:
    """Return the commands, a line each; beyond `LIMIT` of a kind the last one counts the rest."""
    every = list(annotations)
    lines = []
    for kind in KINDS:
        chosen = [annotation for annotation in every if annotation.kind == kind]
        if len(chosen) > LIMIT:
            rest = len(chosen) - LIMIT + 1
            more = Annotation(kind, f"{rest} more", "the job summary has them all")
            chosen = [*chosen[: LIMIT - 1], more]
        lines += [f"{annotation}\n" for annotation in chosen]
    return "".join(lines)


def _data(value: str) -> str:
    return printable(value).replace("%", "%25")  # then there is no line end to be escaped


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")
