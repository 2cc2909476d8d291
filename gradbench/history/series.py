"""Many runs as series keyed by commit, and where each changed its level."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from ..errors import StoreError
from ..experiment.matrix import Cell
from ..experiment.plan import PROTOCOL
from ..records.measurements import Fact
from ..records.run import Run
from ..stats.changepoints import RULE, Rule, Shift, shifts
from ..stats.estimates import Floats
from ..stats.verdicts import Verdict
from ..store.comparability import agreeing, processor
from ..store.jsonl import load
from . import figures as run_figures, parquet_read
from .chosen import Chosen
from .points import Line, Points, label
from .sqlite_index import COLUMNS, Figures, Index, run_files


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of level in a series.

    ``commit`` is the first after it, ``since`` the last before it: what made the change lies
    between them. ``started`` is when that commit was first measured, ``also`` what changed in the
    environment at the same place, in words.
    """

    at: int
    commit: str
    since: str
    started: str
    before: float
    after: float
    before_points: int
    after_points: int
    p: float
    verdict: Verdict
    also: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """After over before; None where there was nothing before."""
        return self.after / self.before if self.before else None


@dataclass(frozen=True)
class Series:
    """One figure of one cell over commits, oldest first.

    ``values`` (points,) are in ``unit`` where ``reference`` is empty; else each is the ratio to
    that grad mode, measured in the same rounds. ``machine`` says which, of a figure tied to one;
    protocols never mix. ``labels`` are the points' commits, with a ``+`` where the working tree
    had other changes, or the run's name where no commit is known.
    """

    cell: Cell
    meter: str
    unit: str
    reference: str
    machine: str
    protocol: str
    exact: bool
    values: Floats
    labels: tuple[str, ...]
    started: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def figure(self) -> str:
        """The figure in words: ``step_time`` or ``step_time / global_on``."""
        return f"{self.meter} / {self.reference}" if self.reference else self.meter

    @property
    def where(self) -> str:
        """The machine in words, and the protocol where it is not the one in use."""
        old = f"protocol {self.protocol or 'unknown'}" if self.protocol != str(PROTOCOL) else ""
        return ", ".join(filter(None, (self.machine, old)))

    @cached_property
    def latest(self) -> Change | None:
        """The last change."""
        return self.changes[-1] if self.changes else None


def read(sources: Sequence[str | Path], chosen: Chosen | None = None) -> Figures:
    """Return the figures of folders of runs, of run files and of packs, together.

    Of a pack only what may be chosen is read. A run that several have counts once. Raise
    `StoreError` where there is no such thing.
    """
    parts = [part for one in sources for part in _source(str(one), chosen or Chosen())]
    frames: list[pd.DataFrame] = []
    origins: dict[str, run_figures.Origin] = {}
    for one in parts:
        frames.append(one.frame[~one.frame["run"].isin(origins.keys())] if origins else one.frame)
        origins = one.origins | origins
    frame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    return Figures(frame, origins, [words for one in parts for words in one.warnings])


def of(runs: Iterable[Run]) -> Figures:
    """Return the figures of runs at hand."""
    origins, rows = {}, []
    for run in runs:
        origins[run.name] = run_figures.origin(run)
        rows += [
            (
                run.name,
                run_figures.key(f.cell),
                f.meter,
                f.unit,
                f.exact,
                f.value,
                f.ratio,
                f.reference,
            )
            for f in run_figures.figures(run)
            if f.value is not None
        ]
    return Figures(pd.DataFrame(rows, columns=[*COLUMNS]), origins, [])


def history(
    figures: Figures, *, chosen: Chosen | None = None, rule: Rule = RULE
) -> tuple[list[Series], list[str]]:
    """Return the series of figures, by cell, and in words what had to be left out.

    A point is a commit: the median over its runs, at the time of the first; where that differs
    between runs, a commit under each version of torch. A run with uncommitted changes, or without
    a commit, is a point of its own. Protocols never mix. Ratios to the reference mode span
    machines. Deterministic metrics do as well: each value is held against the last one
    of the same build (torch, vector instructions, GPU), so that machines which take turns are no
    change, and of a build that is new against the last one there is. Everything else is a series
    a machine.
    """
    points = Points(figures, chosen or Chosen())
    series = [
        *(_series(line, _by_level(line, rule), exact=False) for line in points.noisy()),
        *(_series(line, _by_build(line), exact=True) for line in points.exact()),
    ]
    rank = points.ranks()
    series.sort(key=lambda one: (rank[one.cell], one.figure, one.where))
    return series, points.warnings


