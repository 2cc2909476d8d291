"""What ``gate --json`` and ``compare --json`` decided, read back as the rows of a verdict table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import StoreError
from ..gate.figure_verdicts import FigureVerdict
from ..gate.result import NotCompared
from ..records.validation import Misfit, fill, read_json


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The rows of one or more verdict tables, and in words what has no verdict and why."""

    rows: tuple[FigureVerdict, ...] = ()
    not_compared: tuple[str, ...] = ()


def read_verdicts(paths: Sequence[Path]) -> Verdicts:
    """Return what the files hold, in their order; raise `StoreError` for one that is none.

    A figure that several judged alike, from the same two numbers, is one row: the gate compares
    the bytes saved for backward with a baseline, and the comparison with the base.
    """
    rows: dict[tuple[object, ...], FigureVerdict] = {}
    not_compared: dict[str, list[str]] = {}
    for path in paths:
        try:
            file = fill(_File, read_json(path))
        except Misfit as error:
            raise StoreError(
                f"{str(path)!r} holds no verdicts ({error}): write them with gradbench gate --json"
            ) from error
        for row in file.verdicts:
            key = (row.cell, row.meter, row.verdict, row.baseline, row.candidate)
            rows.setdefault(key, row)
        for each in file.not_compared:
            why = ": ".join(filter(None, (each.why, each.reason)))
            not_compared.setdefault(why, []).append(f"{each.cell} {each.meter}")
    return Verdicts(
        tuple(rows.values()), tuple(_sentence(reason, f) for reason, f in not_compared.items())
    )


@dataclass(frozen=True, slots=True)
class _File:
    """What is read of such a file."""

    verdicts: tuple[FigureVerdict, ...]
    not_compared: tuple[NotCompared, ...] = ()


def _sentence(reason: str, figures: Sequence[str]) -> str:
    more = f" and {len(figures) - 1} more" if len(figures) > 1 else ""
    return f"{reason}: {figures[0]}{more}"
