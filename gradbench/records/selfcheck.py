"""What a self-check found: plain figures against their targets."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from .. import output_files
from ..errors import StoreError
from .measurements import Fact
from .validation import Misfit, fill, read_json

CPU: Final = "cpu"
OPENING: Final = re.compile(rb'\s*\{\s*"facts"')
"""How a file of it opens."""
SelfCheck = tuple[Sequence["Check"], Mapping[str, Any]]
"""What a self-check found, and the facts of where; ``device`` names it, unless it is the CPU."""


@dataclass(frozen=True, slots=True)
class Check:
    """One figure; ``passed`` is None where there is no target.

    ``value`` is None where nothing could be read: ``detail`` says why.
    """

    name: str
    value: float | None
    unit: str  # "share", "points", "ns", "bytes"
    detail: str
    target: str = ""
    passed: bool | None = None

    @classmethod
    def unreadable(cls, name: str, reason: str) -> Self:
        """Return one that says why there is no figure."""
        return cls(name, None, "", reason)

    @property
    def exact(self) -> bool:
        """Whether its figure repeats to the byte, so that no machine excuses a missed target."""
        return self.unit == "bytes"

    @property
    def words(self) -> str:
        """The value in its unit, or nothing."""
        if self.value is None:
            return ""
        match self.unit:
            case "share":
                return f"{self.value:.2%}" if self.value < 0.1 else f"{self.value:.0%}"
            case "points":
                return f"{self.value * 100:.2f} points"
            case "bytes":
                return f"{self.value:,.0f} B"
            case "ns" | "W":
                return f"{self.value:.1f} {self.unit}"
            case _:
                return f"{self.value:,g} {self.unit}".strip()

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or nothing to be held against: of a target that may be missed."""
        return {True: "met", False: "missed", None: ""}[self.passed]

    @property
    def status(self) -> str:
        """``ok``, ``BAD``, ``unreadable`` or nothing: of what must hold."""
        if self.passed is not None:
            return "ok" if self.passed else "BAD"
        return "unreadable" if self.value is None else ""


def path(folder: Path, device: str = CPU) -> Path:
    """Return where a results folder keeps what the last self-check of a device found."""
    suffix = "" if device == CPU else f"-{device.replace(':', '-')}"
    return folder / f"selfcheck{suffix}.json"


def check_place(file: Path) -> None:
    """Raise `StoreError` where something else is than a self-check of ours."""
    output_files.check(file, like=OPENING, what="self-check")


def load(file: Path) -> SelfCheck | None:
    """Return the checks and the environment of a saved self-check, or None where there is none."""
    with suppress(StoreError, Misfit):
        saved = fill(_Saved, read_json(file))
        return list(saved.checks), saved.facts
    return None


@dataclass(frozen=True, slots=True)
class _Saved:
    """What a file of a self-check holds."""

    checks: tuple[Check, ...]
    facts: Mapping[str, Fact]


def load_all(folder: Path) -> dict[str, SelfCheck]:
    """Return what the last self-check of each device found, by the device's name."""
    records = (load(file) for file in sorted(folder.glob("selfcheck*.json")))
    return {str(one[1].get("device", CPU)): one for one in records if one is not None}
