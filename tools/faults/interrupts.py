"""Interrupt commands by Ctrl-C at random moments; count the tracebacks, and what is left.

python tools/faults/interrupts.py --count 100 -o tools/faults/figures/interrupts.json

Commands are interrupted twice within a second, in their first half second or later; and ``list``
once, in its first 0.7 s, in which little but Python's own start and imports goes on. A file of
figures is gone on with, as that of kills.py is.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from in_process import today
from kills import COMPARE, RUN, make_project, temporary
from processes import QUIET_S, Attacked

LIMIT_S = 120.0
EARLY_S = 0.5
SAYS_NOTHING = (0, 130, -signal.SIGINT)


@dataclass(frozen=True)
class Kind:
    """A command, and when after its start it is interrupted."""

    command: tuple[str, ...]
    latest_s: float
    twice: bool = True
    times: int = 1  # of the count

    def moments_s(self, rng: random.Random) -> list[float]:
        """Return the moments, each in seconds after the one before it."""
        if not self.twice:
            return [rng.uniform(0, self.latest_s)]
        first = rng.choice((rng.uniform(0, EARLY_S), rng.uniform(EARLY_S, self.latest_s)))
        return [first, rng.uniform(0, 1)]


LIST = ("list", "--preset", "full")
KINDS: Mapping[str, Kind] = {
    "run": Kind(RUN, 20.0),
    "compare": Kind(COMPARE, 20.0),
    "list": Kind(LIST, 2.0),
    "list, once, in its first 0.7 s": Kind(LIST, 0.7, twice=False, times=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5, help="of each command, in all")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which none is begun")
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("-o", "--output", type=Path, required=True, help="of figures, extended")
    given = parser.parse_args()
    # A shell has its background jobs ignore Ctrl-C, and what they start would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began, found = time.monotonic(), saved(given.output)
    counts = {name: Counter(found["counts"].get(name, {})) for name in KINDS}
    rng = random.Random(sum(count["started"] for count in counts.values()))
    wanted = {
        name: kind.times * given.count
        for name, kind in KINDS.items()
        if name in (given.only or KINDS)
    }
    while left := [name for name, times in wanted.items() if counts[name]["started"] < times]:
        if time.monotonic() - began > given.seconds:
            break
        name = min(left, key=lambda one: counts[one]["started"] / wanted[one])
        with tempfile.TemporaryDirectory(prefix="attacked-") as folder:
            interrupt(KINDS[name], Path(folder), counts[name], rng)
        found["loads"].append(round(psutil.getloadavg()[0], 1))
        print(name, dict(counts[name]), file=sys.stderr, flush=True)
        content = {
            **found,
            "date": today(),
            "loads": [min(found["loads"]), max(found["loads"])],
            "counts": {one: dict(count) for one, count in counts.items() if count["started"]},
        }
        given.output.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def saved(path: Path) -> dict[str, Any]:
    """Return what a file of figures holds, or what an empty one would."""
    if not path.exists():
        return {"began": today(), "loads": [], "counts": {}}
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def interrupt(kind: Kind, folder: Path, count: Counter[str], rng: random.Random) -> None:
    """Interrupt a command as a terminal does: every process of its group."""
    make_project(folder)
    attacked = Attacked(kind.command, folder, own_group=True)
    count["started"] += 1
    interrupted = False
    for pause_s in kind.moments_s(rng):
        time.sleep(pause_s)
        if attacked.process.poll() is None:
            os.killpg(attacked.process.pid, signal.SIGINT)
            interrupted = True
    count["interrupted"] += interrupted
    try:
        attacked.process.wait(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        count["hangs"] += 1
    said = (folder / "said").read_text("utf-8", errors="replace")
    # Python itself imports what it needs before any line of gradbench is read.
    own = "Traceback" in said and "gradbench" not in said
    count["of Python's start"] += own
    count["tracebacks"] += "Traceback" in said
    status = attacked.process.returncode
    count["other statuses"] += status not in SAYS_NOTHING and not own
    count["processes left"] += attacked.seconds_until_gone() > QUIET_S
    count["files left"] += len(temporary(folder))
    if "Traceback" in said or status not in SAYS_NOTHING:
        print(f"status {status}: {said[-3000:]}", file=sys.stderr)
    attacked.end()


if __name__ == "__main__":
    main()
