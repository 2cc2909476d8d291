"""A run in sentences: what has no number and why, and where the time went."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from ..experiment.matrix import Cell
from ..plurals import counted
from ..records.measurements import NOTHING_TO_READ, Cause, Fact, Measurement, Skipped
from ..records.predictions import marks
from ..records.run import Run
from .prediction_errors import errors, in_words, unchecked

_NUMBERS: Final = re.compile(r"0x[0-9a-f]+|(?<=[^\w.])\d+(?![\w.])", re.I)


def reasons(
    run: Run, *, causes: Collection[Cause] | None = None, untraced: bool = False
) -> Iterator[str]:
    """Yield each reason for a missing number once, with the cells it holds for.

    Only those of the ``causes``, where these are given; ``untraced``: without the cells whose own
    traceback, which `tracebacks` shows, says it word for word.
    """
    for (cause, reason), cells in _cells_by_reason(run, untraced=untraced).items():
        if causes is None or cause in causes:
            yield f"{cause.replace('_', ' ')}: {few(cells)}: {reason}"


def in_short(run: Run, *, causes: Collection[Cause]) -> str:
    """Return how many cells miss figures for reasons of these causes, and the commonest reason."""
    grouped = {why: cells for why, cells in _cells_by_reason(run).items() if why[0] in causes}
    cells = {cell for members in grouped.values() for cell in members}
    (cause, reason), most = max(grouped.items(), key=lambda item: len(item[1]))
    others = counted(len(grouped) - 1, "other reason")
    return (
        f"{counted(len(cells), 'cell')} without figures that cannot be had: "
        f"{len(most)} {cause.replace('_', ' ')}: {reason}; {others}"
    )


def _cells_by_reason(run: Run, *, untraced: bool = False) -> dict[tuple[Cause, str], list[str]]:
    grouped: dict[tuple[Cause, str], list[str]] = {}
    for outcome in run.outcomes:
        if isinstance(outcome, Skipped) and outcome.cause not in NOTHING_TO_READ:
            if untraced and outcome.traceback and outcome.reason in outcome.traceback:
                continue
            cells = grouped.setdefault((outcome.cause, outcome.reason), [])
            if str(outcome.cell) not in cells:
                cells.append(str(outcome.cell))
    return grouped


def tracebacks(run: Run) -> Iterator[tuple[str, str]]:
    """Yield each of the user's tracebacks once, after a line that says whose step raised it."""
    return raised(
        (str(outcome.cell), outcome.traceback)
        for outcome in run.outcomes
        if isinstance(outcome, Skipped) and outcome.traceback
    )


