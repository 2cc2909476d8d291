"""``predict``: what a step will need, without its memory and without its device."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from ..analysis import format_units
from ..errors import GradbenchError, Impossible
from ..exit_status import ExitStatus
from ..experiment.matrix import Cell, by_block, unique
from .app import Reference, app, check_reference, err, examples, out, say, size_in_bytes
from .printing import print_prose
from .request import Request, takes_request
from .screen import Screen, print_json

if TYPE_CHECKING:
    from ..memory.predict import Predictor
    from ..records.measurements import Outcome
    from ..records.predictions import Fit, Prediction
    from ..workloads.models import Model

Predictors = dict[str, "Predictor"]

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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    reference: Reference = "global_on",
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
    if confirm and budget is None:
        raise Impossible("--confirm goes with --fit")
    cells, plan, models = request.cells({"limit_s": limit})
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
        fits = list(_fits(cells, models, predictors, budget, seed=plan.seed))
        measured = _confirmed(fits, models) if confirm else {}
        _print_fits(fits, measured, as_json=as_json, reference=reference)
        _end(fit for _, fit in fits)
    outcomes = list(_predictions(cells, models, predictors, seed=plan.seed))
    if as_json:
        print_json([_row(cell, outcome) for cell, outcome in outcomes], indent=2)
        _end(outcome for _, outcome in outcomes)
    from ..terminal import prediction_tables, run_tables

    console = Screen(width=out.columns(piped=run_tables.WIDE))
    predictions = {cell: one for cell, one in outcomes if not isinstance(one, str)}
    console.print(
        prediction_tables.prediction_tables(
            dict(outcomes), reference=reference, width=console.width
        )
    )
    peaks = {cell: one.peak_bytes for cell, one in predictions.items()}
    lines = prediction_tables.scaling_tables(peaks, reference=reference)
    if lines is not None:
        console.print(lines)
    _print_unknowns(list(predictions.values()))
    _end(outcome for _, outcome in outcomes)


def _end(results: "Iterable[Prediction | Fit | str]") -> NoReturn:
    """End the command: without any number there is no answer."""
    numbers = any(not isinstance(result, str) for result in results)
    raise typer.Exit(ExitStatus.OK if numbers else ExitStatus.NOTHING_MEASURED)


def _predictions(
    cells: Sequence[Cell],
    models: Mapping[str, "Model"],
    predictors: Predictors,
    *,
    seed: int,
) -> "Iterator[tuple[Cell, Prediction | str]]":
    """Yield each cell with its prediction, or the reason why there is none."""
    from ..memory.predict import CannotTrain

    with err.status("loading torch") as status:
        for block, members in by_block(cells).items():
            say(status, f"predicting {block}")
            for cell in members:
                try:
                    yield cell, predictors[cell.device].predict(cell, models[cell.model], seed=seed)
                except CannotTrain as words:
                    yield cell, f"cannot train here: {words}"
                except GradbenchError as reason:  # of this cell: others may have a number
                    yield cell, str(reason)


def _fits(
    cells: Sequence[Cell],
    models: Mapping[str, "Model"],
    predictors: Predictors,
    budget: int,
    *,
    seed: int,
) -> "Iterator[tuple[Cell, Fit | str]]":
    from ..memory.predict import CannotTrain

    with err.status("loading torch") as status:
        for cell in cells:
            say(status, f"fitting {cell.block.family} {cell.grad_mode}")
            predictor = predictors[cell.device]
            try:
                yield cell, predictor.largest(cell, models[cell.model], budget, seed=seed)
            except CannotTrain as words:
                yield cell, f"cannot train here: {words}"
            except GradbenchError as reason:  # of this cell: others may have a number
                yield cell, str(reason)


def _confirmed(
    fits: "Sequence[tuple[Cell, Fit | str]]", models: Mapping[str, "Model"]
) -> "dict[Cell, Outcome]":
    """Measure every cell at the batch that should fit and at the next one; by cell.

    What the driver counts for the process says most, where it can be read.
    """
    from .. import runner
    from ..records.measurements import Measurement, Skipped

    cells = [
        replace(cell, batch_size=batch)
        for cell, fit in fits
        if not isinstance(fit, str) and fit.batch_size
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

    found = [outcomes[cell, meter] for meter in CONFIRMING]
    return next((one for one in found if isinstance(one, Measurement)), found[-1])


def _print_unknowns(results: "Collection[Prediction | Fit]") -> None:
    """Say what may make the real peak another than the predicted one."""
    unprobed = sorted({op for one in results for op in one.unprobed})
    otherwise = sorted({op for one in results for op in one.run_otherwise})
    for sentence in dict.fromkeys(f"{one.how}: {one.why_measured}" for one in results if one.how):
        print_prose(sentence, style="yellow")
    checks = {one.checked_at for one in results if not one.how}
    for batch in sorted(batch for batch in checks if batch is not None):
        out.print(f"checked by measured steps at batch {batch}: equal to the byte")
    if None in checks:
        some = "some are " if len(checks) > 1 else ""
        why = "too large for one, of several ranks, or not of the CPU"
        out.print(f"{some}not checked by a measured step: {why}")
    if unprobed:
        print_prose(f"not counted, what these need inside: {', '.join(unprobed)}", style="yellow")
    if otherwise:
        print_prose(
            f"the device has other operators for {', '.join(otherwise)}: where it is present, its "
            "own are predicted",
            style="yellow",
        )


def _print_fits(
    fits: "Sequence[tuple[Cell, Fit | str]]",
    measured: "Mapping[Cell, Outcome]",
    *,
    as_json: bool,
    reference: str,
) -> None:
    if as_json:
        print_json([_fit_row(cell, fit, measured) for cell, fit in fits], indent=2)
        return
    from ..terminal import prediction_tables, run_tables

    console = Screen(width=out.columns(piped=run_tables.WIDE))
    console.print(prediction_tables.fit_tables(fits, measured, reference=reference))
    known = [fit for _, fit in fits if not isinstance(fit, str)]
    reserve = max((fit.reserve_bytes for fit in known), default=0)
    if reserve:
        out.print(
            f"{format_units.size(reserve)} of each peak are kept for the device's context and "
            "kernels"
        )
    _print_unknowns(known)
    for cell, fit in fits:
        if isinstance(fit, str):
            print_prose(f"{cell}: {fit}", style="dim")


def _row(cell: Cell, prediction: "Prediction | str") -> dict[str, object]:
    if isinstance(prediction, str):
        return {**cell.axes(), "reason": prediction}
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


def _fit_row(cell: Cell, fit: "Fit | str", measured: "Mapping[Cell, Outcome]") -> dict[str, object]:
    if isinstance(fit, str):
        return {**cell.axes(), "reason": fit}
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