def _source(source: str, chosen: Chosen) -> Iterator[Figures]:
    """Yield the figures of a source: a folder may have both a dataset and runs."""
    if not source.strip():  # as a path it would be the current folder
        raise StoreError(f"{source!r} names no runs: give a folder, a file or a pack")
    is_pack = parquet_read.is_pack(source)
    if is_pack:
        yield parquet_read.read(source, chosen)
    if "://" in source:
        return
    path = Path(source)
    if path.is_file():
        yield of([load(path)])
    elif not is_pack or next(run_files(path), None) is not None:
        yield Index(path).read()


def _by_level(line: Line, rule: Rule) -> list[tuple[Shift, int]]:
    """Return where a noisy figure changed its level; beside each the point before it."""
    return [(shift, shift.index - 1) for shift in shifts(line.values, rule=rule)]


def _by_build(line: Line) -> list[tuple[Shift, int]]:
    """Return where a figure differs from the last of its build, or of a new build from the last.

    Beside each, the index of the point that it is held against.
    """
    values = line.values
    last: dict[int, int] = {}
    cuts: list[tuple[int, int]] = []
    for at, (value, build) in enumerate(zip(values.tolist(), line.builds, strict=True)):
        against = last.get(build, max(at - 1, 0))
        if value != values[against]:
            cuts.append((at, against))
        last[build] = at
    edges = [0, *(at for at, _ in cuts), len(values)]
    return [
        (
            Shift(
                index=at,
                before=float(values[against]),
                after=float(values[at]),
                before_points=at - edges[number],
                after_points=edges[number + 2] - at,
                p=0.0,
            ),
            against,
        )
        for number, (at, against) in enumerate(cuts)
    ]


def _series(line: Line, located_shifts: Sequence[tuple[Shift, int]], *, exact: bool) -> Series:
    """Return a series, given its shifts and the index of the point that each is held against."""
    runs, device = line.runs, line.cell.device
    labels = tuple(label(run).partition(" ")[0] for run in runs)
    started = tuple(run.started for run in runs)
    return Series(
        cell=line.cell,
        meter=line.meter,
        unit=line.unit,
        reference=line.reference,
        machine=_machine(runs[0], device) if line.of_machine else "",
        protocol=line.protocol,
        exact=exact,
        values=line.values,
        labels=labels,
        started=started,
        changes=tuple(
            Change(
                at=shift.index,
                commit=labels[shift.index],
                since=labels[against],
                started=started[shift.index],
                before=shift.before,
                after=shift.after,
                before_points=shift.before_points,
                after_points=shift.after_points,
                p=shift.p,
                verdict=Verdict.WORSE if shift.after > shift.before else Verdict.BETTER,
                also=_also(runs[against].facts, runs[shift.index].facts, device),
            )
            for shift, against in located_shifts
        ),
    )


def _machine(origin: run_figures.Origin, device: str) -> str:
    """Return what the facts of a machine say of it, and what stands for all of them."""
    facts = origin.facts
    named = (facts.get("host"), processor(facts, device), facts.get("cpu"))
    words = dict.fromkeys(str(fact) for fact in named if fact is not None)
    return ", ".join([*words, f"torch {facts.get('torch', 'unknown')}", origin.machine(device)[:6]])


def _also(before: Mapping[str, Fact], after: Mapping[str, Fact], device: str) -> tuple[str, ...]:
    """Return in words which facts changed on the way that a figure's time may depend on."""
    return tuple(
        f"{name} {before.get(name, 'not recorded')} → {after.get(name, 'not recorded')}"
        for name in (*agreeing("timed", [device]), "os")
        if before.get(name) != after.get(name)
    )
