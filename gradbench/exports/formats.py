"""The formats that can be exported, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import StoreError, UnknownName
from ..places import Locate, nowhere
from ..store import Run
from . import annotations, asv, bencher, github_action_benchmark, junit, markdown, otava, pyperf
from .figures import Exported


@dataclass(frozen=True, slots=True)
class Format:
    """A format: what takes it, and the function that makes it.

    ``folder`` says that it is several files, ``located`` that it points at lines of the user's
    files, ``reasons`` that it can say why a number is missing.
    """

    name: str
    about: str
    make: Callable[..., Exported]
    folder: bool = False
    located: bool = False
    reasons: bool = False


FORMATS: Final[Mapping[str, Format]] = {
    format_.name: format_
    for format_ in (
        Format("markdown", "GitHub's job summary", markdown.export, reasons=True),
        Format(
            "annotations",
            "GitHub's workflow commands, to be printed",
            annotations.export,
            located=True,
            reasons=True,
        ),
        Format(
            "junit",
            "JUnit XML, for GitLab, Jenkins and others",
            junit.export,
            located=True,
            reasons=True,
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


def export(name: str, runs: Sequence[Run], *, locate: Locate = nowhere) -> Exported:
    """Return runs in the format of that name.

    Raise `UnknownName` for a format that is not there, `StoreError` for runs it cannot take.
    """
    if name not in FORMATS:
        raise UnknownName("format", name, FORMATS)
    format_ = FORMATS[name]
    return format_.make(runs, locate=locate) if format_.located else format_.make(runs)


def write(exported: Exported, path: Path, *, folder: bool) -> list[Path]:
    """Write the files, into ``path`` or as ``path``, and return where they are.

    Raise `StoreError` where that cannot be.
    """
    written = []
    for name, text in exported.files.items():
        target = path / name if folder else path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, "utf-8")
        except OSError as error:
            raise StoreError(
                f"cannot write {str(target)!r}: {error.strerror}; choose another place with -o"
            ) from error
        written.append(target)
    return written
