"""A CI job: which commands it runs, what it makes of their statuses, what it leaves behind.

Each part is a process of its own, so that what judges never holds what measured, and a part that
dies takes nothing with it.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import StoreError, UnknownName
from .exit_status import ExitStatus
from .exports import annotations, formats, junit, markdown
from .exports.annotations import Annotation
from .exports.source_locations import Locate
from .exports.verdict_file import Verdicts, read_verdicts
from .process_end import how_it_ended
from .records.run import Run
from .store.jsonl import Store

FAIL_ON: Final = ("regression", "inconclusive", "never")
GRAVITY: Final = (
    ExitStatus.OK,
    ExitStatus.INCONCLUSIVE,
    ExitStatus.NO_BASELINE,
    ExitStatus.NOTHING_MEASURED,
    ExitStatus.REGRESSION,
    ExitStatus.USAGE,
)
"""Statuses of ``gate`` and ``compare``, lightest first; any other is graver than all."""
RESULTS: Final = "results"
"""Where, in a job's folder, its run is: away from runs of other jobs."""
VERDICTS: Final[Mapping[str, str]] = {"gate": "gate.json", "compare": "compare.json"}
"""The file that keeps what a part prints."""


@dataclass(frozen=True, slots=True)
class Part:
    """One command of a job; ``verdicts`` names the file that keeps what it prints."""

    name: str
    arguments: tuple[str, ...]
    verdicts: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a part came to its end: its exit status, and what it printed to stdout."""

    status: int
    output: str


Call = Callable[[Part], Ended]


@dataclass(frozen=True, slots=True)
class Job:
    """What a job came to: a status by part, and the files it left."""

    statuses: Mapping[str, int]
    summary: Path
    annotations: Path
    junit: Path

    @property
    def status(self) -> int:
        """The gravest of the parts' statuses."""
        return gravest(self.statuses.values())

    def exit_status(self, fail_on: str) -> int:
        """Return what the job exits with: ``never`` forgives verdicts, and what has none."""
        forgiven = {
            "never": (
                ExitStatus.INCONCLUSIVE,
                ExitStatus.NO_BASELINE,
                ExitStatus.NOTHING_MEASURED,
                ExitStatus.REGRESSION,
            ),
            "regression": (ExitStatus.INCONCLUSIVE,),
        }
        return ExitStatus.OK if self.status in forgiven.get(fail_on, ()) else self.status

    @property
    def words(self) -> str:
        """Each part's status in words."""
        return "; ".join(f"{name}: {in_words(name, s)}" for name, s in self.statuses.items())


def in_words(name: str, status: int) -> str:
    """Return what the status of a part of that name means."""
    if status == ExitStatus.OK and name == "run":
        return "done"
    if status in {*ExitStatus}:
        return ExitStatus(status).words
    return how_it_ended(status)


def gravest(statuses: Iterable[int]) -> int:
    """Return the gravest status; 0 of none."""
    return max(
        statuses,
        key=lambda status: GRAVITY.index(status) if status in GRAVITY else len(GRAVITY),
        default=ExitStatus.OK,
    )


def parts(
    what: Sequence[str],
    *,
    folder: Path,
    base: str | None = None,
    baselines: Sequence[str] = (),
    fail_on: str = FAIL_ON[0],
    semantics: bool = True,
) -> list[Part]:
    """Return the commands of a job; ``what`` are the options that choose cells.

    ``base`` is a revision to compare with side by side, ``baselines`` are runs to gate against;
    without ``semantics`` the run does not examine what the modes do.
    Raise `UnknownName` for a ``fail_on`` that is none.
    """
    if fail_on not in FAIL_ON:
        raise UnknownName("fail-on", fail_on, FAIL_ON)
    results = ("--results", str(folder / RESULTS))
    strict = ("--strict",) if fail_on == "inconclusive" else ()
    unexamined = () if semantics else ("--no-semantics",)
    run = ("run", *what, *results, "--reports", str(folder), *unexamined)
    wanted = [Part("run", run)]
    if baselines:
        against = [argument for baseline in baselines for argument in ("--baseline", baseline)]
        arguments = ("gate", *against, "latest", *results, "--json", *strict)
        wanted.append(Part("gate", arguments, VERDICTS["gate"]))
    if base is not None:
        arguments = ("compare", "--base", base, *what, "--json", *strict)
        wanted.append(Part("compare", arguments, VERDICTS["compare"]))
    return wanted


