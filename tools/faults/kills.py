"""Kill gradbench's processes by SIGKILL at random moments; count what is lost, doubled or left.

python tools/faults/kills.py --count 100 -o tools/faults/figures/kills.json

Each kill is a run of its own, of one block, which is then resumed or comes to its end; with 100 of
each kind that takes about an hour on two cores without other work, and with 5 some minutes.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
from processes import QUIET_S, Attacked

from gradbench.scratch import PREFIX
from gradbench.store.jsonl import Store

MEASURED = ("--workload", "inference", "--budget", "0.2", "--meter", "step_time,peak_allocated")
RUN = ("run", "--preset", "tiny", "--model", "mlp_tiny", *MEASURED, "--no-semantics")
COMPARE = (
    *("compare", "--base", "HEAD", "--model", "nets:make", "--input", "4,8"),
    *("--workload", "inference", "--processes", "3"),
)
NETS = "from torch import nn\n\ndef make():\n    return nn.Linear(8, 8)\n"
LIMIT_S = 600.0
"""For one command; longer is a hang."""


@dataclass
class Count:
    """What came of the kills of one kind of process."""

    victim: str
    kills: int = 0
    lost: int = 0  # outcomes that were written and are gone, or never came
    doubled: int = 0
    left_after_2_s: int = 0  # kills after which a process lived longer
    slowest_s: float = 0.0  # until every process was gone
    files_left: int = 0  # folders, worktrees and half files, after the next command
    hangs: int = 0
    notes: list[str] = field(default_factory=list)

    def add_end(self, seconds: float) -> None:
        self.slowest_s = max(self.slowest_s, round(seconds, 2))
        self.left_after_2_s += seconds > QUIET_S


def outcomes(folder: Path) -> Counter[tuple[object, str]]:
    """Return how often each cell and meter has an outcome in the latest run; none without one."""
    runs, _ = Store(folder / "results").load_all()
    if not runs:
        return Counter()
    return Counter((one.cell, one.meter) for one in runs[-1].outcomes)


def check_run(count: Count, folder: Path, kept: Mapping[tuple[object, str], int]) -> None:
    """Count what the finished run lacks or has twice, and what lies about beside it."""
    runs, _ = Store(folder / "results").load_all()
    found = outcomes(folder)
    wanted = {(cell, meter) for cell in runs[-1].header.cells for meter in runs[-1].header.meters}
    count.lost += len(wanted - set(found)) + len(set(kept) - set(found))
    count.doubled += sum(number > 1 for number in found.values())
    files = [path.name for path in (folder / "results").iterdir() if path.suffix != ".jsonl"]
    files += [path.name for path in (folder / "tmp").glob(f"{PREFIX}*")]
    count.files_left += len(files)
    count.notes += files


def ended(attacked: Attacked, count: Count) -> bool:
    """Wait for a command's own end; count a hang where there is none."""
    try:
        attacked.process.wait(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        count.hangs += 1
        return False
    return True


def kill_main(folder: Path, count: Count, moment_s: float) -> None:
    attacked = Attacked(RUN, folder)
    time.sleep(moment_s)
    attacked.process.kill()
    attacked.process.wait()
    count.kills += 1
    count.add_end(attacked.seconds_until_gone())
    attacked.end()
    kept = outcomes(folder)
    begun = list((folder / "results").glob("*.part")) if (folder / "results").exists() else []
    again = Attacked(("run", "--resume", "latest", "--no-semantics") if begun else RUN, folder)
    if ended(again, count):
        check_run(count, folder, kept)
    again.end()


def kill_below(depth: int) -> Callable[[Path, Count, float], None]:
    """Return the attack on a process so many steps below the command, which is to go on."""

    def attack(folder: Path, count: Count, moment_s: float) -> None:
        attacked = Attacked(RUN, folder)
        time.sleep(moment_s)
        while attacked.process.poll() is None:
            victims = []
            with contextlib.suppress(psutil.Error):
                victims = attacked.below(depth)
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(victims), signal.SIGKILL)
                    count.kills += 1
                break
            time.sleep(0.01)
        if ended(attacked, count):
            count.add_end(attacked.seconds_until_gone())
            check_run(count, folder, {})
        attacked.end()

    return attack


def make_project(folder: Path) -> None:
    """Make a repository with a model, to be compared with itself."""
    (folder / "nets.py").write_text(NETS, "utf-8")
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for arguments in (("init", "-q"), ("add", "nets.py"), ("commit", "-q", "-m", "first")):
        subprocess.run(["git", *who, *arguments], cwd=folder, check=True)


def kill_compare(folder: Path, count: Count, moment_s: float) -> None:
    make_project(folder)
    attacked = Attacked(COMPARE, folder)
    time.sleep(moment_s)
    attacked.process.kill()
    attacked.process.wait()
    count.kills += 1
    count.add_end(attacked.seconds_until_gone())
    attacked.end()
    following = Attacked(("env", "--check"), folder)
    if ended(following, count):
        listed = subprocess.run(
            ["git", "worktree", "list"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.splitlines()[1:]
        left = [*listed, *(path.name for path in (folder / "tmp").glob(f"{PREFIX}*"))]
        count.files_left += len(left)
        count.notes += left
    following.end()


ATTACKS: dict[str, tuple[Callable[[Path, Count, float], None], tuple[str, ...]]] = {
    "the command": (kill_main, RUN),
    "a supervisor": (kill_below(1), RUN),
    "a fork server": (kill_below(2), RUN),
    "a measuring process": (kill_below(3), RUN),
    "compare": (kill_compare, COMPARE),
}
"""Who is killed -> how, and what runs meanwhile."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5, help="kills of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=ATTACKS, action="append")
    parser.add_argument("-o", "--output", type=Path, required=True, help="written after each kill")
    given = parser.parse_args()
    rng, counts = random.Random(given.seed), {name: Count(name) for name in given.only or ATTACKS}
    random.seed(given.seed)
    loads = [psutil.getloadavg()[0]]
    for number in range(given.count):
        for victim, count in counts.items():
            attack, _ = ATTACKS[victim]
            kills, moment_s = count.kills, rng.uniform(0, duration_s(victim))
            while count.kills == kills:  # it may be over before its moment has come
                with tempfile.TemporaryDirectory(prefix="attacked-") as name:
                    attack(Path(name), count, moment_s)
                moment_s /= 2
            print(f"{victim}: {number + 1} of {given.count}", file=sys.stderr, flush=True)
            loads.append(psutil.getloadavg()[0])
            found = {
                "date": datetime.now(UTC).date().isoformat(),
                "cores": psutil.cpu_count(),
                "loads": [round(min(loads), 1), round(max(loads), 1)],
                "counts": [asdict(each) for each in counts.values()],
            }
            given.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


_DURATIONS: dict[tuple[str, ...], float] = {}


def duration_s(victim: str) -> float:
    """Return how long the attacked command takes when nobody kills it."""
    _, arguments = ATTACKS[victim]
    if arguments not in _DURATIONS:
        with tempfile.TemporaryDirectory(prefix="attacked-") as name:
            folder = Path(name)
            if arguments is COMPARE:
                make_project(folder)
            undisturbed = Attacked(arguments, folder)
            undisturbed.process.wait(timeout=LIMIT_S)
            _DURATIONS[arguments] = time.monotonic() - undisturbed.began
            undisturbed.end()
    return _DURATIONS[arguments]


if __name__ == "__main__":
    main()
