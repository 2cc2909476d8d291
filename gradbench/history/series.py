"""Many runs as series keyed by commit, and where each changed its level."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import GradbenchError, StoreError
from ..experiment.matrix import Cell
from ..experiment.plan import PROTOCOL
from ..records.measurements import Fact
from ..records.run import Run
from ..stats.changepoints import RULE, Rule, Shift, shifts
from ..stats.estimates import Floats
from ..stats.verdicts import Verdict
from ..store.comparability import agreeing, processor
from ..store.jsonl import load
from . import figures as run_figures, parquet
from .sqlite_index import COLUMNS, Figures, Index


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which series are wanted; an empty tuple wants all."""

    models: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    grad_modes: tuple[str, ...] = ()
    meters: tuple[str, ...] = ()
    renamed: Mapping[str, str] | None = None  # a model's old name -> its new one


def read(sources: Sequence[str | Path]) -> Figures:
    """Return the figures of folders of runs, of run files and of packs, together.

    A run that several have counts once. Raise `StoreError` where there is no such thing.
    """
    parts = [_source(str(source)) for source in sources]
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
    chosen = chosen or Chosen()
    frame, warnings = _narrowed(figures, chosen)
    if frame.empty:
        return [], warnings
    frame = _placed(frame, figures.origins)
    series = [
        *_noisy(frame[~frame["exact"]], figures.origins, rule),
        *_exact(frame[frame["exact"]], figures.origins),
    ]
    order = {key: number for number, key in enumerate(frame["cell"].unique())}
    series.sort(key=lambda one: (order[run_figures.key(one.cell)], one.figure, one.where))
    return series, warnings


def _source(source: str) -> Figures:
    if not source.strip():  # as a path it would be the current folder
        raise StoreError(f"{source!r} names no runs: give a folder, a file or a pack")
    if parquet.is_pack(source):
        return parquet.read(source)
    path = Path(source)
    if path.is_file():
        return of([load(path)])
    return Index(path).read()


def _narrowed(figures: Figures, chosen: Chosen) -> tuple[pd.DataFrame, list[str]]:
    """Return the chosen figures, their cells' keys as this gradbench writes them."""
    frame = figures.frame
    renamed, warnings = {}, []
    for key in frame["cell"].unique():
        try:
            cell = run_figures.cell_of(key)
        except StoreError as error:
            warnings.append(str(error))
            continue
        model = (chosen.renamed or {}).get(cell.model, cell.model)
        if all(
            not wanted or value in wanted
            for value, wanted in (
                (model, chosen.models),
                (cell.workload, chosen.workloads),
                (cell.grad_mode, chosen.grad_modes),
            )
        ):
            renamed[key] = run_figures.key(replace(cell, model=model))
    wanted = frame["cell"].isin(renamed.keys())
    if chosen.meters:
        wanted &= frame["meter"].isin(chosen.meters)
    frame = frame[wanted].copy()
    frame["cell"] = frame["cell"].astype(object).map(renamed)
    frame["exact"] = frame["exact"].astype(bool)
    frame["ratio"] = frame["ratio"].astype(np.float64)  # None where there is none
    return frame, warnings


def _placed(frame: pd.DataFrame, origins: Mapping[str, run_figures.Origin]) -> pd.DataFrame:
    """Return figures with their run's place in time, commit, machine and build, in that order."""
    ordered = sorted(origins.values(), key=lambda origin: (origin.started, origin.run))
    runs = pd.DataFrame(
        {
            "run": [origin.run for origin in ordered],
            "started": [origin.started for origin in ordered],
            "label": [_label(origin) for origin in ordered],
            "torch": [str(origin.facts.get("torch", "")) for origin in ordered],
            "protocol": [str(origin.facts.get("protocol", "")) for origin in ordered],
            "place": np.arange(len(ordered)),
        }
    )
    runs["point"] = runs.groupby(["label", "torch"], sort=False).ngroup()
    devices = {key: run_figures.cell_of(key).device for key in frame["cell"].unique()}
    frame = frame.assign(run=frame["run"].astype(object), device=frame["cell"].map(devices))
    frame["unit"] = frame["unit"].astype(object)
    wheres = frame[["device", "unit"]].drop_duplicates().itertuples(index=False)
    where = pd.DataFrame(
        [
            (origin.run, device, unit, origin.machine(device), origin.build(device, unit))
            for device, unit in wheres
            for origin in ordered
        ],
        columns=["run", "device", "unit", "machine", "build"],
    )
    placed = frame.merge(runs, on="run").merge(where, on=["run", "device", "unit"])
    for column in ("cell", "meter", "unit", "reference"):
        placed[column] = placed[column].astype("category")
    return placed.sort_values("place", kind="stable")


