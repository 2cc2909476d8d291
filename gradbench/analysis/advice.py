"""What a study advises: the mode to use for inference, what it saves, and how sure that is."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from ..experiment.matrix import GRAD_MODES, Cell
from ..experiment.plan import FEWEST_ROUNDS
from ..plurals import counted
from ..records.advice import Finding, LargestBatch, Study, Trial
from ..records.measurements import Measurement, Skipped
from ..records.predictions import Fit
from ..stats import estimates
from ..stats.estimates import Estimate
from ..stats.verdicts import Verdict, classify
from . import dataframes, format_units
from .format_units import percentage
from .run_sentences import leaks, oddities
from .run_view import MEMORY, TIME, Value, View

FORGOTTEN: Final = GRAD_MODES[0]
"""The mode that inference runs in where nobody thought of one."""
MODES: Final = ("no_grad", "inference_mode")
"""The modes that inference may be advised to use; ``global_off`` is ``no_grad`` by another name."""
DIFFERENCE: Final = "output_difference"
ALIKE: Final = "none, for the same reason"
GROWTH: Final = 1.1  # from one look back at the rounds to the next


@dataclass(frozen=True, slots=True)
class Sure:
    """After how much timing a verdict stood, never to change again."""

    seconds: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Row:
    """One mode of the study's block."""

    mode: str
    advised: bool
    time: Value
    ratio: Value
    throughput: Value
    peak: Value
    saved: Value


@dataclass(frozen=True, slots=True)
class Gain:
    """What a trial came to: ratios to the plain step in the same mode, or why there are none."""

    name: str
    words: str
    time: Estimate | None = None
    memory: float | None = None


