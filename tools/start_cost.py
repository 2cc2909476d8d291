"""Print what starting costs against another revision: ``import gradbench``, and ``--help``.

Both trees take turns, in a random order each round, so that what else the machine does hits both.
Times are CPU times of a whole process; each ratio has its 95% interval.

    python tools/start_cost.py --base main --rounds 20
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from gradbench.comparison import worktree
from gradbench.stats.estimates import paired_ratio

STARTS: Final = {
    "an empty program": ("-c", "pass"),
    "import gradbench": ("-c", "import gradbench"),
    "gradbench --help": ("-m", "gradbench", "--help"),
    "gradbench run --help": ("-m", "gradbench", "run", "--help"),
}
UNTIMED: Final = 2
"""Rounds that write byte code and fill the file cache."""


def cpu_s(tree: Path, arguments: tuple[str, ...]) -> float:
    """Return the CPU time of a Python that imports gradbench from a tree."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=tree,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="HEAD", help="the revision to compare with")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    with (
        tempfile.TemporaryDirectory() as folder,
        worktree.checked_out(root, given.base, Path(folder) / "base") as base,
    ):
        for name, arguments in STARTS.items():
            times_s: dict[Path, list[float]] = {root: [], base: []}
            for number in range(UNTIMED + given.rounds):
                for tree in random.sample(list(times_s), 2):
                    taken_s = cpu_s(tree, arguments)
                    if number >= UNTIMED:
                        times_s[tree].append(taken_s)
            candidate, reference = (np.array(times_s[tree]) for tree in (root, base))
            ratio = paired_ratio(candidate, reference)
            print(
                f"{name:22} {np.median(candidate) * 1e3:6.0f} ms  "
                f"{ratio.point:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of {given.base}",
                flush=True,
            )


if __name__ == "__main__":
    main()