def _label(origin: run_figures.Origin) -> str:
    """Return what a point of this origin stands for: a commit, or one run alone."""
    if not origin.commit:
        return origin.run
    return f"{origin.commit[:12]}+ {origin.run}" if origin.dirty else origin.commit


def _noisy(
    frame: pd.DataFrame, origins: Mapping[str, run_figures.Origin], rule: Rule
) -> Iterator[Series]:
    names = dict(zip(frame["place"], frame["run"], strict=True))
    values = frame.assign(reference="", figure=frame["value"])
    ratios = frame[frame["ratio"] > 0].assign(machine="")
    ratios["figure"] = ratios["ratio"]
    for part in (values[values["figure"] > 0], ratios):
        if part.empty:
            continue
        keys = ["cell", "meter", "unit", "reference", "machine", "protocol"]
        by_point = (
            part.groupby([*keys, "point"], sort=False, observed=True)
            .agg(figure=("figure", "median"), place=("place", "first"))
            .reset_index()
        )
        for key, group in by_point.sort_values("place").groupby(keys, sort=False, observed=True):
            figures = group["figure"].to_numpy(dtype=np.float64)
            yield _series(
                dict(zip(keys, map(str, key), strict=True)),
                exact=False,
                values=figures,
                runs=[names[place] for place in group["place"]],
                located_shifts=[(shift, shift.index - 1) for shift in shifts(figures, rule=rule)],
                origins=origins,
            )


def _exact(frame: pd.DataFrame, origins: Mapping[str, run_figures.Origin]) -> Iterator[Series]:
    distinct = frame.drop_duplicates(
        ["cell", "meter", "unit", "protocol", "point", "build", "value"]
    )
    keys = ["cell", "meter", "unit", "protocol"]
    for key, group in distinct.groupby(keys, sort=False, observed=True):
        figures = group["value"].to_numpy(dtype=np.float64)
        yield _series(
            dict(zip(keys, map(str, key), strict=True)),
            exact=True,
            values=figures,
            runs=list(group["run"]),
            located_shifts=_by_build(figures, list(group["build"])),
            origins=origins,
        )


def _by_build(values: Floats, builds: Sequence[str]) -> list[tuple[Shift, int]]:
    """Return where a figure differs from the last of its build, or of a new build from the last.

    Beside each, the index of the point that it is held against.
    """
    last: dict[str, int] = {}
    cuts: list[tuple[int, int]] = []
    for at, (value, build) in enumerate(zip(values.tolist(), builds, strict=True)):
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


def _series(
    key: Mapping[str, str],
    *,
    exact: bool,
    values: Floats,
    runs: Sequence[str],
    located_shifts: Sequence[tuple[Shift, int]],  # and the point that each is held against
    origins: Mapping[str, run_figures.Origin],
) -> Series:
    labels = tuple(_label(origins[run]).partition(" ")[0] for run in runs)
    started = tuple(origins[run].started for run in runs)
    cell = run_figures.cell_of(key["cell"])
    return Series(
        cell=cell,
        meter=key["meter"],
        unit=key["unit"],
        reference=key.get("reference", ""),
        machine=_machine(origins[runs[0]], cell.device) if key.get("machine") else "",
        protocol=key["protocol"],
        exact=exact,
        values=values,
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
                also=_also(
                    origins[runs[against]].facts, origins[runs[shift.index]].facts, cell.device
                ),
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


def parse_renamed(pairs: Sequence[str]) -> dict[str, str]:
    """Return old name -> new name of ``OLD=NEW`` each; raise `GradbenchError` for anything else."""
    renamed: dict[str, str] = {}
    for pair in pairs:
        old, sign, new = pair.partition("=")
        if not (sign and old and new):
            raise GradbenchError(f"{pair!r} is no renaming: write OLD=NEW")
        if renamed.get(old, new) != new:
            raise GradbenchError(f"{old!r} is renamed twice, to {renamed[old]!r} and {new!r}")
        renamed[old] = new
    return renamed


"""A point's label in, the address of its commit's page out, or an empty string."""