class Advice:
    """A study, read: every number of it comes from the records of its run."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.view = View.of(study.run)
        self._cells: Mapping[str, Cell] = {cell.grad_mode: cell for cell in study.cells}

    @cached_property
    def modes(self) -> tuple[str, ...]:
        """The modes to use, the best first: two where nothing tells them apart, () for none."""
        there = [mode for mode in MODES if self._ran(mode)]
        if len(there) < 2:
            return tuple(there)
        no_grad, inference_mode = there
        time = self.verdict(inference_mode, no_grad)
        if time is Verdict.BETTER:
            return (inference_mode,)
        if time is Verdict.WORSE:
            return (no_grad,)
        own, other = self._bytes(inference_mode), self._bytes(no_grad)
        if own is not None and other is not None and own != other:
            return (inference_mode,) if own < other else (no_grad,)
        return (inference_mode, no_grad)

    @property
    def best(self) -> str:
        """The one mode that stands for what is advised; the forgotten one where nothing ran."""
        return self.modes[0] if self.modes else FORGOTTEN

    @property
    def saves(self) -> bool:
        """Whether what is advised saves anything against forgetting it."""
        own, other = self._bytes(self.best), self._bytes(FORGOTTEN)
        less = own is not None and other is not None and own < other
        return less or self.verdict(self.best, FORGOTTEN) is Verdict.BETTER

    def verdict(self, mode: str, other: str, meter: str = TIME) -> Verdict | None:
        """Return the verdict on one mode against another, None where either has no number."""
        cell = self._cells.get(mode)
        return self.view.verdict(cell, meter, other) if cell is not None else None

    def change(self, mode: str, other: str, meter: str = TIME) -> Estimate | None:
        """Return the ratio of one mode to another, None where there is none."""
        cell = self._cells.get(mode)
        return self.view.change(cell, meter, other) if cell is not None else None

    def answer(self) -> list[str]:
        """Return the answer in a sentence or three, names in backticks."""
        if not self.modes:
            return [f"No mode could be measured: {self._why_not()}."]
        if not self._ran(FORGOTTEN):
            return [self._which(), f"`{FORGOTTEN}` has no numbers to hold it against."]
        if not self.saves:
            return [self._no_difference()]
        return [self._which(), self._against_forgetting()]

    def _which(self) -> str:
        either = " or ".join(f"`{mode}`" for mode in sorted(self.modes, reverse=True))
        sentence = f"Use {either} for inference here"
        if len([mode for mode in MODES if self._ran(mode)]) < 2:
            return f"{sentence}."
        if len(self.modes) == 2:
            return f"{sentence}: {self._between()}."
        (other,) = set(MODES) - set(self.modes)
        return f"{sentence}: against `{other}`, {self._saving(self.best, other)}."

    def _between(self) -> str:
        inference_mode, no_grad = self.modes
        change = self.change(inference_mode, no_grad)
        if change is None:
            return "both take the same memory; their times are not known"
        ratio = _ratio(change)
        if hidden := self._hidden(change):
            return f"no difference between them in time is {hidden} ({ratio}), none in memory"
        undecided = self.verdict(inference_mode, no_grad) is Verdict.INCONCLUSIVE
        start = "no difference is sure" if undecided else "no measurable difference"
        return f"{start} between them in time ({ratio}), none in memory"

    def _against_forgetting(self) -> str:
        return f"Against forgetting it (`{FORGOTTEN}`), {self._saving(self.best, FORGOTTEN)}."

    def _saving(self, mode: str, other: str) -> str:
        parts = []
        change = self.change(mode, other)
        if change is not None:
            verdict = self.verdict(mode, other)
            if verdict in (Verdict.BETTER, Verdict.WORSE):
                parts.append(f"{less(change.point)} time ({_ratio(change)})")
            elif verdict is Verdict.SAME:
                parts.append(f"the same time ({_ratio(change)})")
            else:
                parts.append(f"{self._not_sure(change)} ({_ratio(change)})")
        own, against = self._bytes(mode), self._bytes(other)
        if own is not None and against is not None:
            if own == against:
                parts.append("the same memory")
            else:
                sizes = f"{format_units.size(own)} instead of {format_units.size(against)}"
                parts.append(f"a step adds {sizes}")
        return " and ".join(parts)

    def _no_difference(self) -> str:
        change = self.change(self.best, FORGOTTEN)
        verdict = self.verdict(self.best, FORGOTTEN)
        if verdict is Verdict.WORSE and change is not None:
            saving = self._saving(self.best, FORGOTTEN)
            return f"No mode saves anything here: `{self.best}` costs {saving}."
        sentence = "There is no measurable difference between the modes here"
        if change is not None and (hidden := self._hidden(change)):
            sentence = f"No difference between the modes is {hidden} here"
        elif verdict is Verdict.INCONCLUSIVE:
            sentence = "No difference between the modes is sure here"
        ratio = ""
        if change is not None:
            ratio = f": `{self.best}` takes {_ratio(change)} times the time"
        return f"{sentence}{ratio}, and the same memory."

    def rows(self) -> list[Row]:
        """Return a row a mode."""
        return [
            Row(
                mode=mode,
                advised=mode in self.modes and self.saves,
                time=self.view.value(cell, TIME),
                ratio=self.view.ratio(cell, TIME, FORGOTTEN),
                throughput=self.view.throughput(cell),
                peak=self.view.value(cell, "peak_allocated"),
                saved=self.view.value(cell, "saved_for_backward"),
            )
            for mode, cell in self._cells.items()
        ]

    def outputs(self) -> str:
        """Return in a sentence whether all modes give the same output."""
        others = [cell for mode, cell in self._cells.items() if mode != FORGOTTEN]
        read = {c.grad_mode: m for c in others if (m := self.view.measurement(c, DIFFERENCE))}
        if not read:
            reason = next((o.reason for c in others if (o := self._skipped(c))), "not measured")
            return f"not compared: {reason}"
        apart = {mode: measured for mode, measured in read.items() if measured.values[0]}
        if not apart:
            return "the same to the bit in all modes"
        most = max(apart, key=lambda mode: apart[mode].values[0])
        notes = apart[most].notes
        sizes = f"{notes['absolute']:.2g} absolute, {notes['relative']:.2g} relative"
        differ = "differ" if len(apart) > 1 else "differs"
        return f"{', '.join(apart)} {differ} from {FORGOTTEN} by up to {sizes}"

    def _skipped(self, cell: Cell) -> Skipped | None:
        outcome = self.view.outcomes(cell).get(DIFFERENCE)
        return outcome if isinstance(outcome, Skipped) else None

    def sure(self) -> Sure | None:
        """Return after how much timing the verdict against forgetting stood; None if it does not.

        The rounds are looked at again from their beginning, as if timing had been stopped there.
        """
        final = self.verdict(self.best, FORGOTTEN)
        own, base = (self._timed(mode) for mode in (self.best, FORGOTTEN))
        if final in (None, Verdict.INCONCLUSIVE) or own is None or base is None:
            return None
        floor = self.view.floor(self._cells[self.best])
        candidate, reference = dataframes.per_step(own), dataframes.per_step(base)
        total = len(candidate)
        stood = total
        for count in reversed(_looks(total)):
            change = estimates.paired_ratio(candidate[:count], reference[:count])
            if classify(change, floor=floor) is not final:
                break
            stood = count
        timed = [m for mode in self._cells if (m := self._timed(mode)) is not None]
        spent_ns = sum(sum(measured.values[:stood]) for measured in timed)
        return Sure(spent_ns / 1e9, stood)

    @property
    def timed(self) -> bool:
        """Whether any mode has a time: without one there is no noise floor, and nothing is sure."""
        return any(self._timed(mode) is not None for mode in self._cells)

    def floor(self) -> float:
        """Return how far apart equal modes may lie here, relative."""
        return self.view.floor(self.study.cells[0])

    def when_sure(self) -> str:
        """Return in words after how much timing the verdict stood, or that it does not yet."""
        sure = self.sure()
        if sure is None:
            spent = format_units.duration(self._timing_ns())
            return f"not yet, after {spent} of timing: measure at length"
        spent, rounds = format_units.duration(sure.seconds * 1e9), counted(sure.rounds, "round")
        return f"after {spent} of timing ({rounds})"

    def _timing_ns(self) -> float:
        """Return how long the block's rounds took in all."""
        timed = [m for mode in self._cells if (m := self._timed(mode)) is not None]
        return sum(sum(measured.values) for measured in timed)

    def findings(self) -> list[Finding]:
        """Return what was found in the model, what its run shows included."""
        from_run = [Finding(what=sentence) for sentence in oddities(self.study.run)]
        grown = [
            Finding(what=sentence, cure="let go of it, or bound it, after each call")
            for sentence in leaks(self.study.run)[:1]  # each mode says the same
        ]
        return [*self.study.findings, *grown, *from_run]

    def batches(self) -> Iterator[tuple[LargestBatch, float | None]]:
        """Yield the largest batch of each purpose, and its ratio to the one with grad on.

        A reason is said once: where it is that of the purpose before, `ALIKE` stands for it.
        """
        base = next((b.fit for b in self.study.batches if b.cell.grad_mode == FORGOTTEN), None)
        said = ""
        for batch in self.study.batches:
            alike = bool(batch.reason) and batch.reason == said
            said = batch.reason
            ratio = batch.fit.times(base) if batch.fit and base else None
            yield replace(batch, reason=ALIKE) if alike else batch, ratio

    def gains(self) -> list[Gain]:
        """Return what each trial came to."""
        return [self._gain(trial) for trial in self.study.trials]

    def _gain(self, trial: Trial) -> Gain:
        if trial.fits is not None:
            return _room(trial.name, *trial.fits)
        if trial.fails:
            return Gain(trial.name, f"does not run: {trial.fails}")
        if trial.turns is None or trial.cell is None:
            return Gain(trial.name, f"not tried: {trial.not_tried}")
        change = estimates.paired_ratio(
            np.asarray(trial.turns.changed_ns), np.asarray(trial.turns.plain_ns)
        )
        against = self._bytes(trial.cell.grad_mode)
        memory = trial.adds_bytes / against if trial.adds_bytes is not None and against else None
        sure = _beyond(change, floor=self.floor())
        words = f"{less(change.point)} time" if sure else self._not_sure(change)
        words += f" ({_ratio(change)})"
        if memory is not None:
            words += f", {format_units.factor(memory)} of the memory that a step adds"
        return Gain(trial.name, words, change, memory)

    def _not_sure(self, change: Estimate) -> str:
        """Return that there is no difference in time that is sure, and what hides one."""
        hidden = self._hidden(change)
        return f"no difference in time {hidden}" if hidden else "no sure difference in time"

    def _hidden(self, change: Estimate) -> str:
        """Return what a change is not, if its interval excludes 1 and the noise floor hides it."""
        floor = self.floor()
        hidden = (change.high < 1 or change.low > 1) and not _beyond(change, floor=floor)
        return f"beyond the noise floor of {format_units.noise(floor)}" if hidden else ""

    def _ran(self, mode: str) -> bool:
        cell = self._cells.get(mode)
        return cell is not None and any(
            self.view.measurement(cell, meter) is not None for meter in (TIME, MEMORY)
        )

    def _timed(self, mode: str) -> Measurement | None:
        cell = self._cells.get(mode)
        return self.view.measurement(cell, TIME) if cell is not None else None

    def _bytes(self, mode: str) -> float | None:
        cell = self._cells.get(mode)
        estimate = self.view.estimate(cell, MEMORY) if cell is not None else None
        return estimate.point if estimate is not None else None

    def _why_not(self) -> str:
        stopped = (self.view.stopped(cell) for cell in self._cells.values())
        return next((why.reason for why in stopped if why is not None), "nothing was read")


