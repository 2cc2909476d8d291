"""Predicted peaks, and the largest batches that fit, as tables for a terminal."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..analysis import dataframes, format_units
from ..analysis.run_view import outcome_value
from ..experiment.matrix import OF_TOKENS, Cell, by_block
from ..records.measurements import Measurement, Outcome
from ..records.predictions import Fit, NoPrediction, Prediction
from ..stats import linear_scaling
from .run_tables import WIDE, as_text

PREDICTED_PARTS: Final = {
    "parameters": "params",
    "gradients": "grads",
    "optimizer_state": "optim",
    "saved": "saved\nat peak",  # on one line it would push the last column out
    "casts": "casts",
    "other": "other",
}
"""Parts of a predicted peak with their headings; autocast's casts where there are some."""

MAKING_TOKENS: Final = {
    "parameters": "params",
    "cache": "cache",
    "saved": "saved\nat peak",
    "casts": "casts",
    "other": "other",
}
"""Where tokens are made, nothing has gradients."""

AT_THE_PEAK: Final = (
    "params to other: what is live at the peak, beside the batch and buffers. What autograd saves "
    "over the whole step is saved_for_backward, which run measures."
)

NOT_PREDICTED: Final = "no mode has a prediction: the reason stands below"
"""In the place of a table without a number."""

MEASURED: Final = "*"
"""Beside what was measured at small batches instead of predicted."""


def prediction_tables(
    predictions: Mapping[Cell, Prediction | NoPrediction], *, reference: str, width: int = WIDE
) -> RenderableType:
    """Return a table a block: predicted peaks, their ratio to the reference mode's, their parts.

    Why one is none is said beneath all of them. Below `WIDE` columns, what was there before the
    step and what it adds are left out.
    """
    sums = ("before", "adds") if width >= WIDE else ()
    shown: list[RenderableType] = []
    for block, cells in by_block(predictions).items():
        if not any(isinstance(predictions[cell], Prediction) for cell in cells):
            shown += [Text(f"\n{block}", style="bold"), Text(f"  {NOT_PREDICTED}", style="dim")]
            continue
        every = MAKING_TOKENS if block.cell.workload in OF_TOKENS else PREDICTED_PARTS
        named = {
            part: heading
            for part, heading in every.items()
            if part != "casts" or block.cell.autocast != "off"
        }
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("", min_width=17, no_wrap=True)
        for heading in ("peak", "×", *sums, *named.values()):
            least = 5 if heading == "×" else 7
            table.add_column(heading, justify="right", no_wrap=True, min_width=least)
        against = predictions.get(dataframes.at(cells[0], reference))
        for cell in cells:
            prediction = predictions[cell]
            if isinstance(prediction, NoPrediction):
                table.add_row(f"  {cell.grad_mode}", Text("none", style="dim"))
                continue
            ratio = (
                prediction.peak_bytes / against.peak_bytes if isinstance(against, Prediction) else 0
            )
            parts = prediction.breakdown.parts
            nbytes = {"before": prediction.before_bytes, "adds": prediction.transient_bytes}
            table.add_row(
                f"  {cell.grad_mode}{MEASURED if prediction.how else ''}",
                format_units.size(prediction.peak_bytes),
                format_units.factor(ratio) if ratio else "",
                *(format_units.size(nbytes[heading]) for heading in sums),
                *(format_units.size(parts[part]) if parts[part] else "" for part in named),
            )
        known = [one for cell in cells if isinstance(one := predictions[cell], Prediction)]
        hows = dict.fromkeys(one.how for one in known if one.how)
        shown += [Text(f"\n{block}", style="bold"), table]
        shown += [Text(f" {MEASURED} {how}, not predicted", style="yellow") for how in hows]
    if any(isinstance(one, Prediction) for one in predictions.values()):
        shown.append(Text(AT_THE_PEAK, style="dim"))
    return Group(*shown)


