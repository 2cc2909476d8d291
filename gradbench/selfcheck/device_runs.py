"""Two runs of the same cells on an accelerator: what must be true of each, and of both together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from .. import runner
from ..analysis.run_view import View
from ..experiment.matrix import Matrix, by_block
from ..experiment.plan import Plan
from ..gate import decide
from ..gate.figure_verdicts import FigureVerdict
from ..records.measurements import Environment, Measurement, Outcome, Skipped
from ..records.run import Run
from ..records.selfcheck import Check
from ..runner.bench import Bench
from ..runner.meters import METERS
from ..runner.preflight import DEFAULT_METERS
from ..stats.estimates import MIN_DETECTABLE_EFFECT
from ..stats.verdicts import Verdict

PLAN: Final = Plan(budget_s=2.0, warmup_s=0.2, limit_s=120)
MODELS: Final = ("mlp_tiny", "cnn_small")
WORKLOADS: Final = ("inference", "training")
EXPECTED: Final = ("cannot_train", "impossible", "unreadable")
"""Causes that are no fault: torch's refusal, a contradiction, a meter that has nothing to read."""


def two_runs(
    device: str, here: Environment, say: Callable[[str], None] = lambda _: None
) -> Iterator[Check]:
    """Measure the same twice; yield what holds of the runs."""
    runs = []
    for name in ("first", "second"):
        say(f"{name} of two runs")
        runs.append(measured(device, name, here))
    yield from of_one(runs[0])
    yield from of_both(*runs)


def measured(device: str, name: str, here: Environment) -> Run:
    """Return a run of a few cells on the device, with every default meter."""
    cells = list(Matrix(models=MODELS, workloads=WORKLOADS, devices=[device], batch_sizes=[8]))
    with Bench(plan=PLAN, meters=DEFAULT_METERS) as bench:
        outcomes = [
            outcome
            for block in by_block(cells).values()
            for outcomes in bench.measure(block)
            for outcome in outcomes
        ]
    first = runner.started(cells, plan=PLAN, meters=DEFAULT_METERS, inputs={})
    return Run(name, (first, here, *outcomes), sealed=True)


def of_one(run: Run) -> Iterator[Check]:
    """Yield what must be true of any run: a number or a good reason, and sums that add up."""
    yield from _reasons(run.outcomes)
    view = View(run)
    yield _leaks(run.outcomes)
    yield _parts(view)
    yield _predictions(view)
    yield from _controls(view)


def of_both(first: Run, second: Run) -> Iterator[Check]:
    """Yield what the gate says of two runs of the same: deterministic metrics are the same."""
    verdicts = decide.decide([first], [second]).figure_verdicts
    exact = [verdict for verdict in verdicts if _repeats(verdict.meter)]
    others = [verdict for verdict in verdicts if not _repeats(verdict.meter)]
    yield _judged("gate of two runs: deterministic metrics are the same", exact, (Verdict.SAME,))
    good = tuple(verdict for verdict in Verdict if verdict is not Verdict.WORSE)
    yield _judged("gate of two runs: no other figure is worse", others, good)


def _repeats(meter: str) -> bool:
    """Say whether it repeats to the byte; a ratio of two modes is ``step_time/no_grad``."""
    return meter in METERS and METERS[meter].exact


def _reasons(outcomes: Sequence[Outcome]) -> Iterator[Check]:
    skipped = [outcome for outcome in outcomes if isinstance(outcome, Skipped)]
    faults = [one for one in skipped if one.cause not in EXPECTED]
    words = f"of {len(outcomes)} figures"
    if faults:
        one = faults[0]
        words += f"; {one.cell.grad_mode} {one.meter} {one.cause}: {_last_line(one.reason)}"
    yield _none("a run: figures that failed", len(faults), words)
    unreadable = {one.meter: one.reason for one in skipped if one.cause == "unreadable"}
    for meter, reason in unreadable.items():
        yield Check.unreadable(f"a run: {meter}", reason)


def _leaks(outcomes: Sequence[Outcome]) -> Check:
    leaked = [
        int(outcome.values[0]) + int(outcome.notes.get("left_for_later_cells", 0))
        for outcome in outcomes
        if isinstance(outcome, Measurement) and outcome.meter == "leaked"
    ]
    return _bytes("a run: bytes left behind", leaked, "left by a cell")


def _parts(view: View) -> Check:
    off = [
        sum(breakdown.parts.values()) - int(peak.values[0])
        for cell, breakdown in view.run.breakdowns.items()
        if (peak := view.measurement(cell, "peak_allocated")) is not None
    ]
    return _bytes("a run: parts of peaks", off, "between a peak and the sum of its parts")


def _predictions(view: View) -> Check:
    off = []
    for cell in view.cells:
        predicted = view.measurement(cell, "predicted_peak")
        peak = view.measurement(cell, "peak_requested") or view.measurement(cell, "peak_allocated")
        if predicted is not None and peak is not None:
            off.append(int(predicted.values[0]) - int(peak.values[0]))
    exact = sum(one == 0 for one in off)
    words = f"between a predicted peak and the measured one; {exact} of {len(off)} to the byte"
    return _bytes("a run: predicted peaks", off, words)


def _controls(view: View) -> Iterator[Check]:
    for block, cells in view.blocks.items():
        control = view.control(cells[0])
        if control is None:
            continue
        least, most = control.low - MIN_DETECTABLE_EFFECT, control.high + MIN_DETECTABLE_EFFECT
        words = f"x {control.point:.4f} [{control.low:.4f}, {control.high:.4f}] in {block}"
        yield Check(
            f"A/A, global_off / no_grad: {cells[0].model} {cells[0].workload}",
            abs(control.point - 1),
            "share",
            words,
            f"1 within the interval, or {MIN_DETECTABLE_EFFECT:.1%} of it",
            least <= 1 <= most,
        )


def _judged(name: str, verdicts: Sequence[FigureVerdict], good: Sequence[Verdict]) -> Check:
    wrong = [one for one in verdicts if one.verdict not in good]
    words = f"of {len(verdicts)} verdicts are otherwise"
    if wrong:
        one = wrong[0]
        words += f"; {one.cell.grad_mode} {one.meter} {one.verdict}: {one.reason}"
    return Check(name, len(wrong), "verdicts", words, "0", bool(verdicts) and not wrong)


def _bytes(name: str, off: Sequence[int], words: str) -> Check:
    """Return the largest of some differences in bytes; without any there is nothing to hold."""
    if not off:
        return Check(name, None, "", "no cell has the figures", passed=False)
    most = max(off, key=abs)
    return Check(name, float(most), "bytes", f"{words}, {len(off)} cells", "0 B", most == 0)


def _none(name: str, count: int, words: str) -> Check:
    return Check(name, count, "failed", words, "0", count == 0)


def _last_line(words: str) -> str:
    return (words.strip().splitlines() or [""])[-1]
