"""What a self-check found: plain figures against their targets."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FILE: Final = "selfcheck.json"
"""Where a results folder keeps what its last self-check found."""


@dataclass(frozen=True, slots=True)
class Check:
    """One figure; ``passed`` is None where there is no target."""

    name: str
    value: float
    unit: str  # "share", "points", "ns", "bytes"
    detail: str
    target: str = ""
    passed: bool | None = None

    @property
    def words(self) -> str:
        """The value in its unit."""
        match self.unit:
            case "share":
                return f"{self.value:.2%}" if self.value < 0.1 else f"{self.value:.0%}"
            case "points":
                return f"{self.value * 100:.2f} points"
            case "bytes":
                return f"{self.value:,.0f} B"
            case _:
                return f"{self.value:.1f} {self.unit}"

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or nothing to be held against."""
        return {True: "met", False: "missed", None: ""}[self.passed]


def load(path: Path) -> tuple[list[Check], dict[str, Any]] | None:
    """Return the checks and the environment of a saved self-check, or None where there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
        return [Check(**row) for row in content["checks"]], content["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
