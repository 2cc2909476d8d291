"""Runs of the same cells on an accelerator: what must be true of one, and of several together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from .. import runner
from ..analysis.diagnosis import diagnose
from ..analysis.run_view import View
from ..experiment.matrix import Matrix, by_block
from ..experiment.plan import Plan
from ..gate import decide
from ..gate.figure_verdicts import FigureVerdict
from ..plurals import counted, plural
from ..records.measurements import (
    NOTHING_TO_READ,
    Environment,
    Measurement,
    Outcome,
    Reading,
    Skipped,
)
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
EXPECTED: Final = ("cannot_train", "impossible", *NOTHING_TO_READ)
"""Causes that are no fault: torch's refusal, a contradiction, a meter that has nothing to read."""
TIMED: Final = tuple(name for name in DEFAULT_METERS if METERS[name].read_in == "time")
DISTURBED: Final = ("other work", "steal", "involuntary switches")
"""Findings that say that a time is not the device's alone."""

Measure = Callable[[Sequence[str]], list[Run]]
"""Measures the cells once for each name, in turns, with the meters of times."""


def two_runs(
    device: str, here: Environment, say: Callable[[str], None] = lambda _: None
) -> Iterator[Check]:
    """Measure the same twice; yield what holds of the runs."""

    def again(names: Sequence[str]) -> list[Run]:
        say("two runs more, of times")
        return in_turns(device, names, here, meters=TIMED)

    say("two runs")
    first, second = in_turns(device, ("first", "second"), here)
    yield from of_one(first)
    yield from of_both(first, second, again)


def in_turns(
    device: str, names: Sequence[str], here: Environment, *, meters: Sequence[str] = DEFAULT_METERS
) -> list[Run]:
    """Return runs of a few cells on the device, each block measured for one run after the other.

    What the machine does beside them comes and goes, and so hits all of them.
    """
    cells = list(Matrix(models=MODELS, workloads=WORKLOADS, devices=[device], batch_sizes=[8]))
    outcomes: dict[str, list[Reading]] = {name: [] for name in names}
    with Bench(plan=PLAN, meters=meters) as bench:
        for block in by_block(cells).values():
            for name in names:
                for readings in bench.measure(block):
                    outcomes[name] += readings
    first = runner.started(cells, plan=PLAN, meters=meters)
    return [Run(name, (first, here, *readings), sealed=True) for name, readings in outcomes.items()]


def of_one(run: Run) -> Iterator[Check]:
    """Yield what must be true of any run: a number or a good reason, and sums that add up."""
    yield from _reasons(run.outcomes)
    view = View(run)
    yield _leaks(run.outcomes)
    yield _parts(view)
    yield _predictions(view)
    yield from _controls(view)


def of_both(first: Run, second: Run, again: Measure) -> Iterator[Check]:
    """Yield what the gate says of runs of the same: deterministic metrics are the same.

    Where it calls a time worse, two runs more are made in the other order, and it judges two
    against two: then it sees how much runs differ here. What it still calls worse is BAD on a quiet
    machine; on a busy one nothing is known.
    """
    verdicts = decide.decide([first], [second]).figure_verdicts
    exact = [verdict for verdict in verdicts if _repeats(verdict.meter)]
    others = [verdict for verdict in verdicts if not _repeats(verdict.meter)]
    yield _judged("gate of two runs: deterministic metrics are the same", exact, (Verdict.SAME,))
    runs = [first, second]
    if any(map(_slower, others)):
        third, fourth = again(("third", "fourth"))
        runs += [third, fourth]
        verdicts = decide.decide([first, fourth], [second, third]).figure_verdicts
        others = [verdict for verdict in verdicts if not _repeats(verdict.meter)]
    yield _no_worse(others, runs)


def _slower(verdict: FigureVerdict) -> bool:
    """Say whether a time is called worse, and not bytes or a cell that failed."""
    return verdict.verdict is Verdict.WORSE and verdict.unit != "bytes" and bool(verdict.change)


def _no_worse(verdicts: Sequence[FigureVerdict], runs: Sequence[Run]) -> Check:
    name = "gate of two runs: no other figure is worse"
    good = tuple(verdict for verdict in Verdict if verdict is not Verdict.WORSE)
    check = _judged(name, verdicts, good)
    slower = [verdict for verdict in verdicts if _slower(verdict)]
    worse = [verdict for verdict in verdicts if verdict.verdict is Verdict.WORSE]
    if slower and slower == worse and (disturbed := _disturbed(runs)):
        return Check.unreadable(name, f"{check.detail}; but {disturbed}: ask on an idle machine")
    return check


def _disturbed(runs: Sequence[Run]) -> str:
    """Return what else the machine did while runs were timed, or ``""``."""
    findings = (
        finding
        for run in runs
        for outcome in run.outcomes
        if isinstance(outcome, Measurement) and outcome.meter == "step_time"
        for finding in diagnose(outcome)
    )
    return next((one.sentence for one in findings if one.name in DISTURBED), "")


def _repeats(meter: str) -> bool:
    """Say whether it repeats to the byte; a ratio of two modes is ``step_time/no_grad``."""
    return meter in METERS and METERS[meter].exact


def _reasons(outcomes: Sequence[Outcome]) -> Iterator[Check]:
    skipped = [outcome for outcome in outcomes if isinstance(outcome, Skipped)]
    faults = [one for one in skipped if one.cause not in EXPECTED]
    words = f"of {counted(len(outcomes), 'figure')}"
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
    words = f"otherwise, of {len(verdicts)}"
    if wrong:
        one = wrong[0]
        words += f"; {one.cell.grad_mode} {one.meter} {one.verdict}: {one.reason}"
    return Check(
        name, len(wrong), plural(len(wrong), "verdict"), words, "0", bool(verdicts) and not wrong
    )


def _bytes(name: str, off: Sequence[int], words: str) -> Check:
    """Return the largest of some differences in bytes; without any there is nothing to hold."""
    if not off:
        return Check(name, None, "", "no cell has the figures", passed=False)
    most = max(off, key=abs)
    detail = f"{words}, {counted(len(off), 'cell')}"
    return Check(name, float(most), "bytes", detail, "0 B", most == 0)


def _none(name: str, count: int, words: str) -> Check:
    return Check(name, count, "failed", words, "0", count == 0)


def _last_line(words: str) -> str:
    return (words.strip().splitlines() or [""])[-1]
