"""Where in the user's files a cell comes from: what an annotation points at."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Final

from ..experiment.matrix import Cell
from ..records.run import Run

MARKER: Final = "gradbench"
SUITES: Final = "benchmarks"
"""The folder whose tests stand for cells that no place was recorded for."""


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A file, as a path from the repository's root, and a line, from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


Locate = Callable[[Cell], SourceLocation | None]


def nowhere(_cell: Cell) -> None:
    """Return no place for any cell."""


def parse(text: str) -> SourceLocation | None:
    """Return ``file:line`` as a place, or None for anything else."""
    match = re.fullmatch(r"(.+):([0-9]{1,9})", text, re.DOTALL)
    if match is None or int(match[2]) == 0:
        return None
    return SourceLocation(match[1], int(match[2]))


def locator(runs: Iterable[Run], root: Path, *, repository: Path | None = None) -> Locate:
    """Return a function from cell to place.

    A place that a run recorded comes first: its test's under pytest, its table's in a TOML file.
    Then the factory of a model that was given by its path, then the test in
    ``root``/benchmarks that is marked for the cell's workload; both are found by reading files,
    not by importing them. None where nothing is there. Files are relative to ``root``, or to the
    ``repository`` that has it.
    """
    recorded: dict[str, SourceLocation] = {}
    builds: dict[str, str] = {}
    for run in runs:
        builds |= {name: source.build for name, source in run.header.sources.items()}
        for cell, text in run.header.places.items():
            place = parse(text)
            if place is not None:
                recorded.setdefault(cell, place)
    by_workload = _marked_tests(root)
    factory = cache(partial(_factory, root))

    inside = PurePosixPath()
    if repository is not None and root.resolve().is_relative_to(repository.resolve()):
        inside = PurePosixPath(root.resolve().relative_to(repository.resolve()))

    def locate(cell: Cell) -> SourceLocation | None:
        known = (
            recorded.get(str(cell))
            or factory(builds.get(cell.model, cell.model))
            or by_workload.get(cell.workload)
            or by_workload.get("")
        )
        return SourceLocation(str(inside / known.file), known.line) if known else None

    return locate


def _factory(root: Path, build: str) -> SourceLocation | None:
    """Return where ``package.module:factory`` is defined below ``root``, or below its src.

    ``file.py:factory`` is looked for there, too, if its path does not lead out.
    """
    module, _, name = build.partition(":")
    parts = PurePosixPath(module.removesuffix(".py")).parts if module.endswith(".py") else ()
    parts = parts or tuple(module.split("."))
    if not name or not all(part.isidentifier() for part in parts):
        return None
    stem = Path(*parts)
    for folder in (root, root / "src"):
        for path in (folder / stem.with_suffix(".py"), folder / stem / "__init__.py"):
            for node in ast.walk(_parsed(path)):
                if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                    continue
                if node.name == name.partition(".")[0]:
                    return SourceLocation(path.relative_to(root).as_posix(), node.lineno)
    return None


def _parsed(path: Path) -> ast.Module:
    """Return a file's syntax; of one that is not there or not Python, none."""
    try:
        return ast.parse(path.read_text("utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])  # not ours to complain about: pytest will


def _marked_tests(root: Path) -> Mapping[str, SourceLocation]:
    """Return workload -> the first test marked for it; "" for one that takes any workload."""
    locations: dict[str, SourceLocation] = {}
    for path in sorted((root / SUITES).glob("**/*.py")):
        for workload, line in _marks(_parsed(path)):
            place = SourceLocation(path.relative_to(root).as_posix(), line)
            locations.setdefault(workload, place)
    return locations


def _marks(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            call = decorator.func if isinstance(decorator, ast.Call) else decorator
            if not (isinstance(call, ast.Attribute) and call.attr == MARKER):
                continue
            arguments: list[ast.expr] = []
            if isinstance(decorator, ast.Call):
                arguments = [*decorator.args, *(word.value for word in decorator.keywords)]
            named = [a.value for a in arguments if isinstance(a, ast.Constant)]
            yield str(named[0]) if named else "", node.lineno
