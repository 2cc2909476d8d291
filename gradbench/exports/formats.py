"""The formats that can be exported, by name."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from .. import output_files
from ..errors import Impossible, UnknownName
from ..records.run import Run
from . import annotations, asv, bencher, github_action_benchmark, junit, markdown, otava, pyperf
from .numbers import Exported
from .source_locations import Locate, nowhere
from .verdict_file import Verdicts

OPENINGS: Final[Mapping[str, re.Pattern[bytes]]] = {
    ".json": output_files.JSON,
    ".md": re.compile(rb"(?:run|gate|compare): |## (?:gradbench: |Run )"),
    ".xml": re.compile(rb"<\?xml.*?<testsuites[^>]* name=.gradbench", re.DOTALL),
    ".txt": re.compile(rb"::(?:error|warning|notice) "),
    ".csv": re.compile(rb"time,commit,run,"),
    ".yaml": re.compile(rb"tests:"),
}
"""How a file of ours opens, by the ending of its name in its format."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format: what takes it, and the function that makes it.

    ``folder`` says that it is several files, ``located`` that it points at lines of the user's
    files. ``judged`` makes its one file, of the name ``file``, from verdicts, if it can.
    """

    name: str
    about: str
    make: Callable[..., Exported]
    folder: bool = False
    located: bool = False
    judged: Callable[[Verdicts, Sequence[Run], Locate], str] | None = None
    file: str = ""


def _summary(verdicts: Verdicts, runs: Sequence[Run], _locate: Locate) -> str:
    return markdown.summary(runs, verdicts=verdicts)


def _annotations(verdicts: Verdicts, _runs: Sequence[Run], locate: Locate) -> str:
    return annotations.judged(verdicts.rows, locate=locate)


def _junit(verdicts: Verdicts, _runs: Sequence[Run], locate: Locate) -> str:
    return junit.judged(verdicts.rows, locate=locate)


FORMATS: Final[Mapping[str, Format]] = {
    format_.name: format_
    for format_ in (
        Format(
            "markdown",
            "GitHub's job summary",
            markdown.export,
            judged=_summary,
            file=markdown.FILE,
        ),
        Format(
            "annotations",
            "GitHub's workflow commands, to be printed",
            annotations.export,
            located=True,
            judged=_annotations,
            file=annotations.FILE,
        ),
        Format(
            "junit",
            "JUnit XML, for GitLab, Jenkins and others",
            junit.export,
            located=True,
            judged=_junit,
            file=junit.FILE,
        ),
        Format(
            "github-action-benchmark",
            "its custom tools: a file of what should be small, one of what should be large",
            github_action_benchmark.export,
            folder=True,
        ),
        Format("bencher", "Bencher Metric Format", bencher.export),
        Format("asv", "airspeed velocity's results, for asv publish", asv.export, folder=True),
        Format("pyperf", "pyperf's JSON, for its compare_to", pyperf.export),
        Format("otava", "Apache Otava's CSV and YAML", otava.export, folder=True),
    )
}


def export(
    name: str,
    runs: Sequence[Run],
    *,
    verdicts: Verdicts | None = None,
    locate: Locate = nowhere,
) -> Exported:
    """Return runs, or verdicts on them, in the format of that name.

    Raise `UnknownName` for a format that is not there, `Impossible` for verdicts that it has no
    words for, `StoreError` for runs that it cannot take.
    """
    if name not in FORMATS:
        raise UnknownName("format", name, FORMATS)
    format_ = FORMATS[name]
    if verdicts is None:
        return format_.make(runs, locate=locate) if format_.located else format_.make(runs)
    if format_.judged is None:
        able = ", ".join(other.name for other in FORMATS.values() if other.judged)
        raise Impossible(f"{name} has no word for a verdict; {able} have")
    return Exported({format_.file: format_.judged(verdicts, runs, locate)})


def write(exported: Exported, path: Path, *, folder: bool) -> list[Path]:
    """Write the files, into ``path`` or as ``path``, and return where they are.

    Raise `StoreError` where that cannot be.
    """
    return [
        write_file(text, path / name if folder else path, name=name)
        for name, text in exported.files.items()
    ]


def write_file(text: str, path: Path, *, name: str) -> Path:
    """Write what a format calls by that name; raise `StoreError` where that cannot be."""
    content = text.encode("utf-8", "backslashreplace")
    remedy = "choose another place with -o"
    return output_files.write(path, content, like=_opening(name), what="export", remedy=remedy)


def check_place(path: Path) -> None:
    """Raise `StoreError` where something else is than a file of that name of ours."""
    output_files.check(path, like=_opening(path.name), what="export")


def _opening(name: str) -> re.Pattern[bytes]:
    return OPENINGS.get(PurePath(name).suffix, output_files.JSON)
