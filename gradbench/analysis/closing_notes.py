"""What is said beneath a run's tables, the worst first."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from ..records.measurements import Cause
from ..records.run import Run
from . import run_sentences
from .diagnosis import possible_interference

EXPECTED: Final[tuple[Cause, ...]] = ("cannot_train", "impossible", "unavailable")
"""Causes that say nothing against the run: the modes, the axes or the machine have them."""


@dataclass(frozen=True, slots=True)
class Note:
    """One line; ``kind`` says how it should look, ``always`` that it is no line to be left out.

    ``in_full`` is for one that another says in short: it is shown where all are asked for.
    """

    text: str
    kind: Literal["lost", "interference", "aside"]
    always: bool = False
    in_full: bool = False


def closing_notes(run: Run) -> list[Note]:
    """Return what a reader of the tables should know, the worst first.

    What has no number and should have, then what may have moved figures, then what is said for
    completeness; what cannot be had at all, in short, and where the time went stand last. What
    has a traceback above is not said again.
    """
    reasons = list(run_sentences.reasons(run, untraced=True))
    expected = list(run_sentences.reasons(run, causes=EXPECTED))
    lost = [reason for reason in reasons if reason not in expected]
    in_short = run_sentences.in_short(run, causes=EXPECTED) if len(expected) > 1 else ""
    return [
        *(Note(text, "lost") for text in lost),
        *(Note(f"possible interference: {text}", "interference") for text in _by_weight(run)),
        *(Note(text, "aside", always=not in_short, in_full=bool(in_short)) for text in expected),
        *(Note(text, "aside") for text in filter(None, (run_sentences.predicted(run),))),
        *(Note(text, "aside") for text in run_sentences.prediction_marks(run)),
        *(Note(text, "aside") for text in run_sentences.kept(run)),
        *(Note(text, "aside") for text in run_sentences.fused_attention(run)),
        *(Note(text, "aside", always=True) for text in filter(None, (in_short,))),
        Note(run_sentences.spent(run), "aside", always=True),
    ]


def _by_weight(run: Run) -> Iterator[str]:
    """Yield what a model did before what the machine did: the first is there on every machine."""
    lines = possible_interference(run)
    of_the_model = {*run_sentences.leaks(run), *run_sentences.oddities(run)}
    yield from (line for line in lines if line in of_the_model)
    yield from (line for line in lines if line not in of_the_model)
