"""Which mode an evaluation before training can use: what worked, and what evaluations left."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ..experiment.matrix import Block, Cell
from ..records.measurements import Skipped
from .run_view import LEFT, Value, View

WORKLOAD: Final = "evaluate_then_train"
ASIDE: Final = (LEFT, "predicted_peak")
"""Meters that read no step that was made."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One mode of a block: whether training works after an evaluation in it, and what that left."""

    mode: str
    works: bool | None  # None: nobody knows
    reason: str  # why it does not, in torch's words
    left: Value
    made: str
    changed: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A block of the workload."""

    block: Block
    modes: Sequence[Evaluated]

    @property
    def usable(self) -> list[str]:
        """The modes that an evaluation can use before training."""
        return [one.mode for one in self.modes if one.works]

    @property
    def harmful(self) -> list[Evaluated]:
        """The modes after which training fails."""
        return [one for one in self.modes if one.works is False]


def evaluations(view: View) -> list[Evaluation]:
    """Return the blocks of a run that evaluate before they train."""
    return [
        Evaluation(block, [_evaluated(view, cell) for cell in cells])
        for block, cells in view.blocks.items()
        if block.cell.workload == WORKLOAD
    ]


def sentences(view: View) -> list[str]:
    """Return which modes evaluations can use, a sentence for all blocks without trouble."""
    measured = evaluations(view)
    fine = [one for one in measured if one.usable and not one.harmful]
    lines = [_trouble(one) for one in measured if one.harmful]
    if fine:
        many = f" and {len(fine) - 3} more" if len(fine) > 3 else ""
        where = ", ".join(str(one.block) for one in fine[:3])
        modes = list(dict.fromkeys(mode for one in fine for mode in one.usable))
        lines.append(
            f"An evaluation before training can use {_listed(modes, 'or')}: {where}{many}."
        )
    return lines


def _trouble(evaluation: Evaluation) -> str:
    usable, harmful = evaluation.usable, [one.mode for one in evaluation.harmful]
    can = (
        f"can use {_listed(usable, 'or')} before training, not {_listed(harmful, 'or')}"
        if usable
        else f"leaves a model that cannot be trained, in {_listed(harmful, 'and')}"
    )
    left = next((one for one in evaluation.harmful if one.made), None)
    what = f", which leaves {left.made}" if left is not None and len(harmful) == 1 else ""
    return (
        f"An evaluation in {evaluation.block} {can}{what}: {_first(evaluation.harmful[0].reason)}"
    )


def _first(reason: str) -> str:
    """Return the first sentence of torch's words: the page and the reasons have all of them."""
    first, stop, _ = reason.partition(". ")
    return f"{first}." if stop else reason


def _evaluated(view: View, cell: Cell) -> Evaluated:
    why, measured = _why(view, cell), view.measurement(cell, LEFT)
    notes = measured.notes if measured is not None else {}
    stepped = any(
        view.measurement(cell, meter) for meter in view.outcomes(cell) if meter not in ASIDE
    )
    return Evaluated(
        mode=cell.grad_mode,
        works=True if stepped else None if why is None else False,
        reason=why.reason if why is not None and not stepped else "",
        left=view.value(cell, LEFT),
        made=str(notes.get("made", "")),
        changed=str(notes.get("changed", "")),
    )


def _why(view: View, cell: Cell) -> Skipped | None:
    """Return the reason why the step itself fails."""
    reasons = (one for one in view.outcomes(cell).values() if isinstance(one, Skipped))
    return next((one for one in reasons if one.cause in ("cannot_train", "failed")), None)


def _listed(modes: Sequence[str], word: str) -> str:
    named = [f"`{mode}`" for mode in modes]
    return f" {word} ".join(filter(None, (", ".join(named[:-1]), named[-1])))


def left_in_words(evaluation: Evaluation) -> Iterator[tuple[list[str], str]]:
    """Yield what the evaluations left, once, with the modes that left it so."""
    grouped: dict[str, list[str]] = {}
    for one in evaluation.modes:
        words = "; ".join(
            filter(None, (one.made, one.changed and f"other contents in {one.changed}"))
        )
        if words:
            grouped.setdefault(words, []).append(one.mode)
    yield from ((modes, words) for words, modes in grouped.items())
