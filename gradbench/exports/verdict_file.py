"""What ``gate --json`` and ``compare --json`` decided, read back as the rows of a verdict table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..experiment.matrix import AXES, Cell
from ..gate.figure_verdicts import FigureVerdict
from ..stats.estimates import Estimate
from ..stats.verdicts import Verdict


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
            content = json.loads(path.read_text("utf-8"))
            for row in map(_figure_verdict, content["verdicts"]):
                key = (row.cell, row.meter, row.verdict, row.baseline, row.candidate)
                rows.setdefault(key, row)
            for row in content.get("not_compared", ()):
                why = ": ".join(str(row[key]) for key in ("why", "reason") if row.get(key))
                figures = not_compared.setdefault(why, [])
                figures.append(f"{_cell(row['cell'])} {row['meter']}")
        except OSError as error:
            raise StoreError(f"cannot read {str(path)!r}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{str(path)!r} holds no verdicts ({error}): write them with gradbench gate --json"
            ) from error
    return Verdicts(
        tuple(rows.values()), tuple(_sentence(reason, f) for reason, f in not_compared.items())
    )


def _figure_verdict(row: Mapping[str, Any]) -> FigureVerdict:
    change = row["change"]
    known = {field.name for field in fields(FigureVerdict)}
    return FigureVerdict(
        **{key: value for key, value in row.items() if key in known}
        | {
            "cell": _cell(row["cell"]),
            "verdict": Verdict(row["verdict"]),
            "change": None if change is None else Estimate(**change),
        }
    )


def _cell(axes: Mapping[str, Any]) -> Cell:
    return Cell(**{axis: value for axis, value in axes.items() if axis in AXES})


def _sentence(reason: str, figures: Sequence[str]) -> str:
    more = f" and {len(figures) - 1} more" if len(figures) > 1 else ""
    return f"{reason}: {figures[0]}{more}"
