"""The figures behind a page, small enough to travel inside it."""

import json
import math
from collections.abc import Sequence
from typing import Any, Final

from markupsafe import Markup

from ..analysis import dataframes
from ..analysis.run_view import MEMORY, TIME, View
from ..experiment.matrix import AXES, GRAD_MODES
from ..printable import printable_data
from ..records.measurements import Fact, Skipped
from ..stats.estimates import Estimate
from .run_differences import facts_of

FIGURES: Final = (
    "cell",
    "meter",
    "unit",
    "value",
    "low",
    "high",
    "rounds",
    "exact",
    "cause",
    "reason",
)
RATIOS: Final = ("cell", "meter", "reference", "ratio", "low", "high", "rounds", "exact", "verdict")


def embedded(views: Sequence[View]) -> Markup:
    """Return the runs' figures as JSON that no string in it can break out of.

    Cells are named once; rows refer to them by number. Rounds stay in the store.
    """
    text = json.dumps(
        printable_data([_run(view) for view in views]), separators=(",", ":"), allow_nan=False
    )
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 # no character of markup is left in it


def _run(view: View) -> dict[str, Any]:
    return {
        "run": view.run.name,
        "started": view.run.header.started_at,
        "protocol": view.run.header.protocol,
        "environment": {name: _finite(fact) for name, fact in facts_of(view.run).items()},
        "axes": list(AXES),
        "cells": [list(cell.axes().values()) for cell in view.cells],
        "figures": {"columns": FIGURES, "rows": _figures(view)},
        "ratios": {"columns": RATIOS, "rows": _ratios(view)},
    }


def _figures(view: View) -> list[list[object]]:
    rows: list[list[object]] = []
    for number, cell in enumerate(view.cells):
        for meter, outcome in view.outcomes(cell).items():
            if isinstance(outcome, Skipped):
                rows.append(
                    [number, meter, "", None, None, None, 0, False, outcome.cause, outcome.reason]
                )
            elif not outcome.values:
                why = "the run was cut before the first round"
                rows.append(
                    [number, meter, outcome.unit, None, None, None, 0, False, "failed", why]
                )
            elif meter == "latency":
                for name, figure in dataframes.figures(outcome).items():
                    rows.append([number, name, outcome.unit, *_numbers(figure), "", ""])
            elif (estimate := view.estimate(cell, meter)) is not None:
                rows.append([number, meter, outcome.unit, *_numbers(estimate), "", ""])
    return rows


def _ratios(view: View) -> list[list[object]]:
    """Return each mode over each that comes before it; the rest are reciprocals."""
    return [
        [number, meter, reference, *_numbers(change), view.verdict(cell, meter, reference)]
        for number, cell in enumerate(view.cells)
        for meter in (TIME, MEMORY)
        for reference in GRAD_MODES[: GRAD_MODES.index(cell.grad_mode)]
        if (change := view.change(cell, meter, reference)) is not None
    ]


def _finite(fact: Fact) -> Fact:
    """Return the fact, in words where it is a number that JSON has not."""
    return str(fact) if isinstance(fact, float) and not math.isfinite(fact) else fact


def _numbers(estimate: Estimate) -> list[object]:
    ends = [_rounded(value) for value in (estimate.point, estimate.low, estimate.high)]
    return [*ends, estimate.rounds, estimate.exact]


def _rounded(value: float) -> float | int:
    """Return six digits of a number, and whole bytes whole."""
    return int(value) if value == int(value) else float(f"{value:.6g}")