def less(ratio: float) -> str:
    """Return a ratio as what it saves or costs: ``23.8% less``, ``12% more``, ``2.4 times the``."""
    if ratio < 1:
        return f"{percentage(1 - ratio)} less"
    return (
        f"{percentage(ratio - 1)} more" if ratio < 2 else f"{format_units.digits(ratio)} times the"
    )


def _room(name: str, plain: Fit, changed: Fit) -> Gain:
    """Return what a change of memory alone comes to: how many samples of training fit."""
    if None in (plain.next_bytes, changed.next_bytes):
        sizes = f"{changed.size} samples, and {plain.size} without it"
        return Gain(name, f"training fits {sizes}: memory is no limit here")
    if changed.batch_size <= plain.batch_size:
        return Gain(name, f"no more samples fit: {changed.size}, and {plain.size} without it")
    words = f"training fits {counted(changed.batch_size, 'sample')} instead of {plain.size}"
    times = changed.times(plain)
    words += f", {format_units.factor(times)} times as many" if times is not None else ""
    return Gain(name, f"{words}; its time was not tried")


def _beyond(change: Estimate, *, floor: float) -> bool:
    return classify(change, floor=floor) in (Verdict.BETTER, Verdict.WORSE)


def _ratio(change: Estimate) -> str:
    return f"{format_units.factor(change.point)} {format_units.interval(change.low, change.high)}"


