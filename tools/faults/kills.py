"""Kill gradbench's processes by SIGKILL at random moments; count what is lost, doubled or left.

python tools/faults/kills.py --count 100 -o tools/faults/figures/kills.json

A file of figures is gone on with: call it again until each kind has been killed so often, with
``--seconds`` for a part at a time. The moments are spread over the whole life of a command, from
Python's start to its end. A command that is killed itself is started again, or its run resumed, and
that is killed, too: one in `KILLS` comes to its end. A command of which other processes are killed
has to come to its end.
"""

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from in_process import today
from processes import QUIET_S, Attacked

from gradbench.exit_status import ExitStatus
from gradbench.scratch import PREFIX
from gradbench.store.jsonl import Store

MEASURED = (
    *(
        "--batch-size",
        "8",
        "--workload",
        "inference",
        "--grad-mode",
        "global_on,no_grad",
        "--budget",
        "0.2",
    ),
    *("--meter", "step_time,peak_allocated", "--no-semantics"),
)
MODELS = tuple(f"mlp_d{depth}_w8" for depth in range(1, 11))
RUN = ("run", "--preset", "tiny", "--model", ",".join(MODELS[:3]), *MEASURED)
"""Two passes over three blocks: as many measuring processes, below two fork servers."""
LONG_RUN = ("run", "--preset", "tiny", "--model", ",".join(MODELS), *MEASURED)
"""Of which more measuring processes can be killed."""
RESUME = ("run", "--resume", "latest", "--no-semantics")
COMPARE = (
    *("compare", "--base", "HEAD", "--model", "nets:make", "--input", "4,8"),
    *("--workload", "inference", "--grad-mode", "no_grad", "--processes", "3"),
    *("--budget", "60"),  # where other work leaves it undecided, it would go on for minutes
)
NETS = "from torch import nn\n\ndef make():\n    return nn.Linear(8, 8)\n"
KILLS = 8
"""Of one kind, one after the other, before a command is left to come to its end."""
MEASURING = "a measuring process"
KILLS_OF_MEASURING = 15
"""Which a long run has enough of."""
DEPTHS_OF_COMPARE = (1, 2, 3)
"""Steps below the command: supervisors and git, processes of the sides, their forks."""
ANSWERS = (
    *(ExitStatus.OK, ExitStatus.REGRESSION, ExitStatus.INCONCLUSIVE),
    ExitStatus.NOTHING_MEASURED,
)
"""Of a comparison that came to its end."""
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
    ended_early: int = 0  # commands that said why, and were gone on with
    notes: list[str] = field(default_factory=list)

    def add_kill(self, gone_after_s: float) -> None:
        self.kills += 1
        self.slowest_s = max(self.slowest_s, round(gone_after_s, 2))
        self.left_after_2_s += gone_after_s > QUIET_S

    def add_left(self, names: list[str]) -> None:
        self.files_left += len(names)
        self.notes += names


Outcomes = Mapping[tuple[object, str], int]


def outcomes(folder: Path) -> Outcomes:
    """Return how often each cell and meter has an outcome in the latest run; none without one."""
    runs, _ = Store(folder / "results").load_all()
    return Counter((one.cell, one.meter) for one in runs[-1].outcomes) if runs else Counter()


def check_end(folder: Path, count: Count, kept: Outcomes) -> None:
    """Count what a run that came to its end lacks or has twice, and what lies about beside it."""
    runs, _ = Store(folder / "results").load_all()
    found = outcomes(folder)
    wanted = {(cell, meter) for cell in runs[-1].header.cells for meter in runs[-1].header.meters}
    count.lost += len(wanted - set(found)) + len(set(kept) - set(found))
    count.doubled += sum(number > 1 for number in found.values())
    beside = [path.name for path in (folder / "results").iterdir() if path.suffix != ".jsonl"]
    count.add_left([*beside, *temporary(folder)])


def temporary(folder: Path) -> list[str]:
    """Return the names of the folders of ours among the temporary ones."""
    return [path.name for path in (folder / "tmp").glob(f"{PREFIX}*")]


