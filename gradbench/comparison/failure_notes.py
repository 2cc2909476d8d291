"""Notes which side of a comparison cannot step a cell, and why; a signal counts the second time."""

from pathlib import Path

from .. import devices
from ..errors import Impossible
from ..experiment.matrix import Cell
from .checkouts import SIDES, Version
from .process import Failed, Lost
from .replicate_results import Results


class KilledOnce(Exception):
    """A signal has ended a side, perhaps of somebody else's will: it is tried again."""


class FailureNotes:
    """Adds to results which side cannot step a cell, in its own words."""

    def __init__(self, results: Results, base: Version, candidate: Version) -> None:
        self._results, self._versions = results, (base, candidate)
        self._killed_once: set[tuple[Cell | None, str]] = set()

    def is_first_kill(self, failure: Failed, cell: Cell | None) -> bool:
        """Return whether a signal of others has ended this side for the first time, and keep it.

        ``cell`` is what it was asked about; None is the start, or an import.
        """
        killed = cell, failure.side
        first = failure.killed and killed not in self._killed_once
        self._killed_once |= {killed} if first else set()
        return first

    def note(self, cell: Cell, failure: Failed) -> None:
        """Note a failure of a side, in its own words.

        Raise `KilledOnce` where it is to be tried again, and `Impossible` where the device takes
        one process at a time.
        """
        if self.is_first_kill(failure, cell):
            raise KilledOnce
        if devices.find(cell.device).occupied(failure.why):
            raise Impossible(
                f"{cell.device} takes one process at a time, and a comparison needs one for each "
                "side: set its compute mode to DEFAULT (nvidia-smi -c DEFAULT), or leave it out "
                "(--device cpu)"
            )
        self.fail(cell, failure, failure.why)

    def lost(self, cell: Cell, failure: Failed) -> Lost:
        """Note a failure from which the processes do not go on; return it as that."""
        self.note(cell, failure)
        return failure if isinstance(failure, Lost) else Lost(failure.side, failure.why)

    def fail(self, cell: Cell, failure: Failed, why: str) -> None:
        """Note why a side cannot step a cell, and whether that is in doubt.

        A candidate that had all of its time is not to be trusted, nor one for which there was not
        enough memory each time; a base may be able to.
        """
        self._results.failures.setdefault(cell, {})[failure.side] = why
        if failure.by_others or (failure.doubt and failure.side == SIDES[0]):
            self._results.doubts[cell, failure.side] = failure.doubt
        if failure.side == SIDES[0] and (lacking := self._lacking(failure.missing)):
            self._results.lacking[cell] = lacking

    def _lacking(self, missing: str) -> str:
        """Return a file that the base's tree lacks and the candidate's has, as both name it."""
        base, candidate = (version.tree.resolve() for version in self._versions)
        file = Path(missing).resolve()
        if not missing or base == candidate or not file.is_relative_to(base):
            return ""
        inside = file.relative_to(base)
        return str(inside) if (candidate / inside).exists() else ""
