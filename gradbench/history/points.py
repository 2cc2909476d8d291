"""Figures of many runs as points of series: a whole number for each name, so that a million fit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import StoreError
from ..experiment.axis import Value
from ..experiment.matrix import AXES, Cell
from ..stats.estimates import Floats
from .chosen import Chosen
from .figures import Origin, cell_of
from .sqlite_index import Figures

Codes = NDArray[np.int32]
NONE: Final = -1
"""Stands for no name: a time has no reference, a ratio no machine."""

_KEYS: Final = ("cell", "meter", "unit", "reference", "machine", "protocol")
_NAMES: Final = ("run", "cell", "meter", "unit", "reference")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The points of one series, oldest first: their values, their runs, and of builds which."""

    cell: Cell
    meter: str
    unit: str
    reference: str
    of_machine: bool
    protocol: str
    values: Floats
    runs: tuple[Origin, ...]
    builds: tuple[int, ...]


class Points:
    """The figures that are chosen, each with its place in time, its commit, machine and build.

    ``warnings`` says in words what had to be left out.
    """

    def __init__(self, figures: Figures, chosen: Chosen) -> None:
        coded = _Coded(figures.frame)
        self.warnings: list[str] = []
        self.runs = sorted(
            (origin for origin in figures.origins.values() if chosen.takes_run(origin)),
            key=lambda origin: (origin.started, origin.run),
        )
        cells = _cells(coded, chosen, self.warnings)
        self.cells = list(dict.fromkeys(cells.values()))
        self._names = {**coded.names, "protocol": _texts(self.runs, "protocol")}
        places = {origin.run: place for place, origin in enumerate(self.runs)}
        numbers = {cell: number for number, cell in enumerate(self.cells)}
        cell = coded.map("cell", {key: numbers[one] for key, one in cells.items()})
        place = coded.map("run", places)
        wanted = (cell != NONE) & (place != NONE)
        if chosen.meters:
            wanted &= coded.map("meter", dict.fromkeys(chosen.meters, 0)) != NONE
        self._frame = pd.DataFrame(
            {
                "cell": cell[wanted],
                **{name: coded.codes[name][wanted] for name in ("meter", "unit", "reference")},
                "exact": figures.frame["exact"].to_numpy(dtype=bool)[wanted],
                "value": figures.frame["value"].to_numpy(dtype=np.float64)[wanted],
                "ratio": figures.frame["ratio"].to_numpy(dtype=np.float64)[wanted],
                "place": place[wanted],
            }
        ).sort_values("place", kind="stable", ignore_index=True)
        if self._frame.empty:
            return
        at = self._frame["place"].to_numpy()
        self._frame["point"] = _points(self.runs)[at]
        protocols = {text: code for code, text in enumerate(self._names["protocol"])}
        self._frame["protocol"] = _numbers(_facts(self.runs, "protocol"), protocols)[at]
        self._frame["machine"], self._frame["build"] = self._wheres()

    def ranks(self) -> dict[Cell, int]:
        """Return the cells' order: by their axes, the grad modes of a block together."""
        return {cell: rank for rank, cell in enumerate(sorted(self.cells, key=_place))}

    def noisy(self) -> Iterator[Line]:
        """Yield series of what does not repeat: values a machine, and ratios over all machines.

        A point's figure is the median over its runs, at the first of them.
        """
        frame = self._frame[~self._frame["exact"]] if len(self._frame) else self._frame
        if frame.empty:
            return
        values = frame[frame["value"] > 0].assign(reference=NONE)
        ratios = frame[frame["ratio"] > 0].assign(machine=NONE)
        for part, figure in ((values, "value"), (ratios, "ratio")):
            points = (
                part.groupby([*_KEYS, "point"], sort=False)
                .agg(figure=(figure, "median"), place=("place", "min"), build=("build", "first"))
                .reset_index()
            )
            yield from self._lines(points)

    def exact(self) -> Iterator[Line]:
        """Yield series of what repeats: each value of a commit and a build once."""
        frame = self._frame[self._frame["exact"]] if len(self._frame) else self._frame
        if frame.empty:
            return
        distinct = frame.drop_duplicates(
            ["cell", "meter", "unit", "protocol", "point", "build", "value"]
        )
        values = distinct.assign(reference=NONE, machine=NONE, figure=distinct["value"])
        yield from self._lines(values)

    def _lines(self, points: pd.DataFrame) -> Iterator[Line]:
        """Yield rows that have the same key as a line each, ordered by their place."""
        if points.empty:
            return
        points = points.sort_values([*_KEYS, "place"], kind="stable")
        keys = points[[*_KEYS]].to_numpy()
        edges = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
        figures = points["figure"].to_numpy(dtype=np.float64)
        places, builds = points["place"].to_numpy(), points["build"].to_numpy()
        for start, end in pairwise([0, *edges.tolist(), len(points)]):
            key = dict(zip(_KEYS, keys[start].tolist(), strict=True))
            yield Line(
                cell=self.cells[key["cell"]],
                meter=self._name("meter", key),
                unit=self._name("unit", key),
                reference=self._name("reference", key),
                of_machine=key["machine"] != NONE,
                protocol=self._name("protocol", key),
                values=figures[start:end],
                runs=tuple(self.runs[place] for place in places[start:end].tolist()),
                builds=tuple(builds[start:end].tolist()),
            )

    def _name(self, column: str, key: Mapping[str, int]) -> str:
        return self._names[column][key[column]] if key[column] != NONE else ""

    def _wheres(self) -> tuple[Codes, Codes]:
        """Return the machine and the build of each figure, equal numbers for equal ones."""
        devices = list(dict.fromkeys(cell.device for cell in self.cells))
        device = np.array([devices.index(cell.device) for cell in self.cells])
        units = self._names["unit"]
        kinds = device[self._frame["cell"].to_numpy()] * len(units) + self._frame["unit"].to_numpy()
        place = self._frame["place"].to_numpy()
        machine, build = np.empty(len(place), np.int32), np.empty(len(place), np.int32)
        machines: dict[str, int] = {}
        builds: dict[str, int] = {}
        for kind in np.unique(kinds).tolist():
            on, unit = devices[kind // len(units)], units[kind % len(units)]
            rows = kinds == kind
            machine[rows] = _numbers([run.machine(on) for run in self.runs], machines)[place[rows]]
            build[rows] = _numbers([run.build(on, unit) for run in self.runs], builds)[place[rows]]
        return machine, build


class _Coded:
    """The names of a frame as whole numbers, and the names."""

    def __init__(self, frame: pd.DataFrame) -> None:
        columns = {name: frame[name].astype("category").cat for name in _NAMES}
        self.names = {name: [*one.categories] for name, one in columns.items()}
        self.codes: dict[str, Any] = {
            name: one.codes.to_numpy(dtype=np.int32) for name, one in columns.items()
        }

    def used(self, column: str) -> list[str]:
        """Return the names of a column that rows have."""
        return [self.names[column][code] for code in np.unique(self.codes[column])]

    def map(self, column: str, numbers: Mapping[str, int]) -> Codes:
        """Return for each row the number of its name, `NONE` where it has none."""
        if not self.names[column]:
            return np.empty(0, np.int32)
        by_code = [numbers.get(name, NONE) for name in self.names[column]]
        numbered: Codes = np.array(by_code, dtype=np.int32)[self.codes[column]]
        return numbered


def label(origin: Origin) -> str:
    """Return what a point of this origin stands for: a commit, or one run alone."""
    if not origin.commit:
        return origin.run
    return f"{origin.commit[:12]}+ {origin.run}" if origin.dirty else origin.commit


def _cells(coded: _Coded, chosen: Chosen, warnings: list[str]) -> dict[str, Cell]:
    """Return by its key each cell that is wanted, its model under the name it has now."""
    cells = {}
    for key in coded.used("cell"):
        try:
            cell = cell_of(key)
        except StoreError as error:
            warnings.append(str(error))
            continue
        cell = replace(cell, model=(chosen.renamed or {}).get(cell.model, cell.model))
        if chosen.takes_cell(cell):
            cells[key] = cell
    return cells


def _place(cell: Cell) -> tuple[Value, ...]:
    """Return what cells are sorted by: an axis's values in the order in which it lists them."""
    names = [*(name for name in AXES if name != "grad_mode"), "grad_mode"]
    values = cell.axes()
    return tuple(
        AXES[name].values.index(str(values[name])) if AXES[name].values else values[name]
        for name in names
    )


def _points(runs: Sequence[Origin]) -> Codes:
    """Return which point each run belongs to: its commit, under one version of torch."""
    points: dict[tuple[str, str], int] = {}
    names = [(label(run), str(run.facts.get("torch", ""))) for run in runs]
    return np.array([points.setdefault(name, len(points)) for name in names], dtype=np.int32)


def _facts(runs: Sequence[Origin], fact: str) -> list[str]:
    return [str(run.facts.get(fact, "")) for run in runs]


def _texts(runs: Sequence[Origin], fact: str) -> list[str]:
    return sorted(set(_facts(runs, fact)))


def _numbers(texts: Sequence[str], known: dict[str, int]) -> Codes:
    """Return a number for each text, adding to those that are known."""
    return np.array([known.setdefault(text, len(known)) for text in texts], dtype=np.int32)
