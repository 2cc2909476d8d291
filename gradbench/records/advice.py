"""What a short study of one model found beside its run: plain results for screens and pages."""

from dataclasses import dataclass

from ..experiment.matrix import Cell
from .predictions import Fit
from .run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about a model that costs, or may go wrong: what, on which line, and the cure."""

    what: str
    line: str = ""  # "nets.py:12 in forward", or ""
    cure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestBatch:
    """The largest batch that fits for one purpose; without ``fit``, the reason."""

    purpose: str
    cell: Cell
    fit: Fit | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """A step as it is and changed, timed in turns: ns a step, and equal places are a round."""

    plain_ns: tuple[float, ...]
    changed_ns: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A change worth a try: what was measured with it, or why it was not.

    Where a change is one of memory alone, ``fits`` has the largest batches without and with it.
    """

    name: str
    cell: Cell | None = None  # changed; None where there is nothing to run
    turns: Turns | None = None
    adds_bytes: int | None = None  # the changed step
    fits: tuple[Fit, Fit] | None = None
    not_tried: str = ""
    fails: str = ""  # what it says where it does not run


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A run of one inference block, and what else was asked of its model.

    ``memory_bytes`` is the budget of ``batches``, ``memory_of`` says whose memory that is.
    ``thorough`` is the command that measures the same at full length, "" where no command line
    names the model.
    """

    run: Run
    cells: tuple[Cell, ...]  # of the block that the advice is about
    findings: tuple[Finding, ...] = ()
    batches: tuple[LargestBatch, ...] = ()
    memory_bytes: int = 0
    memory_of: str = ""
    trials: tuple[Trial, ...] = ()
    thorough: str = ""
