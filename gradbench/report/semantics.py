"""The section "What the modes do": what was seen of this torch in, the partial's context out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..analysis import dataframes, format_units
from ..experiment.matrix import by_block
from ..records import semantics
from ..records.measurements import Measurement
from ..records.run import Run
from ..records.semantics import Behaviour, ClaimResult, Outcome, Row

METERS: Final[Mapping[str, str]] = {"memory": "peak_transient", "speed": "step_time"}
"""What bears on a claim about memory or speed."""
MOST: Final = 4
"""Measured blocks that a claim is linked to: the largest ratios, and the smallest."""
WITHOUT, WITH = "no_grad", "global_on"


@dataclass(frozen=True, slots=True)
class Bearing:
    """A measured block that bears on a claim: what grad on takes there, over grad off."""

    block: str
    words: str  # "16.5 times", "1.03 times [1.02, 1.05]"
    href: str  # of the figure that shows it, or ""


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """A claim as the section shows it."""

    claim: ClaimResult
    kind: str  # a class of the style sheet
    bearings: tuple[Bearing, ...]


@dataclass(frozen=True, slots=True)
class InputRow:
    """A row of the full table, inside the group of its combination."""

    mark: str
    input: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Combination:
    """The five rows of the full table that share a combination of contexts."""

    marks: str
    ambient: str
    outer: str
    inner: str
    state: str
    restored: bool
    rows: tuple[InputRow, ...]


def section(
    behaviour: Behaviour, runs: Sequence[Run], *, figures: Mapping[str, str] | None = None
) -> dict[str, object]:
    """Return the context of ``semantics.html.j2``.

    ``figures`` has the href of the figure that shows a meter, by the meter's name. Without runs
    nothing bears on the claims about memory and speed.
    """
    errors: dict[str, int] = {}
    combinations = _combinations(behaviour.table, errors)
    sights = [
        {
            "state": semantics.state_words((sight.grad, sight.inference)),
            "input": sight.input,
            "words": [_short(outcome, errors) for _, outcome in sight.outcomes],
            "contexts": sight.contexts,
        }
        for sight in semantics.sights(behaviour.table)
    ]
    bearings = {about: _bearings(runs, meter, figures or {}) for about, meter in METERS.items()}
    claims = [
        ClaimRow(claim, _kind(claim.verdict), tuple(bearings.get(claim.about, ())))
        for claim in behaviour.claims
    ]
    operations = [operation.replace("_", " ") for operation in behaviour.table[0].outcomes]
    return {
        "torch": behaviour.torch,
        "when": behaviour.when,
        "recorded": behaviour.recorded,
        "differences": behaviour.differences,
        "counts": {word: n for word, n in semantics.counted(behaviour).items() if n},
        "constructs": list(dict.fromkeys(step.construct for step in behaviour.transitions)),
        "moves": _moves(behaviour),
        "operations": operations,
        "sights": sights,
        "combinations": combinations,
        "axes": _axes(behaviour.table),
        "errors": list(errors),
        "rows": len(behaviour.table),
        "restored": sum(row.restored and row.restored_after_error for row in behaviour.table),
        "measured": [row for row in claims if row.claim.about],
        "claims": claims,
        "silent": [pitfall for pitfall in behaviour.pitfalls if pitfall.silent],
        "loud": [pitfall for pitfall in behaviour.pitfalls if not pitfall.silent],
        "listings": behaviour.listings,
    }


def _kind(verdict: str) -> str:
    return {"holds": "holds", "fails": "fails", semantics.RAISED: "fails"}.get(verdict, "between")


def _moves(behaviour: Behaviour) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Return each state with where each construct leads from it, and whether that is elsewhere."""
    rows: dict[tuple[bool, bool], list[tuple[str, bool]]] = {}
    for step in behaviour.transitions:
        leads = semantics.state_words(step.after), step.after != step.before
        rows.setdefault(step.before, []).append(leads)
    return [(semantics.state_words(state), leads) for state, leads in rows.items()]


def _short(outcome: Outcome, errors: dict[str, int]) -> str:
    """Return an outcome in words; an error by its number, which it gets here."""
    if not outcome.error:
        return outcome.words
    return f"raises ({errors.setdefault(outcome.error, len(errors) + 1)})"


def _axes(table: Sequence[Row]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return (name, mark, values with their marks) of what the full table can be filtered by."""
    values = {
        "set_grad_enabled before": [str(row.ambient) for row in table],
        "outer block": [row.outer for row in table],
        "inner block": [row.inner for row in table],
        "input": [row.input for row in table],
    }
    return [
        (name, mark, [(value, _mark(mark, value)) for value in dict.fromkeys(occurring)])
        for (name, occurring), mark in zip(values.items(), "aoni", strict=True)
    ]


def _mark(axis: str, value: str) -> str:
    return f"{axis}-{re.sub('[^A-Za-z]+', '', value)}"


def _combinations(table: Sequence[Row], errors: dict[str, int]) -> list[Combination]:
    grouped: dict[tuple[bool, str, str], list[Row]] = {}
    for row in table:
        grouped.setdefault((row.ambient, row.outer, row.inner), []).append(row)
    return [
        Combination(
            marks=f"{_mark('a', str(ambient))} {_mark('o', outer)} {_mark('n', inner)}",
            ambient=str(ambient),
            outer=outer,
            inner=inner,
            state=semantics.state_words((rows[0].grad, rows[0].inference)),
            restored=all(row.restored and row.restored_after_error for row in rows),
            rows=tuple(
                InputRow(
                    _mark("i", row.input),
                    row.input,
                    tuple(_short(outcome, errors) for outcome in row.outcomes.values()),
                )
                for row in rows
            ),
        )
        for (ambient, outer, inner), rows in grouped.items()
    ]


def _bearings(runs: Sequence[Run], meter: str, figures: Mapping[str, str]) -> list[Bearing]:
    """Return the inference blocks with the largest ratios of grad on to grad off, and the least.

    Of blocks that differ only in batch size, the one with the largest.
    """
    bearings: dict[str, tuple[float, Bearing]] = {}
    for run in runs:
        have = {o.cell: o for o in run.outcomes if isinstance(o, Measurement) and o.meter == meter}
        for block in by_block(run.header.cells):
            cell = block.cell
            sides = have.get(dataframes.at(cell, WITH)), have.get(dataframes.at(cell, WITHOUT))
            if cell.workload != "inference" or sides[0] is None or sides[1] is None:
                continue
            change = dataframes.ratio(sides[0], sides[1])
            if change is not None:
                words = f"{change.point:.3g} times"
                if not change.exact:
                    words += f" {format_units.interval(change.low, change.high)}"
                bearing = Bearing(str(block), words, figures.get(meter, ""))
                if change.point > bearings.get(block.family, (0.0, bearing))[0]:
                    bearings[block.family] = change.point, bearing
    ordered = [bearing for _, bearing in sorted(bearings.values(), key=lambda pair: -pair[0])]
    return ordered if len(ordered) <= MOST else [*ordered[: MOST - 1], ordered[-1]]
