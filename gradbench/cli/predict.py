"""``predict``: what a step will need, without its memory and without its device."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, NoReturn, TypeVar

import typer

from ..analysis import format_units
from ..errors import GradbenchError, Impossible
from ..exit_status import ExitStatus
from ..experiment.matrix import GRAD_MODES, Cell, by_block, unique
from ..records.predictions import NoPrediction
from .app import (
    AsJson,
    Reference,
    app,
    check_reference,
    err,
    examples,
    out,
    say,
    size_in_bytes,
)
from .printing import print_frames, print_prose
from .request import Request, checked_plan, takes_request
from .screen import Screen, print_json

if TYPE_CHECKING:
    from ..analysis.prediction_notes import Found
    from ..memory.predict import Predictor
    from ..records.measurements import Outcome
    from ..records.predictions import Fit, Prediction
    from ..workloads.models import Model

T = TypeVar("T")
Predictors = dict[str, "Predictor"]

STYLES: Final = {"doubt": "yellow", "proof": "default", "none": "dim"}
"""How notes of each kind look."""

CONFIRMING: Final = ("device_process", "peak_reserved", "peak_allocated")
"""Meters of what a process takes of a device, the most complete first."""


@app.command(
    epilog=examples(
        "gradbench predict --model resnet18_224 --batch-size 64",
        "gradbench predict --model mlp_d8_w512,mlp_d16_w512 --batch-size 1,64",
        "gradbench predict --model mypkg.nets:make --input 8,3,224,224 --fit 80GiB",
    )
)
@takes_request
def predict(
    request: Request,
    *,
    fit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Find the largest batch that fits: 80GiB, 512MiB."),
    ] = None,
    confirm: Annotated[
        bool,
        typer.Option("--confirm", help="With --fit: measure that batch, and the next one up."),
    ] = False,
    as_json: AsJson = False,
    reference: Reference = GRAD_MODES[0],
    limit: Annotated[
        float, typer.Option(help="Seconds after which the process of one step is killed.")
    ] = 300.0,
) -> None:
    """Predict a step's peak memory, also for models larger than this machine.

    Each cell runs on fake tensors, which have shapes and no bytes; operators that allocate
    scratch memory are run once, on small inputs. A step that cannot run so is measured at small
    batches, and marked. Models may have their sizes in their names: mlp_d8_w512 has 8 hidden
    layers of width 512, cnn_d3_w16_r32 has 3 convolutions of 16 channels on 32x32.
    """
    check_reference(reference)
    budget = size_in_bytes(fit, "--fit")
    patience = checked_plan(limit_s=limit)
    if confirm and budget is None:
        raise Impossible("--confirm goes with --fit")
    cells, plan, models = request.cells(patience)
    from ..memory.predict import Predictor
    from ..runner import host_system, preflight

    preflight.check(cells, models)
    forks = host_system.here().forks
    predictors: Predictors = {
        device: Predictor(device, limit_s=plan.limit_s, forks=forks, checks=True)
        for device in dict.fromkeys(cell.device for cell in cells)
    }
    if budget is not None:
        cells = unique(replace(cell, batch_size=1) for cell in cells)
        fits = dict(_fits(cells, models, predictors, budget, seed=plan.seed))
        measured = _confirmed(fits, models) if confirm else {}
        _print_fits(fits, measured, as_json=as_json, reference=reference)
        _end(fits.values())
    outcomes = dict(_predictions(cells, models, predictors, seed=plan.seed))
    if as_json:
        print_json([_row(cell, outcome) for cell, outcome in outcomes.items()], indent=2)
    else:
        _print_predictions(outcomes, reference=reference)
    _end(outcomes.values())


def _end(results: "Iterable[Prediction | Fit | NoPrediction]") -> NoReturn:
    """End the command: without any number there is no answer."""
    numbers = any(not isinstance(result, NoPrediction) for result in results)
    raise typer.Exit(ExitStatus.OK if numbers else ExitStatus.NOTHING_MEASURED)


def _predictions(
    cells: Sequence[Cell],
    models: Mapping[str, "Model"],
    predictors: Predictors,
    *,
    seed: int,
) -> "Iterator[tuple[Cell, Prediction | NoPrediction]]":
    """Yield each cell with its prediction, or the reason why there is none."""
    with err.status("loading torch") as status:
        for block, members in by_block(cells).items():
            say(status, f"predicting {block}")
            for cell in members:
                predict = predictors[cell.device].predict
                yield cell, _or_reason(partial(predict, cell, models[cell.model], seed=seed))


def _fits(
    cells: Sequence[Cell],
    models: Mapping[str, "Model"],
    predictors: Predictors,
    budget: int,
    *,
    seed: int,
) -> "Iterator[tuple[Cell, Fit | NoPrediction]]":
    with err.status("loading torch") as status:
        for cell in cells:
            say(status, f"fitting {cell.block.family} {cell.grad_mode}")
            largest = predictors[cell.device].largest
            yield cell, _or_reason(partial(largest, cell, models[cell.model], budget, seed=seed))


def _or_reason(ask: Callable[[], T]) -> T | NoPrediction:
    """Return what is asked of one cell, or why it cannot be had: others may have a number."""
    from ..memory.predict import CannotTrain, Unpredictable

    try:
        return ask()
    except CannotTrain as words:
        return NoPrediction(f"cannot train here: {words}")
    except Unpredictable as why:
        return NoPrediction(str(why), why.frames)
    except GradbenchError as why:
        return NoPrediction(str(why))


def _confirmed(
    fits: "Mapping[Cell, Fit | NoPrediction]", models: Mapping[str, "Model"]
) -> "dict[Cell, Outcome]":
    """Measure every cell at the batch that should fit and at the next one; by cell.

    What the driver counts for the process says most, where it can be read.
    """
    from .. import runner
    from ..records.measurements import Measurement, Skipped

    cells = [
        replace(cell, batch_size=batch)
        for cell, fit in fits.items()
        if not isinstance(fit, NoPrediction) and fit.batch_size
        for batch in (fit.batch_size, fit.batch_size + 1)
    ]
    if not cells:
        return {}
    outcomes: dict[tuple[Cell, str], Outcome] = {}
    with err.status("measuring") as status:
        for record in runner.run(
            cells,
            models=models,
            meters=list(CONFIRMING),
            progress=lambda event: say(status, f"measuring {event.block}"),
        ):
            if isinstance(record, Measurement | Skipped):
                outcomes[record.cell, record.meter] = record
    return {cell: _most_telling(cell, outcomes) for cell in cells}


def _most_telling(cell: Cell, outcomes: "Mapping[tuple[Cell, str], Outcome]") -> "Outcome":
    """Return the first figure of a cell that is a number, or the reason of the last."""
    from ..records.measurements import Measurement

    of_cell = [outcomes[cell, meter] for meter in CONFIRMING]
    return next((one for one in of_cell if isinstance(one, Measurement)), of_cell[-1])


def _print_notes(found: "Found") -> None:
    """Print what may make real peaks others than predicted, the user's tracebacks, and reasons."""
    from ..analysis import prediction_notes

    for line, frames in prediction_notes.tracebacks(found):
        print_frames(line, frames)
    for note in prediction_notes.notes(found):
        print_prose(note.text, style=STYLES[note.kind])


