"""Which runs and which series of a history are wanted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from ..errors import GradbenchError, Impossible
from ..experiment.matrix import Cell, device_name
from .figures import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What is wanted; an empty tuple or text wants all, as does None."""

    models: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    grad_modes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    meters: tuple[str, ...] = ()
    since: str = ""  # as `parse_since` returns it
    commits: frozenset[str] | None = None
    renamed: Mapping[str, str] | None = None  # a model's old name -> its new one

    def takes_run(self, origin: Origin) -> bool:
        """Return whether a run is wanted; one with uncommitted changes is of no commit."""
        of_commit = self.commits is None or (not origin.dirty and origin.commit in self.commits)
        return of_commit and origin.started >= self.since

    def takes_cell(self, cell: Cell) -> bool:
        """Return whether a cell is wanted, its model under its new name."""
        return all(
            not wanted or value in wanted
            for value, wanted in (
                (cell.model, self.models),
                (cell.workload, self.workloads),
                (cell.grad_mode, self.grad_modes),
                (cell.device, self.devices),
            )
        )

    def columns(self) -> dict[str, frozenset[str]]:
        """Return by a dataset's column the texts of rows that may be wanted; others are not.

        A model stands there under its old name too, and a device as it was written before there
        was one way to.
        """
        old = {old for old, new in (self.renamed or {}).items() if new in self.models}
        first = {f"{device}:0" for device in self.devices if ":" not in device}
        wanted = {
            "model": {*self.models, *old},
            "workload": {*self.workloads},
            "grad_mode": {*self.grad_modes},
            "device": {*self.devices, *first},
            "meter": {*self.meters},
        }
        return {column: frozenset(texts) for column, texts in wanted.items() if texts}


def parse_renamed(pairs: Sequence[str]) -> dict[str, str]:
    """Return old name -> new name of ``OLD=NEW`` each; raise `GradbenchError` for anything else."""
    renamed: dict[str, str] = {}
    for pair in pairs:
        old, sign, new = pair.partition("=")
        if not (sign and old and new):
            raise GradbenchError(f"{pair!r} is no renaming: write OLD=NEW")
        if renamed.get(old, new) != new:
            raise GradbenchError(f"{old!r} is renamed twice, to {renamed[old]!r} and {new!r}")
        renamed[old] = new
    return renamed


def parse_since(text: str) -> str:
    """Return a date or a time as runs write theirs, in UTC, so that texts compare as times do.

    Raise `Impossible` for what is neither.
    """
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise Impossible(f"--since {text!r} is no date: write 2026-05-31") from None
    aware = when if when.tzinfo else when.replace(tzinfo=UTC)
    try:
        return aware.astimezone(UTC).isoformat()
    except OverflowError:  # at the first or the last day that there is
        raise Impossible(f"--since {text!r} is no time in UTC: write 2026-05-31") from None


def canonical_devices(names: Sequence[str]) -> tuple[str, ...]:
    """Return devices as cells name them."""
    return tuple(str(device_name(name)) for name in names)