def scaling_tables(peaks: Mapping[Cell, int], *, reference: str) -> RenderableType | None:
    """Return the straight lines through peaks over batch size, depth and so on; None for none.

    The last column says how many times the reference mode's batch fits where memory is plenty.
    """
    lines = linear_scaling.lines(peaks)
    allowed = linear_scaling.break_even(lines, reference=reference)
    shown: list[RenderableType] = []
    for name, members in groupby(lines, key=_varied):
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column("", min_width=15)
        for heading, least in (("slope", 16), ("intercept", 9), ("max error", 9), ("exponent", 8)):
            table.add_column(heading, justify="right", no_wrap=True, min_width=least)
        table.add_column(f"batch × {reference}", justify="right", no_wrap=True)
        for line in members:
            table.add_row(
                f"  {line.cell.grad_mode}",
                f"{format_units.size(line.slope)}/{linear_scaling.VARIABLES[line.variable]}",
                format_units.size(line.intercept),
                f"{line.max_error:.1%}",
                f"{line.exponent:.2f}" if line.curved else "",
                format_units.factor(allowed[line.cell])
                if line.variable == "batch_size" and line.cell in allowed
                else "",
            )
        shown += [Text(f"\n{name}: peak = intercept + slope × size", style="bold"), table]
    return Group(*shown) if shown else None


def _varied(line: linear_scaling.Line) -> str:
    cell = line.cell
    name = cell.block.family if line.variable == "batch_size" else str(cell.block)
    return f"{name} over {line.variable.replace('_', ' ')} {line.at[0]} to {line.at[-1]}"


def fit_tables(
    fits: Mapping[Cell, Fit | NoPrediction], measured: Mapping[Cell, Outcome], *, reference: str
) -> RenderableType:
    """Return the largest batch that fits, a table a family and a row a mode.

    Beside it stands what was measured at it and above.
    """
    shown: list[RenderableType] = []
    for family, members in groupby(fits, key=lambda cell: cell.block.family):
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("", min_width=16, no_wrap=True)
        for heading in ("batch", "×", "its peak", "one sample more"):
            table.add_column(heading, justify="right", no_wrap=True)
        if measured:
            table.add_column("measured", justify="right")
            table.add_column("measured at one more", justify="right")
        for cell in members:
            against = fits.get(dataframes.at(cell, reference))
            table.add_row(*_fit_row(cell, fits[cell], against, measured))
        shown += [Text(f"\n{family}: the largest batch; × is to {reference}", style="bold"), table]
    return Group(*shown)


def _fit_row(
    cell: Cell,
    fit: Fit | NoPrediction,
    against: Fit | NoPrediction | None,
    measured: Mapping[Cell, Outcome],
) -> list[RenderableType]:
    measured_mark = MEASURED if isinstance(fit, Fit) and fit.how else ""
    name = Text(f" {cell.grad_mode}{measured_mark}")
    if isinstance(fit, NoPrediction):
        return [name, Text("none", style="dim")]
    times = fit.times(against) if isinstance(against, Fit) else None
    row: list[RenderableType] = [
        name,
        fit.size,
        format_units.factor(times) if times is not None else "",
        _share(fit.peak_bytes, fit.budget_bytes) if fit.batch_size else "",
        _share(fit.next_bytes, fit.budget_bytes),
    ]
    if measured:
        batches_tried = (fit.batch_size, fit.batch_size + 1)
        row += [
            _read(measured.get(replace(cell, batch_size=batch))) if batch else Text("")
            for batch in batches_tried
        ]
    return row


def _share(nbytes: int | None, budget_bytes: int) -> str:
    if nbytes is None:
        return "no limit found"
    if nbytes > budget_bytes:
        return f"{format_units.size(nbytes)} ({format_units.size(nbytes - budget_bytes)} over)"
    return f"{format_units.size(nbytes)} ({nbytes / budget_bytes:.2%})"


def _read(outcome: Outcome | None) -> Text:
    figure = dataframes.estimate(outcome) if isinstance(outcome, Measurement) else None
    return as_text(outcome_value(outcome, figure))
