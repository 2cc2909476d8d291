"""What is said beneath predicted peaks and fits: each thing once, with the blocks it holds for."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Literal

from ..experiment.matrix import Cell, by_block
from ..records.predictions import BUILD_FAILS, STEP_FAILS, Fit, NoPrediction, Prediction
from .run_sentences import few, raised, without_numbers

Found = Mapping[Cell, Prediction | NoPrediction] | Mapping[Cell, Fit | NoPrediction]

UNCHECKED: Final = "too large for one, of several ranks, or not of the CPU"


@dataclass(frozen=True, slots=True)
class Note:
    """One line; ``kind`` says how it should look."""

    text: str
    kind: Literal["doubt", "proof", "none"]


def notes(found: Found) -> Iterator[Note]:
    """Yield what may make a real peak another than the predicted one, and why some have none."""
    known = [one for one in found.values() if not isinstance(one, NoPrediction)]
    yield from (Note(text, "doubt") for text in _measured(found))
    yield from (Note(text, "proof") for text in _checked(known))
    if unprobed := _operators(found, attrgetter("unprobed")):
        yield Note(f"not counted, what these need inside: {unprobed}", "doubt")
    if otherwise := _operators(found, attrgetter("run_otherwise")):
        yield Note(
            f"the device has other operators for {otherwise}: where it is present, its own are "
            "predicted",
            "doubt",
        )
    yield from (Note(text, "none") for text in _reasons(found))


def tracebacks(found: Found) -> Iterator[tuple[str, str]]:
    """Yield each of the user's tracebacks once, after a line that says whose step raised it."""
    return raised(
        (_where([cell], found), one.frames)
        for cell, one in found.items()
        if isinstance(one, NoPrediction) and one.frames
    )


def _measured(found: Found) -> list[str]:
    """Return why steps were measured instead."""
    whys = [
        (cell, (one.how, without_numbers(one.why_measured)), f"{one.how}: {one.why_measured}")
        for cell, one in found.items()
        if not isinstance(one, NoPrediction) and one.how
    ]
    return _once(whys, found)


def _reasons(found: Found) -> list[str]:
    """Return why there is no prediction, unless a traceback says it."""
    whys = [
        (cell, without_numbers(one.reason), one.reason)
        for cell, one in found.items()
        if isinstance(one, NoPrediction)
        and not (one.frames and _own_words(one.reason) in one.frames)
    ]
    return _once(whys, found)


def _own_words(reason: str) -> str:
    return reason.removeprefix(STEP_FAILS).removeprefix(BUILD_FAILS)


def _operators(found: Found, of: Callable[[Prediction | Fit], Iterable[str]]) -> str:
    """Return operators in a list, each with the models that have it, unless all of them do."""
    known = {cell: one for cell, one in found.items() if not isinstance(one, NoPrediction)}
    every = dict.fromkeys(cell.model for cell in known)
    models: dict[str, dict[str, None]] = {}
    for cell, one in known.items():
        for operator in of(one):
            models.setdefault(operator, {})[cell.model] = None
    return ", ".join(
        name if len(models[name]) == len(every) else f"{name} ({few([*models[name]])})"
        for name in sorted(models)
    )


def _once(whys: Iterable[tuple[Cell, object, str]], found: Found) -> list[str]:
    """Return texts with their cells; what is alike is said once, in the words of the first."""
    texts: dict[object, str] = {}
    cells: dict[object, list[Cell]] = {}
    for cell, alike, text in whys:
        texts.setdefault(alike, text)
        cells.setdefault(alike, []).append(cell)
    return [f"{_where(cells[alike], found)}: {text}" for alike, text in texts.items()]


def _where(cells: Collection[Cell], found: Found) -> str:
    """Return the blocks whose cells are all among these, and of others each mode that is."""
    names: list[str] = []
    for block, members in by_block(found).items():
        fitted = any(isinstance(found[cell], Fit) for cell in found)
        name = block.family if fitted else str(block)
        those = [cell.grad_mode for cell in members if cell in cells]
        names += [name] if len(those) == len(members) else [f"{name} {mode}" for mode in those]
    return few(names)


def _checked(known: Collection[Prediction | Fit]) -> Iterator[str]:
    """Yield what was held against a measured step, and that some was not."""
    batches = {one.checked_at for one in known if not one.how}
    for batch in sorted(batch for batch in batches if batch is not None):
        yield f"checked by measured steps at batch {batch}: equal to the byte"
    if None in batches:
        some = "some are " if len(batches) > 1 else ""
        yield f"{some}not checked by a measured step: {UNCHECKED}"