def raised(found: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield each traceback once, after a line that says whose step raised it.

    ``found`` are names of cells and tracebacks. Those that differ in numbers alone, an address or
    how often it was called, are one.
    """
    cells: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for cell, traceback in found:
        alike = without_numbers(traceback)
        first.setdefault(alike, traceback)
        where = cells.setdefault(alike, [])
        if cell not in where:
            where.append(cell)
    for alike, traceback in first.items():
        where = cells[alike]
        many = f" and {len(where) - 1} more" if len(where) > 1 else ""
        yield f"{where[0]}{many} raised, from the model's own first line on:", traceback


def without_numbers(text: str) -> str:
    """Return an error's words without their numbers; frames of a traceback stay as they are."""
    return "\n".join(
        line if line.startswith("  ") else _NUMBERS.sub("#", line) for line in text.splitlines()
    )


def predicted(run: Run) -> str:
    """Return in a sentence how far predicted peaks are from measured ones, "" without any."""
    by_line = {
        outcome.cell for outcome in _predicted_peaks(run) if "measured_at_batches" in outcome.notes
    }
    off = {cell: error for cell, error in errors(run).items() if cell not in by_line}
    alone = [cell for cell in unchecked(run) if cell not in by_line]
    parts = []
    if off:
        parts.append(f"predicted from fake tensors: {_compared(off)}")
    if by_line:
        parts.append(f"{len(by_line)} measured at small batches, not predicted")
    if alone:
        parts.append(f"{len(alone)} predicted and not checked, for none was measured beside them")
    return f"peaks{' ' if off else ': '}{'; '.join(parts)}" if parts else ""


def _compared(off: Mapping[Cell, float]) -> str:
    exact = sum(error == 0 for error in off.values())
    words = f"{exact} of {len(off)} to the byte"
    if exact == len(off):
        return words
    worst = max(off, key=lambda cell: abs(off[cell]))
    return f"{words}, the largest error {in_words(off[worst])} ({worst})"


def prediction_marks(run: Run) -> list[str]:
    """Return what predicted peaks are not: those off the measured ones, the furthest first.

    Then each reason why peaks were measured instead, or may be too low, once, with the cells it
    holds for.
    """
    deviations = errors(run)
    off = sorted(
        (cell for cell in deviations if deviations[cell]), key=lambda cell: -abs(deviations[cell])
    )
    words = [f"{cell} {in_words(deviations[cell])}" for cell in off]
    lines = [f"predicted_peak differs from the measured peak: {few(words)}"] if off else []
    cells: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for outcome in _predicted_peaks(run):
        for mark in marks(outcome.notes):
            how, _, why = mark.partition(": ")
            _, where = cells.setdefault((how, without_numbers(why)), (mark, []))
            where.append(str(outcome.cell))
    return [
        *lines,
        *(f"predicted_peak of {few(where)}: {mark}" for mark, where in cells.values()),
    ]


def _predicted_peaks(run: Run) -> Iterator[Measurement]:
    for outcome in run.outcomes:
        if isinstance(outcome, Measurement) and outcome.meter == "predicted_peak":
            yield outcome


def leaks(run: Run) -> list[str]:
    """Return a sentence for every cell whose step leaves something behind, each time or once."""
    sentences = []
    for outcome in run.outcomes:
        if not isinstance(outcome, Measurement) or outcome.meter != "leaked":
            continue
        if outcome.values[0]:
            who = outcome.notes.get("kept", "nobody was seen to make them")
            sentences.append(
                f"leak: {outcome.cell} leaves {outcome.values[0]:,} B behind each step: {who}"
            )
    return sentences


def kept(run: Run) -> list[str]:
    """Return what first steps leave alive, once, with the cells that do."""
    cells: dict[str, list[str]] = {}
    for outcome in run.outcomes:
        if not isinstance(outcome, Measurement) or outcome.meter != "kept_after_first":
            continue
        if outcome.values[0]:
            who = outcome.notes.get("kept", "nobody was seen to make them")
            words = f"{outcome.values[0]:,} B stay after the first steps: {who}"
            cells.setdefault(words, []).append(str(outcome.cell))
    return [f"kept: {few(where)}: {words}" for words, where in cells.items()]


def fused_attention(run: Run) -> list[str]:
    """Return where torch's fused attention ran or did not, once, with the cells it holds for."""
    cells: dict[str, list[str]] = {}
    for outcome in run.outcomes:
        words = outcome.notes.get(FUSED) if isinstance(outcome, Measurement) else None
        if words is not None:
            where = cells.setdefault(str(words), [])
            if str(outcome.cell) not in where:
                where.append(str(outcome.cell))
    return [f"fused attention of {few(where)}: {words}" for words, where in cells.items()]


def other_paths(run: Run) -> list[str]:
    """Return a sentence for each cell whose figures were read on different paths of attention."""
    paths: dict[str, dict[str, str]] = {}
    for outcome in run.outcomes:
        if isinstance(outcome, Measurement) and FUSED in outcome.notes:
            path = str(outcome.notes[FUSED])
            paths.setdefault(str(outcome.cell), {}).setdefault(path, outcome.meter)
    return [
        f"other path: in {cell}, "
        + "; but ".join(f"{meter}: fused attention {path}" for path, meter in meters.items())
        for cell, meters in paths.items()
        if len(meters) > 1
    ]


def oddities(run: Run) -> list[str]:
    """Return a sentence for each thing about a model that its figures do not show of themselves."""
    cells: dict[str, list[str]] = {}
    for outcome in run.outcomes:
        if not isinstance(outcome, Measurement):
            continue
        for note, sentence in _ODDITIES.items():
            if note in outcome.notes:
                meter = f"{outcome.meter} of " if note == "unlike_equal_mode" else ""
                where = cells.setdefault(sentence.format(_noted(outcome.notes[note])), [])
                if f"{meter}{outcome.cell}" not in where:
                    where.append(f"{meter}{outcome.cell}")
    return [f"{few(where)}: {said}" for said, where in cells.items()]


def _noted(fact: Fact) -> str:
    """Return what is noted as it is read; a file of others may say words for a number."""
    is_number = isinstance(fact, int | float) and not isinstance(fact, bool)
    return f"{fact:,}" if is_number else str(fact)


def few(cells: Sequence[object]) -> str:
    """Return the first three, and how many there are besides."""
    many = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
    return f"{', '.join(map(str, cells[:3]))}{many}"


FUSED: Final = "fused_attention"
"""The note on whether torch's fused attention ran."""

_ODDITIES: Final[Mapping[str, str]] = {
    "nothing_computed": "{}: what is shown is the cost of that call alone",
    "grad_left": "the model's step leaves grad {}: later steps did not run in their mode",
    "stays_in_training": "{}: it ran as it was built",
    "model_set": "the model set {}",
    "batch_given": "its batch is the same for every batch size; throughput counts its samples: {}",
    "steps_set": "while it was timed, the model set {}: these times are not the experiment's",
    "outside_bytes": "{} B that its step saves for backward lie in memory that torch's allocator "
    "did not hand out, NumPy's say: no peak counts them",
    "unlike_equal_mode": "it should be as in {}: the figure depends on more than the mode",
    "allocation_retries": "memory ran out {} times, and the allocator emptied its cache to go on",
}


def unreadable(run: Run) -> list[str]:
    """Return what meters could not read, a line a meter and device."""
    lines = {
        f"{outcome.meter} on {outcome.cell.device}: {outcome.reason}"
        for outcome in run.outcomes
        if isinstance(outcome, Skipped) and outcome.cause == "unreadable"
    }
    return sorted(lines)


def spent(run: Run) -> str:
    """Return in a sentence where the wall time went."""
    if run.ended is None:
        return "the run did not come to its end"
    seconds = run.ended.seconds
    total = sum(seconds.values())
    parts = ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())
    own = seconds.get("harness", 0.0) + seconds.get("process starts", 0.0)
    share = own / total if total else 0.0
    return f"{total:.1f} s: {parts}; gradbench's own overhead {share:.0%}, process starts included"
