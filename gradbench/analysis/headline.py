"""What the first screen says, computed from a run: the answer, verdicts, noise."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..experiment.matrix import GRAD_MODES, Cell
from ..plurals import counted, plural
from ..records.run import Run
from ..stats.estimates import noise_floor
from ..stats.verdicts import Verdict
from ..store.comparability import processor
from . import evaluations, format_units
from .format_units import percentage
from .run_view import MEMORY, TIME, View

REFERENCE: Final = GRAD_MODES[0]
OFF: Final = ("no_grad", "inference_mode")
"""The modes that the answer is about: ``global_off`` is ``no_grad`` by another name."""


@dataclass(frozen=True, slots=True)
class Strip:
    """How often each verdict was given to one mode."""

    mode: str
    counts: Mapping[Verdict, int]

    @property
    def total(self) -> int:
        """Comparisons in all."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise floors of a run's blocks: relative, and what the controls say of themselves."""

    blocks: int
    median: float
    largest: float
    held: int  # blocks whose control's interval holds 1


def answer(run: Run | View) -> list[str]:
    """Return in a sentence or two per device, of each kind of machine, what the modes cost.

    Names stand in backticks.
    """
    view = View.of(run)
    sentences = [
        sentence
        for kind, cells in view.kinds.items()
        for device in dict.fromkeys(cell.device for cell in cells)
        for sentence in _about(view, [c for c in cells if c.device == device], device, kind)
    ]
    if sentences:
        return sentences
    if not {TIME, MEMORY} & set(view.run.header.meters):
        return [f"Neither {TIME} nor {MEMORY} was asked for, which this answer is about."]
    if any(view.change(c, m, REFERENCE) for c in view.cells for m in (TIME, MEMORY)):
        return ["No inference was measured, which this answer is about; see the other workloads."]
    return ["No block of this run has two measured modes to compare."]


def _about(view: View, cells: Sequence[Cell], device: str, kind: str) -> Iterator[str]:
    cells = [c for c in cells if c.workload == "inference"]
    modes = [
        m
        for m in OFF
        if any(
            view.change(c, x, REFERENCE) for c in cells for x in (TIME, MEMORY) if c.grad_mode == m
        )
    ]
    own = [c for c in cells if c.grad_mode in modes]
    memory = _memory(view, own)
    whose = "its time" if memory else "the time of an inference step"
    parts = [part for part in (memory, _time(view, own, whose)) if part]
    if len(modes) == 1:
        parts = [_singular(part) for part in parts]
    if parts:
        where = kind or processor(view.run.environment.facts, device)
        place = f"On {device} ({where})" if where else f"On {device}"
        yield f"{place}, {' and '.join(f'`{mode}`' for mode in modes)} {' and '.join(parts)}."
    between = _between(view, [c for c in cells if c.grad_mode == OFF[1]])
    if between:
        yield between


def _singular(part: str) -> str:
    """Return what several do as what one does: each part begins with its verb."""
    verb, _, rest = part.partition(" ")
    return f"{verb}s {rest}"


def _memory(view: View, cells: Sequence[Cell]) -> str:
    ratios = [r.point for c in cells if (r := view.change(c, MEMORY, REFERENCE))]
    if not ratios:
        return ""
    least, most = min(ratios), max(ratios)
    if least == most == 1:
        return "leave the memory that an inference step adds as it is"
    if most < 1 and least > 0:
        times = _to(format_units.digits(1 / most), format_units.digits(1 / least))
        return f"cut the memory that an inference step adds by a factor of {times}"
    span = _to(format_units.factor(least), format_units.factor(most))
    return f"bring the memory that an inference step adds to {span} of `{REFERENCE}`'s"


def _time(view: View, cells: Sequence[Cell], whose: str) -> str:
    changes = [
        (change.point, verdict)
        for c in cells
        if (change := view.change(c, TIME, REFERENCE))
        and (verdict := view.verdict(c, TIME, REFERENCE))
    ]
    if not changes:
        return ""
    sure = [point for point, given in changes if given != Verdict.INCONCLUSIVE]
    points = sure or [point for point, _ in changes]
    least, most = min(points), max(points)
    counts = Counter(verdict for _, verdict in changes)
    share = f"({tally(counts)} of {counted(len(changes), 'comparison')})"
    if most < 1 and counts[Verdict.BETTER]:
        return f"take {_to(percentage(1 - most), percentage(1 - least))} less time {share}"
    if not counts[Verdict.BETTER] and not counts[Verdict.WORSE]:
        return f"show no difference in {whose} beyond the noise floor {share}"
    if most >= 2:
        span = _to(format_units.factor(least), format_units.factor(most))
        return f"bring {whose} to {span} times `{REFERENCE}`'s {share}"
    return f"change {whose} by {_signed(least - 1)} to {_signed(most - 1)} {share}"


