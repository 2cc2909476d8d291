"""What the gate's tools record: a line of JSON for each thing measured, so that sittings add up.

A file is only ever appended to, a compressed line at a time: what is killed loses the thing it was
measuring, what is started again goes on, and `cat` merges files.
"""

import gzip
import json
import math
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from gradbench.comparison.budget import Budget
from gradbench.runner import environment

Line = Mapping[str, Any]

THING: Final = "thing"
"""What a sitting is made of, all of one kind."""


def append(path: Path | None, **line: Any) -> Line:
    """Add a line, with the machine, the load and the command; without a file, return it only."""
    whole = {**line, "where": where(), "load": round(psutil.getloadavg()[0], 1), "by": command()}
    if path is not None:
        with path.open("ab") as file:
            file.write(gzip.compress(json.dumps(whole).encode() + b"\n"))
    return whole


def read(paths: Iterable[Path]) -> list[Line]:
    """Return the lines of files; a last one that was cut short is left out."""
    return [json.loads(text) for path in paths if path.exists() for text in _lines(path)]


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        try:
            yield from file
        except EOFError:
            print(f"{path}: its last line was cut short, and is left out", file=sys.stderr)


def where() -> str:
    facts = environment.capture(["cpu"]).facts
    return ", ".join(f"{name} {facts[name]}" for name in ("cpu", "cores", "torch", "python"))


def command() -> str:
    """Return how this script was called, without what says where it saves and for how long."""
    given, said = iter(sys.argv[1:]), []
    for one in given:
        if one in ("--save", "--minutes"):
            next(given, None)
        else:
            said.append(one)
    return shlex.join([f"tools/{Path(sys.argv[0]).name}", *said])


@dataclass(slots=True)
class Sitting:
    """One call of a script: how long it may go on, and how long what is left will take."""

    minutes: float | None
    left: int  # things to be measured
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = Budget(math.inf if self.minutes is None else 60 * self.minutes)

    def allows(self) -> bool:
        """Return whether another thing would end in time, as far as is known."""
        return self.budget.allows(THING)

    def done(self, what: str, *, seconds: float) -> None:
        """Say what was measured, and how long the rest will take."""
        self.left -= 1
        self.budget.took(THING, seconds)
        print(
            f"{what}: {seconds:.0f} s; {self.left} to go, {self.left * seconds / 60:.0f} min at "
            "this pace",
            file=sys.stderr,
            flush=True,
        )
