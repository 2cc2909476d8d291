"""The facts of an environment that tell one machine and one torch from another."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Final

from ..records.measurements import FINGERPRINT, Fact

MACHINE: Final = ("host", "cpu", "cores", "gpu")
"""Of the fingerprint, what only times depend on; figures that repeat do not."""
SOFTWARE: Final = tuple(name for name in FINGERPRINT if name not in MACHINE)
"""Of the fingerprint, what every figure depends on."""


def mismatch(
    first: Mapping[str, Fact], second: Mapping[str, Fact], names: Sequence[str] = FINGERPRINT
) -> str | None:
    """Return in words how two environments differ in the facts named, or None if they agree."""
    different = [
        f"{name} was {first.get(name, 'not recorded')!r}, is {second.get(name, 'not there')!r}"
        for name in names
        if first.get(name) != second.get(name)
    ]
    return "; ".join(different) or None


def machine_mark(facts: Mapping[str, Fact]) -> str:
    """Return six characters that tell this machine from others, to keep their times apart."""
    identity = json.dumps([str(facts.get(name, "not recorded")) for name in MACHINE])
    return hashlib.sha256(identity.encode()).hexdigest()[:6]