def perform(
    wanted: Sequence[Part],
    *,
    folder: Path,
    call: Call,
    locator: Callable[[Sequence[Run]], Locate],
) -> Job:
    """Run the parts, keep their verdicts, and write summary, annotations and JUnit XML.

    The gate has nothing to judge where the run before it failed: then it is left out.
    """
    _fresh(folder)
    statuses: dict[str, int] = {}
    verdicts = []
    for part in wanted:
        if part.name == "gate" and statuses.get("run", ExitStatus.OK) != ExitStatus.OK:
            continue
        ended = call(part)
        has_verdicts = bool(part.verdicts) and _is_json(ended.output)
        statuses[part.name] = _status(part, ended, has_verdicts=has_verdicts)
        if has_verdicts:
            verdicts.append(folder / part.verdicts)
            _write(verdicts[-1], ended.output)
    runs, _ = Store(folder / RESULTS).load_all()  # of a run that was cut short, what there is
    table = read_verdicts(verdicts) if verdicts else None
    return _tell(statuses, table, runs, folder=folder, locate=locator(runs))


def _tell(
    statuses: Mapping[str, int],
    verdicts: Verdicts | None,
    runs: Sequence[Run],
    *,
    folder: Path,
    locate: Locate,
) -> Job:
    job = Job(statuses, *(folder / file for file in (markdown.FILE, annotations.FILE, junit.FILE)))
    heading = f"{markdown.escaped(job.words)}\n\n"
    room = markdown.LIMIT - len(heading.encode())
    _write(job.summary, heading + markdown.summary(runs, verdicts=verdicts, limit=room))
    notices = [
        Annotation("error", f"gradbench {name}", in_words(name, status))
        for name, status in statuses.items()
        if status not in (ExitStatus.OK, ExitStatus.REGRESSION, ExitStatus.INCONCLUSIVE)
    ]
    notices += annotations.of_verdicts(verdicts.rows, locate=locate) if verdicts else []
    notices += [each for run in runs for each in annotations.of_run(run, locate=locate)]
    _write(job.annotations, annotations.text(notices))
    if verdicts is not None:
        _write(job.junit, junit.judged(verdicts.rows, locate=locate))
    elif any(run.outcomes for run in runs):
        _write(job.junit, junit.export(runs, locate=locate).files[junit.FILE])
    return job


def _status(part: Part, ended: Ended, *, has_verdicts: bool) -> int:
    """Return what a part's exit status means, given whether it has verdicts.

    Without verdicts there is none that could be good or bad: Python itself ends with 1 where a
    program cannot so much as start.
    """
    needs_verdicts = {ExitStatus.REGRESSION, ExitStatus.INCONCLUSIVE}
    if part.verdicts:
        needs_verdicts.add(ExitStatus.OK)
    return (
        ExitStatus.BROKEN if ended.status in needs_verdicts and not has_verdicts else ended.status
    )


def _fresh(folder: Path) -> None:
    """Refuse a folder that holds a run, or files of others where a job's are to be."""
    if any((folder / RESULTS).glob("*")):
        raise StoreError(
            f"{str(folder)!r} holds the run of another job: choose another with -o, or remove it"
        )
    for name in (markdown.FILE, annotations.FILE, junit.FILE, *VERDICTS.values()):
        formats.check_place(folder / name)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _write(path: Path, text: str) -> None:
    formats.write_file(text, path, name=path.name)