def _between(view: View, cells: Sequence[Cell]) -> str:
    changes = [
        (change.point, view.verdict(c, TIME, OFF[0]), view.floor(c))
        for c in cells
        if (change := view.change(c, TIME, OFF[0]))
    ]
    if not changes:
        return ""
    floor = format_units.noise(max(floor for _, _, floor in changes))
    counts = Counter(verdict for _, verdict, _ in changes)
    blocks = counted(len(changes), "block")
    phrases = []
    for verdict, word in ((Verdict.BETTER, "faster"), (Verdict.WORSE, "slower")):
        sizes = [abs(point - 1) for point, given, _ in changes if given == verdict]
        if sizes:
            factors = [format_units.factor(1 + size) for size in (min(sizes), max(sizes))]
            by = _to(percentage(min(sizes)), percentage(max(sizes)))
            by = by if max(sizes) <= 1 else f"a factor of {_to(*factors)}"
            phrases.append(f"{word} in {len(sizes)} of {blocks}, by {by}")
    if not phrases:
        nothing = "Between the two no difference in time shows beyond the noise floor"
        whose = f"of the {plural(len(changes), 'inference block')}"
        return f"{nothing} {whose}, {floor} at most."
    rest = counts[Verdict.SAME] + counts[Verdict.INCONCLUSIVE]
    end = f"; in the other {rest} no difference shows beyond the noise floor" if rest else ""
    return f"Between the two, `{OFF[1]}` is {' and '.join(phrases)}{end}."


def asides(run: Run | View) -> list[str]:
    """Return what the other workloads say, a sentence each."""
    view, sentences = View.of(run), []
    refused = [
        c
        for c in view.cells
        if c.workload == "training" and (why := view.stopped(c)) and why.cause == "cannot_train"
    ]
    if refused:
        modes = ", ".join(f"`{m}`" for m in dict.fromkeys(c.grad_mode for c in refused))
        tried = f"Training inside {modes} was tried in {counted(len(refused), 'cell')}"
        sentences.append(f"{tried} and cannot work: torch records no graph there.")
    for workload, what in (
        ("training_reenabled", "Training with grad re-enabled inside a mode"),
        (
            "frozen_backbone",
            "Training only a head, its frozen backbone's features computed inside a mode",
        ),
    ):
        cells = [c for c in view.cells if c.workload == workload]
        verdicts = Counter(v for c in cells if (v := view.verdict(c, TIME, REFERENCE)))
        if verdicts:
            points = [r.point for c in cells if (r := view.change(c, TIME, REFERENCE))]
            span = _to(format_units.factor(min(points)), format_units.factor(max(points)))
            counts = f"{tally(verdicts)} of {counted(verdicts.total(), 'comparison')}"
            sentences.append(f"{what} takes {span} times as long as under `{REFERENCE}`: {counts}.")
    return sentences + evaluations.sentences(view)


def tally(counts: Mapping[Verdict, int]) -> str:
    """Return ``3 better, 1 same``: counts of verdicts, those of none left out."""
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts.get(verdict))


def strips(view: View, meter: str, reference: str) -> list[Strip]:
    """Return how often each verdict was given to each mode, against ``reference``."""
    rows = []
    for mode in GRAD_MODES:
        given = Counter(
            verdict
            for cell in view.cells
            if cell.grad_mode == mode and (verdict := view.verdict(cell, meter, reference))
        )
        if given:
            rows.append(Strip(mode, {verdict: given[verdict] for verdict in Verdict}))
    return rows


def noise(view: View) -> Noise | None:
    """Return what the A/A controls say, or None without any."""
    controls = [c for members in view.blocks.values() if (c := view.control(members[0]))]
    if not controls:
        return None
    floors = [noise_floor(control) for control in controls]
    held = sum(control.low <= 1 <= control.high for control in controls)
    return Noise(len(controls), float(np.median(floors)), max(floors), held)


def missing(run: Run | View) -> Mapping[str, int]:
    """Return how many cells have no number at all, by cause: those not come to are not measured."""
    view = View.of(run)
    return Counter(why for cell in view.cells if (why := _without_numbers(view, cell)))


def _without_numbers(view: View, cell: Cell) -> str:
    """Return why a cell has no number at all, or "" where it has one."""
    if (stopped := view.stopped(cell)) is not None:
        return stopped.cause
    outcomes = view.outcomes(cell).values()
    if not outcomes and cell not in view.run.breakdowns:
        return "not_measured"
    return ""


def _signed(share: float) -> str:
    return f"{'+' if share > 0 else '−' if share < 0 else '±'}{percentage(abs(share))}"


def _to(low: str, high: str) -> str:
    """Return a span, its unit once, or one number where both ends read the same."""
    if low == high:
        return low
    if low.endswith("%") and high.endswith("%"):
        low = low.removesuffix("%")
    return f"{low} to {high}"