def _print_fits(
    fits: "Mapping[Cell, Fit | NoPrediction]",
    measured: "Mapping[Cell, Outcome]",
    *,
    as_json: bool,
    reference: str,
) -> None:
    if as_json:
        print_json([_fit_row(cell, fit, measured) for cell, fit in fits.items()], indent=2)
        return
    from ..terminal import prediction_tables, run_tables

    console = Screen(width=out.columns(piped=run_tables.WIDE))
    console.print(prediction_tables.fit_tables(fits, measured, reference=reference))
    known = [fit for fit in fits.values() if not isinstance(fit, NoPrediction)]
    reserve = max((fit.reserve_bytes for fit in known), default=0)
    if reserve:
        out.print(
            f"{format_units.size(reserve)} of each peak are kept for the device's context and "
            "kernels"
        )
    _print_notes(fits)


def _print_predictions(
    outcomes: "Mapping[Cell, Prediction | NoPrediction]", *, reference: str
) -> None:
    from ..terminal import prediction_tables, run_tables

    console = Screen(width=out.columns(piped=run_tables.WIDE))
    console.print(
        prediction_tables.prediction_tables(outcomes, reference=reference, width=console.width)
    )
    peaks = {
        cell: one.peak_bytes for cell, one in outcomes.items() if not isinstance(one, NoPrediction)
    }
    lines = prediction_tables.scaling_tables(peaks, reference=reference)
    if lines is not None:
        console.print(lines)
    _print_notes(outcomes)


def _row(cell: Cell, prediction: "Prediction | NoPrediction") -> dict[str, object]:
    if isinstance(prediction, NoPrediction):
        return _reason_row(cell, prediction)
    return {
        **cell.axes(),
        "peak_bytes": prediction.peak_bytes,
        "before_bytes": prediction.before_bytes,
        "transient_bytes": prediction.transient_bytes,
        "parts": dict(prediction.breakdown.parts),
        "allocated_bytes": prediction.allocated_bytes,
        "reserved_bytes": prediction.reserved_bytes,
        "context_bytes": prediction.context_bytes,
        "not_counted_inside": list(prediction.unprobed),
        "measured_at_batches": list(prediction.measured_at),
        "why_measured": prediction.why_measured,
        "checked_at_batch": prediction.checked_at,
        "run_otherwise": list(prediction.run_otherwise),
        "seconds": round(prediction.seconds, 3),
    }


def _reason_row(cell: Cell, none: NoPrediction) -> dict[str, object]:
    traceback = {"traceback": none.frames} if none.frames else {}
    return {**cell.axes(), "reason": none.reason, **traceback}


def _fit_row(
    cell: Cell, fit: "Fit | NoPrediction", measured: "Mapping[Cell, Outcome]"
) -> dict[str, object]:
    if isinstance(fit, NoPrediction):
        return _reason_row(cell, fit)
    row: dict[str, object] = {
        **cell.axes(),
        "batch_size": fit.batch_size,
        "budget_bytes": fit.budget_bytes,
        "peak_bytes": fit.peak_bytes,
        "next_bytes": fit.next_bytes,
        "reserve_bytes": fit.reserve_bytes,
        "not_counted_inside": list(fit.unprobed),
        "measured_at_batches": list(fit.measured_at),
        "why_measured": fit.why_measured,
        "checked_at_batch": fit.checked_at,
        "run_otherwise": list(fit.run_otherwise),
    }
    for name, batch in (("measured", fit.batch_size), ("measured_next", fit.batch_size + 1)):
        outcome = measured.get(replace(cell, batch_size=batch)) if batch else None
        if outcome is not None:
            row[name] = getattr(outcome, "reason", None) or getattr(outcome, "values", [None])[0]
    return row