def _looks(total: int) -> list[int]:
    """Return the numbers of rounds at which to look back: ever farther apart, the last one all."""
    looks, count = [], float(FEWEST_ROUNDS)
    while count < total:
        looks.append(math.floor(count))
        count *= GROWTH
    return list(dict.fromkeys([*looks, total]))


def as_plain(advice: Advice) -> dict[str, Any]:
    """Return the advice as values that JSON has: what the screen shows, in numbers."""
    sure = advice.sure()
    return {
        "run": advice.study.run.name,
        "block": str(advice.study.cells[0].block),
        "answer": [sentence.replace("`", "") for sentence in advice.answer()],
        "use": list(advice.modes) if advice.saves else [],
        "modes": {
            row.mode: {
                "step_time_ns": row.time.number,
                "ratio": _interval(advice.change(row.mode, FORGOTTEN)),
                "verdict": advice.verdict(row.mode, FORGOTTEN),
                "samples_per_s": row.throughput.number,
                "peak_bytes": row.peak.number,
                "saved_for_backward_bytes": row.saved.number,
            }
            for row in advice.rows()
        },
        "inference_mode_over_no_grad": _interval(advice.change(*reversed(MODES))),
        "outputs": advice.outputs(),
        "noise_floor": advice.floor() if advice.timed else None,
        "sure_after_s": sure and sure.seconds,
        "found": [asdict(finding) for finding in advice.findings()],
        "memory_bytes": advice.study.memory_bytes,
        "largest_batch": {
            batch.purpose: batch.fit.batch_size if batch.fit else batch.reason
            for batch in advice.study.batches
        },
        "try": {
            gain.name: {"words": gain.words, "ratio": _interval(gain.time), "memory": gain.memory}
            for gain in advice.gains()
        },
        "at_length": advice.study.thorough,
    }


def _interval(change: Estimate | None) -> list[float] | None:
    return [change.point, change.low, change.high] if change is not None else None
