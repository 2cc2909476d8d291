"""Interrupt commands by Ctrl-C, twice within a second, at random moments; count the tracebacks.

python tools/faults/interrupts.py --count 100 -o tools/faults/figures/interrupts.json
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
from datetime import UTC, datetime
from pathlib import Path

import psutil
from kills import COMPARE, RUN, make_project
from processes import QUIET_S, Attacked

from gradbench.scratch import PREFIX

COMMANDS = {"run": RUN, "compare": COMPARE, "list": ("list", "--preset", "full")}
LATEST_S = {"run": 20.0, "compare": 20.0, "list": 2.0}
"""Until when after its start a command is interrupted."""
LIMIT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True, help="written after each")
    given = parser.parse_args()
    rng, loads = random.Random(given.seed), [psutil.getloadavg()[0]]
    counts = {name: Counter(interrupted=0) for name in COMMANDS}
    for number in range(given.count):
        for name, count in counts.items():
            with tempfile.TemporaryDirectory(prefix="attacked-") as folder:
                interrupt(name, Path(folder), count, rng)
            print(f"{name}: {number + 1} of {given.count}", file=sys.stderr, flush=True)
            loads.append(psutil.getloadavg()[0])
        found = {
            "date": datetime.now(UTC).date().isoformat(),
            "loads": [round(min(loads), 1), round(max(loads), 1)],
            "counts": {name: dict(count) for name, count in counts.items()},
        }
        given.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def interrupt(name: str, folder: Path, count: Counter[str], rng: random.Random) -> None:
    """Interrupt a command as a terminal does: every process of its group, twice."""
    make_project(folder)
    attacked = Attacked(COMMANDS[name], folder, own_group=True)
    first_s = rng.choice((rng.uniform(0.05, 0.5), rng.uniform(0.5, LATEST_S[name])))
    for pause_s in (first_s, rng.uniform(0, 1)):
        time.sleep(pause_s)
        if attacked.process.poll() is None:
            os.killpg(attacked.process.pid, signal.SIGINT)
            count["interrupted"] += pause_s == first_s
    try:
        attacked.process.wait(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        count["hangs"] += 1
    said = (folder / "said").read_text("utf-8", errors="replace")
    count["tracebacks"] += "Traceback" in said
    # Python itself imports what it needs before any line of gradbench is read.
    count["of Python's start"] += "Traceback" in said and "gradbench" not in said
    status = attacked.process.returncode
    count["other statuses"] += status not in (0, 130, -signal.SIGINT)
    count["processes left"] += attacked.seconds_until_gone() > QUIET_S
    count["files left"] += len(list((folder / "tmp").glob(f"{PREFIX}*")))
    if "Traceback" in said:
        print(said[-3000:], file=sys.stderr)
    attacked.end()


if __name__ == "__main__":
    main()
