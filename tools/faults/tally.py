"""What an attack has found so far: counts by kind, in a file from which a later call goes on."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from in_process import today

WRONG = ("traceback", "hang", "wrong exit 0", "raw control character")
"""What must not be found: counted where there is none, too."""
EXAMPLES = 12
"""Of each kind that are kept in words."""
EACH = 20
"""Attempts between two writes of the file."""


class Tally:
    """Counts of one attack, under its name in a file of figures."""

    def __init__(self, name: str, found: dict[str, Any]) -> None:
        self.name = name
        self.tried: int = found.pop("tried", 0)
        self.problems: dict[str, list[str]] = found.pop("problems", {})
        self.kinds = Counter(found)

    @classmethod
    def saved(cls, path: Path, name: str) -> Self:
        """Return what a file says of the attack, or an empty one."""
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return cls(name, content.get(name, {}))

    def numbers(self, count: int, *, seconds: float, keep: Callable[[], object]) -> Iterator[int]:
        """Yield the numbers of the attempts that are left, as long as there is time for them.

        Now and then what has been found is kept: the script may be stopped at any moment.
        """
        began = time.monotonic()
        while self.tried < count and time.monotonic() - began < seconds:
            yield self.tried
            self.tried += 1
            if self.tried % EACH == 0:
                keep()
                print(f"{self.tried}/{count} {dict(self.kinds)}", file=sys.stderr, flush=True)

    def add(self, kind: str, words: str = "") -> None:
        """Count something; the words, if it has any, are what was asked and came of it."""
        self.kinds[kind] += 1
        examples = self.problems.setdefault(kind, []) if words else []
        if len(examples) < EXAMPLES:
            examples.append(words)

    def plain(self) -> dict[str, Any]:
        """Return it as the file has it."""
        counts = dict.fromkeys(WRONG, 0) | self.kinds
        return {"tried": self.tried, **counts, "problems": self.problems}


def save(path: Path, tallies: Sequence[Tally]) -> None:
    """Write the tallies of one script."""
    content = {"date": today(), **{tally.name: tally.plain() for tally in tallies}}
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
