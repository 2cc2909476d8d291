"""What a gate lets pass: tolerances by meter and by cell, as defaults and as a TOML file says."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

from ..errors import BadConfig, GradbenchError
from ..experiment.axis import MOST
from ..experiment.matrix import AXES, GRAD_MODES, Cell
from ..experiment.toml_config import no_key
from ..experiment.toml_file import TomlFile
from ..printable import brief

PYPROJECT: Final = "pyproject.toml"
TABLE: Final = ("tool", "gradbench", "gate")
SIBLINGS: Final = ("gate",)
"""Tables that ``[tool.gradbench]`` may hold."""

Correction = Literal["holm", "fdr"]
CORRECTIONS: Final = ("holm", "fdr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one figure is judged.

    ``tolerance`` is the largest relative change that does not matter, ``tolerance_bytes`` the
    largest in bytes (the larger of the two counts); ``drift`` the standard deviation of the
    relative change between two runs of the same code on the same machine, which no run can see
    by itself.
    """

    judge: bool = True
    better: Literal["lower", "higher"] = "lower"
    tolerance: float = 0.0
    tolerance_bytes: int = 0
    drift: float = 0.0


EXACT: Final = Rule()
COARSE: Final = Rule(tolerance_bytes=2 << 20)  # bytes that repeat within some 0.4 MiB
SEGMENTED: Final = Rule(tolerance_bytes=20 << 20)  # a caching allocator's segments: 2 or 20 MiB
TIMED: Final = Rule(tolerance=0.20, drift=0.05)
RATIO: Final = Rule(tolerance=0.08, drift=0.02)
DEFAULTS: Final[Mapping[str, Rule]] = {
    # equal trees differ by up to 0.8%, though each repeats: docs/gate-quality.md
    "instructions": Rule(tolerance=0.01),
    **dict.fromkeys(("peak_reserved", "fragmentation", "device_process"), SEGMENTED),
    # the whole board's, other work included; where the host bounds a step, it goes by its load
    "energy": replace(TIMED, judge=False),
    # one reading a run, 0 where nothing new is compiled: how far two of equal code lie apart it
    # cannot say
    "compile_time": replace(TIMED, judge=False),
    # 0 must stay 0; where modes do differ, the last bits depend on the processor
    "output_difference": Rule(tolerance=1.0),
    "latency_p90": replace(TIMED, judge=False),  # tails are the machine's own
    "latency_p99": replace(TIMED, judge=False),
}
"""Rules of figures that are not judged as others of their kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """What is different for some cells and meters; empty means all."""

    axes: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    meters: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, cell: Cell, meter: str) -> bool:
        """Return whether this is about the cell's figure."""
        return (not self.meters or meter in self.meters) and all(
            getattr(cell, axis) in map(AXES[axis].canonical, values)
            for axis, values in self.axes.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one gate.

    ``alpha`` is the chance of a false alarm in the whole table (``holm``), or the share of false
    ones among the alarms (``fdr``). ``reference`` is the grad mode that the others' ratios are
    taken to.
    """

    alpha: float = 0.01
    correction: Correction = "holm"
    strict: bool = False
    reference: str = "no_grad"
    overrides: Sequence[Override] = ()
    ratio: Rule = RATIO

    def rule(self, cell: Cell, meter: str, default: Rule) -> Rule:
        """Return how the cell's figure is judged: the default, changed by whatever fits it."""
        rule = DEFAULTS.get(meter, default)
        for override in self.overrides:
            if override.holds(cell, meter):
                rule = replace(rule, **override.changes)
        return rule


def find(start: Path) -> Path | None:
    """Return the nearest ``pyproject.toml`` from a folder upwards that has rules, or None."""
    for folder in (start, *start.parents):
        path = folder / PYPROJECT
        if path.is_file():
            return path if _gate(TomlFile.read(path)) is not None else None
    return None


def in_force(meters: Iterable[str], *, path: Path | None = None) -> Rules:
    """Return the rules of a file, or else of the nearest ``pyproject.toml``, or the defaults.

    ``meters`` are those that the runs have read; see `read`.
    """
    path = path or find(Path.cwd())
    return read(path, meters=meters) if path is not None else Rules()


def read(path: Path, *, meters: Iterable[str] = ()) -> Rules:
    """Return the rules in a TOML file: the table of ``pyproject.toml``, or a file of its own.

    ``meters`` are those known beside the ones with rules of their own. Raise `BadConfig` with
    file, line and key for whatever cannot be.
    """
    file = TomlFile.read(path)
    prefix = ".".join(TABLE) + "." if path.name == PYPROJECT else ""
    content: object = _gate(file) if prefix else file.tree
    if content is None:
        raise BadConfig(f"{path}: no [{'.'.join(TABLE)}] table: it needs one to say rules")
    if not isinstance(content, dict):
        raise BadConfig(f"{path}, {'.'.join(TABLE)}: a table is needed, not {brief(content)}")
    return _Reader(file, prefix, {*meters, *DEFAULTS}).rules(content)


class _Reader:
    """One file while it is read; knows where in it things stand."""

    def __init__(self, file: TomlFile, prefix: str, meters: Collection[str]) -> None:
        self._file, self._prefix, self._meters = file, prefix, meters

    def rules(self, content: Mapping[str, Any]) -> Rules:
        top = f"[{self._prefix[:-1]}]" if self._prefix else ""
        known = ("alpha", "correction", "strict", "ratios", "meters", "cells")
        given: dict[str, Any] = {}
        for key, value in content.items():
            # a table is found by its header, wherever that stands
            where = self._at(key, top) if not isinstance(value, dict | list) else self._header(key)
            if key not in known:
                raise BadConfig(where + no_key(key, known))
            match key:
                case "alpha":
                    given[key] = _chance(where, value)
                case "correction":
                    given[key] = _one_of(where, value, CORRECTIONS)
                case "strict":
                    given[key] = _truth(where, value)
                case "ratios":
                    given |= self._ratios(_table(where, value))
        by_meter = self._by_meter(_table(self._header("meters"), content.get("meters", {})))
        by_cell = self._by_cell(content.get("cells", []))
        return Rules(**given, overrides=(*by_meter, *by_cell))

    def _ratios(self, table: Mapping[str, Any]) -> dict[str, Any]:
        header = f"[{self._prefix}ratios]"
        rest = {key: value for key, value in table.items() if key != "reference"}
        changes = self._changes(rest, header, beside=("reference",))
        rules: dict[str, Any] = {"ratio": replace(RATIO, **changes)}
        if "reference" in table:
            where = self._at("reference", header)
            rules["reference"] = _one_of(where, table["reference"], GRAD_MODES)
        return rules

    def _by_meter(self, tables: Mapping[str, Any]) -> Iterator[Override]:
        for meter, table in tables.items():
            where = self._header(f"meters.{meter}")
            self._check_meter(where, meter)
            changes = self._changes(_table(where, table), f"[{self._prefix}meters.{meter}]")
            yield Override(meters=(meter,), changes=changes)

    def _by_cell(self, tables: object) -> Iterator[Override]:
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            where = self._header("cells")
            raise BadConfig(
                f"{where}[[{self._prefix}cells]] tables are needed, not {brief(tables)}"
            )
        header = f"[[{self._prefix}cells]]"
        for index, table in enumerate(tables):
            asked: dict[str, tuple[Any, ...]] = {}
            for key in [key for key in table if key in AXES or key == "meter"]:
                where = self._at(key, header, index)
                asked[key] = tuple(table[key] if isinstance(table[key], list) else [table[key]])
                for value in asked[key]:
                    if key == "meter":
                        self._check_meter(where, value)
                    else:
                        _check_value(where, key, value)
            rest = {key: value for key, value in table.items() if key not in asked}
            changes = self._changes(rest, header, index, beside=(*AXES, "meter"))
            yield Override(meters=asked.pop("meter", ()), axes=asked, changes=changes)

    def _changes(
        self, table: Mapping[str, Any], header: str, index: int = 0, *, beside: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the fields of `Rule` that a table sets, checked."""
        known = [each.name for each in fields(Rule)]
        for key, value in table.items():
            where = self._at(key, header, index)
            if key not in known:
                raise BadConfig(where + no_key(key, (*known, *beside)))
            _CHECKS[key](where, value)
        return dict(table)

    def _check_meter(self, where: str, meter: object) -> None:
        name = meter.partition("/")[0] if isinstance(meter, str) else ""
        if name not in self._meters:
            known = sorted(self._meters)
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise BadConfig(f"{where}unknown meter {brief(meter)}: {hint}")

    def _header(self, name: str) -> str:
        return self._at(self._prefix + name, "")

    def _at(self, key: str, header: str, table: int = 0) -> str:
        return self._file.at(key, header=header, table=table)


def _gate(file: TomlFile) -> object:
    """Return what ``pyproject.toml`` has for the gate, or None; raise for a table misspelt."""
    table: object = file.tree.get("tool", {})
    for name in TABLE[1:]:
        if not isinstance(table, dict):
            return None
        if name == TABLE[-1]:
            for key in table.keys() - set(SIBLINGS):
                where = file.at(".".join((*TABLE[:-1], key)), header="")
                raise BadConfig(where + no_key(key, SIBLINGS))
        table = table.get(name)
    return table


def _share(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise BadConfig(f"{where}a share from 0 up is needed, as 0.05, not {brief(value)}")
    return float(value)


def _chance(where: str, value: object) -> float:
    if not 0 < _share(where, value) < 1:
        raise BadConfig(f"{where}a chance between 0 and 1 is needed, as 0.01, not {brief(value)}")
    return _share(where, value)


def _bytes(where: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise BadConfig(f"{where}a whole number of bytes is needed, not {brief(value)}")
    return value


def _truth(where: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadConfig(f"{where}true or false is needed, not {brief(value)}")
    return value


def _one_of(where: str, value: object, known: Sequence[str]) -> str:
    if value not in known:
        raise BadConfig(f"{where}{brief(value)} is none of {', '.join(known)}")
    return str(value)


def _table(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadConfig(f"{where}a table is needed, not {brief(value)}")
    return value


def _check_value(where: str, axis: str, value: object) -> None:
    """Raise unless a cell may have this value on this axis."""
    try:
        Cell(**{"model": "any", "workload": "inference", "grad_mode": GRAD_MODES[0], axis: value})  # type: ignore[arg-type] # that is what is being found out
    except GradbenchError as error:
        raise BadConfig(f"{where}{error}") from error


_CHECKS: Final[Mapping[str, Callable[[str, Any], object]]] = {
    "judge": _truth,
    "better": lambda where, value: _one_of(where, value, ("lower", "higher")),
    "tolerance": _share,
    "tolerance_bytes": _bytes,
    "drift": _share,
}
