"""What to measure, as a user says it: a preset or a TOML file, narrowed or widened by axis."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from ..errors import BadConfig, GradbenchError, Impossible, UnknownName
from ..printable import brief
from .matrix import AXES, AXIS_OF, Cell, Matrix, select
from .model_source import BATCH, ModelSource, parse_input
from .plan import Plan
from .presets import PRESETS, Experiment
from .toml_file import TomlFile

MATRIX: Final = "[[matrix]]"


@dataclass(frozen=True, slots=True)
class Choice:
    """The cells to measure and how hard; ``file`` is the TOML file they came from, if any.

    ``sources`` are the models that the file describes and that some cell has.
    """

    cells: tuple[Cell, ...]
    plan: Plan
    file: Path | None = None
    sources: Mapping[str, ModelSource] = field(default_factory=dict)


def choose(
    *,
    preset: str = "quick",
    file: Path | None = None,
    selections: Mapping[str, Sequence[str]] | None = None,
    plan: Mapping[str, Any] | None = None,
) -> Choice:
    """Return what a preset, or a file instead of one, and options on top of it ask for.

    ``selections`` maps an axis to the values given for it (see `select`), ``plan`` a field of
    `Plan` to its value. Raise a `GradbenchError` for whatever cannot be.
    """
    if file is None:
        check_preset(preset)
    experiment = read(file) if file is not None else PRESETS[preset]
    cells = list(experiment)
    for axis, texts in (selections or {}).items():
        if texts:
            cells = select(cells, axis, [AXES[axis].parse(text) for text in texts])
    if not cells:
        raise Impossible("these options leave no cell to measure")
    names = {cell.model for cell in cells}
    sources = {name: one for name, one in experiment.sources.items() if name in names}
    return Choice(tuple(cells), replace(experiment.plan, **(plan or {})), file, sources)


def check_preset(name: str) -> None:
    """Raise `UnknownName` unless there is such a preset."""
    if name not in PRESETS:
        raise UnknownName("preset", name, PRESETS)


def read(path: Path) -> Experiment:
    """Return the experiment that a TOML file describes; raise `BadConfig` with file and line."""
    file = TomlFile.read(path)
    tree = file.tree
    known = {"about", "matrix", "models", "plan"}
    for key in tree:
        if key not in known:
            raise BadConfig(file.at(key, header="") + no_key(key, known))
    tables = tree.get("matrix", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise BadConfig(f"{path}: no [[matrix]] table: it needs at least one")
    about = tree.get("about", path.stem)
    if not isinstance(about, str):
        raise BadConfig(f"{file.at('about', header='')}a text is needed, not {brief(about)}")
    matrices = tuple(_matrix(file, index, table) for index, table in enumerate(tables))
    return Experiment(
        about=about,
        matrices=matrices,
        plan=_plan(file, tree.get("plan", {})),
        sources=_sources(file, tree.get("models", {})),
    )


def locate(path: Path, error: UnknownName) -> str:
    """Return ``file, line N, key: `` for a name that a catalogue did not know, or ''."""
    return TomlFile.read(path).at_value(error.name, key=error.axis)


def places(path: Path, cells: Iterable[Cell]) -> dict[str, str]:
    """Return cell -> ``file:line`` of the ``models`` of the table in the file that has it.

    A cell that options made of others goes to the first table with its model, or has no place.
    """
    matrices = read(path).matrices
    lines = _lines_of_models(TomlFile.read(path))
    if len(lines) != len(matrices):
        return {}  # written in another of TOML's ways: better no line than a wrong one
    exact = {cell: line for matrix, line in zip(matrices, lines, strict=True) for cell in matrix}
    by_model: dict[str, int] = {}
    for matrix, line in zip(matrices, lines, strict=True):
        for model in matrix.axes["model"]:
            by_model.setdefault(str(model), line)
    positions = {cell: exact.get(cell) or by_model.get(cell.model) for cell in cells}
    return {str(cell): f"{path.as_posix()}:{line}" for cell, line in positions.items() if line}


def _lines_of_models(file: TomlFile) -> list[int]:
    """Return for each ``[[matrix]]`` the line of its ``models``, or else of its header."""
    return [
        file.line("models", header=MATRIX, table=index) or line
        for index, line in enumerate(file.tables(MATRIX))
    ]


def _matrix(file: TomlFile, index: int, table: Mapping[str, Any]) -> Matrix:
    for key, value in table.items():
        where = file.at(key, header=MATRIX, table=index)
        if key not in AXIS_OF:
            raise BadConfig(where + no_key(key, AXIS_OF))
        try:  # one axis at a time, so that the complaint can name its line
            Matrix(**{"models": ["any"], key: value})
        except GradbenchError as error:
            raise BadConfig(f"{where}{error}") from error
    if "models" not in table:
        raise BadConfig(f"{file.path}: [[matrix]] number {index + 1} names no models")
    try:
        return Matrix(**table)
    except GradbenchError as error:
        raise BadConfig(f"{file.path}: [[matrix]] number {index + 1}: {error}") from error


def _sources(file: TomlFile, tables: object) -> dict[str, ModelSource]:
    if not isinstance(tables, dict) or not all(isinstance(one, dict) for one in tables.values()):
        raise BadConfig(f"{file.at('models', header='')}a model is a table, [models.NAME]")
    return {name: _source(file, name, table) for name, table in tables.items()}


def _source(file: TomlFile, name: str, table: Mapping[str, Any]) -> ModelSource:
    header, kinds = f"[models.{name}]", {one.name: one.type for one in fields(ModelSource)}
    if "build" not in table:
        raise BadConfig(f"{file.path}: {header} has no build, such as package.module:factory")
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = file.at(key, header=header)
        if key not in kinds:
            raise BadConfig(where + no_key(key, kinds))
        if key == "input":
            values[key] = _input(where, value)
        elif type(value) is not kinds[key]:
            kind = getattr(kinds[key], "__name__", kinds[key])
            raise BadConfig(f"{where}{brief(value)} is not of the type {kind}")
        else:
            values[key] = value
    try:
        return ModelSource(**values)
    except GradbenchError as error:
        raise BadConfig(f"{file.at('build', header=header)}{error}") from error


def _input(where: str, value: object) -> tuple[str, ...]:
    """Return the inputs that a string or a list of them says."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadConfig(f"{where}an input is a string or a list of them, not {brief(value)}")
    inputs: list[str] = []
    for text in texts:
        try:
            tensor, batch = parse_input(text)
        except GradbenchError as error:
            raise BadConfig(f"{where}{error}") from error
        if batch is not None:
            raise BadConfig(
                f"{where}{text!r}: write {BATCH} for the batch, whose sizes stand in batch_sizes"
            )
        inputs.append(str(tensor))
    return tuple(inputs)


def _plan(file: TomlFile, table: object) -> Plan:
    if not isinstance(table, dict):
        raise BadConfig(f"{file.at('plan', header='')}a [plan] table is needed, not {brief(table)}")
    known = [field.name for field in fields(Plan)]
    for key, value in table.items():
        where = file.at(key, header="[plan]")
        if key not in known:
            raise BadConfig(where + no_key(key, known))
        try:
            Plan(**{key: value})
        except GradbenchError as error:
            raise BadConfig(f"{where}{error}") from error
    return Plan(**table)


def no_key(key: str, known: Iterable[str]) -> str:
    """Return the complaint about a key that a table does not have."""
    known = sorted(known)
    close = get_close_matches(key, known, n=1)
    return (
        f"no such key: did you mean {close[0]!r}?" if close else f"no such key: {', '.join(known)}"
    )