def ended(attacked: Attacked, count: Count) -> bool:
    """Wait for a command's own end; count a hang where there is none."""
    try:
        attacked.process.wait(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        count.hangs += 1
        attacked.end()
        return False
    attacked.end()
    return True


def killed(command: tuple[str, ...], folder: Path, count: Count, rng: random.Random) -> bool:
    """Kill a command at a moment; return whether it had not come to its end before."""
    life = COMPARE if command is COMPARE else RUN
    at_s = moment_s(life, rng)
    attacked = Attacked(command, folder)
    try:
        attacked.process.wait(timeout=at_s)
        if command is not RESUME:
            lived(command, attacked)
    except subprocess.TimeoutExpired:
        attacked.process.kill()
        attacked.process.wait()
        count.add_kill(attacked.seconds_until_gone())
    attacked.end()
    return attacked.process.returncode == -signal.SIGKILL


def kill_run(folder: Path, count: Count, rng: random.Random, kills: int) -> None:
    """Kill a run and what resumes it, and look each time for what was written before."""
    kept: Outcomes = Counter()
    for _ in range(kills):
        if is_sealed(folder):
            break
        if not killed(following(folder), folder, count, rng):
            break
        found = outcomes(folder)
        count.lost += len(set(kept) - set(found))
        kept = found
    if is_sealed(folder) or ended(Attacked(following(folder), folder), count):
        check_end(folder, count, kept)


def following(folder: Path) -> tuple[str, ...]:
    """Return the command that goes on with what there is."""
    begun = [*(folder / "results").glob("*.part"), *(folder / "results").glob("*.jsonl")]
    return RESUME if begun else RUN


def is_sealed(folder: Path) -> bool:
    return bool([*(folder / "results").glob("*.jsonl")]) and not [
        *(folder / "results").glob("*.part")
    ]


def kill_below(depth: int, command: tuple[str, ...] = RUN) -> "Attack":
    """Return the attack on processes so many steps below a run, which is to go on."""

    def attack(folder: Path, count: Count, rng: random.Random, kills: int) -> None:
        moments = sorted(moment_s(command, rng) for _ in range(kills))
        attacked = Attacked(command, folder)
        for moment in moments:
            if not kill_one(attacked, moment, depth, count, rng):
                break
        if ended(attacked, count):
            resume_unless_complete(folder, count)
            check_end(folder, count, {})

    return attack


def kill_one(
    attacked: Attacked, moment: float, depth: int, count: Count, rng: random.Random
) -> bool:
    """Kill one process below a command at a moment; return whether the command still ran."""
    time.sleep(max(0.0, attacked.began + moment - time.monotonic()))
    victim = found_below(attacked, depth, rng)
    if victim is None:  # the command came to its end
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [victim, *victim.children(recursive=True)]
        victim.kill()
        count.add_kill(seconds_until_ended(family))
    return True


def resume_unless_complete(folder: Path, count: Count) -> None:
    """Go on with a run that said why it ended.

    So it does where three in a row were killed that read the machine's facts.
    """
    if not is_sealed(folder):
        count.ended_early += 1
        ended(Attacked(following(folder), folder), count)


def found_below(attacked: Attacked, depth: int, rng: random.Random) -> psutil.Process | None:
    """Return a process at that depth as soon as there is one; None if the command ends first."""
    while attacked.process.poll() is None:
        with contextlib.suppress(psutil.Error):
            if numbers := attacked.below(depth):
                return psutil.Process(rng.choice(numbers))
        time.sleep(0.01)
    return None


def seconds_until_ended(processes: list[psutil.Process]) -> float:
    """Wait until none of the processes runs; return how long that took."""
    began = time.monotonic()
    while any(map(runs, processes)) and time.monotonic() - began < LIMIT_S:
        time.sleep(0.01)
    return time.monotonic() - began


def runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def kill_compare(folder: Path, count: Count, rng: random.Random, kills: int) -> None:
    """Kill comparisons of one project, one after the other; then look what another command left."""
    make_project(folder)
    for _ in range(kills):
        if not killed(COMPARE, folder, count, rng):
            break
    if ended(Attacked(("env", "--check"), folder), count):
        count.add_left([*worktrees(folder), *temporary(folder)])


def kill_below_compare(folder: Path, count: Count, rng: random.Random, kills: int) -> None:
    """Kill processes of one comparison, which is to go on, or to say in a line why it does not."""
    make_project(folder)
    moments = sorted(moment_s(COMPARE, rng) for _ in range(kills))
    attacked = Attacked(COMPARE, folder)
    for moment in moments:
        if not kill_one(attacked, moment, rng.choice(DEPTHS_OF_COMPARE), count, rng):
            break
    if ended(attacked, count):
        status, said = attacked.process.returncode, (folder / "said").read_text("utf-8")
        if status not in ANSWERS:
            count.ended_early += 1
        if status not in (*ANSWERS, ExitStatus.USAGE) or "Traceback" in said:
            count.notes.append(f"status {status}: {said[-300:]}")
        count.add_left([*worktrees(folder), *temporary(folder)])


def worktrees(folder: Path) -> list[str]:
    """Return the worktrees of a repository but its own."""
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=folder, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()[1:]


def make_project(folder: Path) -> None:
    """Make a repository with a model, to be compared with itself."""
    (folder / "nets.py").write_text(NETS, "utf-8")
    commit_all(folder)


def commit_all(folder: Path) -> None:
    """Make a repository of what Python there is in a folder."""
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for arguments in (("init", "-q"), ("add", "*.py"), ("commit", "-q", "-m", "first")):
        subprocess.run(["git", *who, *arguments], cwd=folder, check=True)


def moment_s(command: tuple[str, ...], rng: random.Random) -> float:
    """Return a moment of a command's life, in seconds from its start."""
    if command not in LIVES_S:
        with tempfile.TemporaryDirectory(prefix="attacked-") as name:
            folder = Path(name)
            if command is COMPARE:
                make_project(folder)
            undisturbed = Attacked(command, folder)
            undisturbed.process.wait(timeout=LIMIT_S)
            lived(command, undisturbed)
            undisturbed.end()
    return rng.uniform(0, LIVES_S[command])


def lived(command: tuple[str, ...], attacked: Attacked) -> None:
    """Note how long a command takes when nobody kills it: the shortest is least other work's."""
    took_s = time.monotonic() - attacked.began
    LIVES_S[command] = min(took_s, LIVES_S.get(command, took_s))
    print(f"{command[0]} takes {took_s:.1f} s", file=sys.stderr, flush=True)


LIVES_S: dict[tuple[str, ...], float] = {}


Attack = Callable[[Path, Count, random.Random, int], None]
ATTACKS: Mapping[str, Attack] = {
    "the command": kill_run,
    "a supervisor": kill_below(1),
    "a fork server": kill_below(2),
    MEASURING: kill_below(3, LONG_RUN),
    "compare": kill_compare,
    "a process of compare": kill_below_compare,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5, help="kills of each kind, in all")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which none is begun")
    parser.add_argument("--only", choices=ATTACKS, action="append")
    parser.add_argument("-o", "--output", type=Path, required=True, help="of figures, extended")
    given = parser.parse_args()
    began, found = time.monotonic(), saved(given.output)
    counts = {name: Count(**found["counts"].get(name, {"victim": name})) for name in ATTACKS}
    kills_before = sum(count.kills for count in counts.values())
    rng = random.Random(kills_before)
    while left := [
        count
        for name, count in counts.items()
        if name in (given.only or ATTACKS) and count.kills < given.count
    ]:
        count = min(left, key=lambda one: one.kills)
        if time.monotonic() - began > given.seconds:
            break
        with tempfile.TemporaryDirectory(prefix="attacked-") as name:
            most = KILLS_OF_MEASURING if count.victim == MEASURING else KILLS
            attack = ATTACKS[count.victim]
            attack(Path(name), count, rng, min(most, given.count - count.kills))
        found["loads"].append(round(psutil.getloadavg()[0], 1))
        print(asdict(count), file=sys.stderr, flush=True)
        save(given.output, found, counts)


def saved(path: Path) -> dict[str, Any]:
    """Return what a file of figures holds, or what an empty one would."""
    if not path.exists():
        return {"began": today(), "loads": [], "counts": {}}
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return {**found, "counts": {row["victim"]: row for row in found["counts"]}}


def save(path: Path, found: Mapping[str, Any], counts: Mapping[str, Count]) -> None:
    """Write the figures, whole at any moment."""
    content = {
        **found,
        "date": today(),
        "cores": psutil.cpu_count(),
        "loads": [min(found["loads"]), max(found["loads"])],
        "counts": [asdict(count) for count in counts.values()],
    }
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    draft.replace(path)


if __name__ == "__main__":
    main()
