"""Compare models that misbehave in the working tree alone, a good one among them; count surprises.

python tools/faults/misbehaving_versions.py > tools/faults/figures/misbehaving_versions.json
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import misbehaving_models
import psutil
from in_process import today
from kills import ANSWERS, commit_all, temporary, worktrees
from processes import Attacked

GOOD = "good"
NAMES = (*misbehaving_models.MISBEHAVING, GOOD)
BASE = "def {name}():\n    return misbehaving_models.good()\n"
CANDIDATE = "def {name}():\n    return misbehaving_models.MISBEHAVING[{name!r}]()\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=15.0, help="seconds for one answer")
    parser.add_argument("--only", action="append", choices=NAMES)
    given = parser.parse_args()
    names = [*(given.only or NAMES[:-1]), GOOD]
    with tempfile.TemporaryDirectory(prefix="attacked-") as top:
        folder = Path(top)
        make_project(folder, names)
        attacked = Attacked(command(names, given.limit), folder)
        attacked.process.wait()
        took_s = time.monotonic() - attacked.began
        left = attacked.seconds_until_gone()
        said = (folder / "said").read_text("utf-8")
        found = {
            "date": today(),
            "load": round(psutil.getloadavg()[0], 1),
            "models": len(names) - 1,
            "limit_s": given.limit,
            "took_s": round(took_s, 1),
            "status": attacked.process.returncode,
            "answered": attacked.process.returncode in ANSWERS,
            "traceback": "Traceback" in said,
            "gone_after_s": round(left, 2),
            "files_left": [*worktrees(folder), *temporary(folder)],
            **judged(said, names),
        }
        attacked.end()
    json.dump(found, sys.stdout, indent=1)
    print()


def make_project(folder: Path, names: list[str]) -> None:
    """Make a repository whose models are good, and misbehave in the working tree."""
    shutil.copy(misbehaving_models.__file__, folder)
    for template in (BASE, CANDIDATE):
        bodies = [(BASE if name == GOOD else template).format(name=name) for name in names]
        (folder / "nets.py").write_text(
            "\n\n".join(["import misbehaving_models", *bodies]), "utf-8"
        )
        if template is BASE:
            commit_all(folder)


def command(names: list[str], limit_s: float) -> tuple[str, ...]:
    models = ",".join(f"nets:{name}" for name in names)
    return (
        *("compare", "--base", "HEAD", "--model", models, "--input", "4,4", "--device", "cpu"),
        *("--workload", "inference", "--grad-mode", "no_grad", "--processes", "3"),
        *("--limit", str(limit_s), "--json"),
    )


def judged(said: str, names: list[str]) -> dict[str, object]:
    """Return what the comparison found of each model, and what is missing or strange in that."""
    _, _, text = said.partition("\n{\n")
    answer = json.loads("{" + text) if text else {"verdicts": [], "not_compared": []}
    rows = [*answer["verdicts"], *answer["not_compared"]]
    times = {row["cell"]["model"].removeprefix("nets."): row for row in rows if is_time(row)}
    reasons = {name: row["reason"] for name, row in times.items()}
    numbers = {name for name, row in times.items() if row.get("change") is not None}
    return {
        "missing": [name for name in names if name not in times],
        "reasons_of_several_lines": [name for name, why in reasons.items() if "\n" in why],
        "numbers_of": sorted(numbers - {GOOD} - misbehaving_models.MAY_STEP),
        "good_has_numbers": GOOD in numbers,
        "verdicts": {name: row.get("verdict", "not compared") for name, row in times.items()},
        "reasons": {name: why for name, why in reasons.items() if name not in numbers},
    }


def is_time(row: dict[str, object]) -> bool:
    return row["meter"] == "step_time"


if __name__ == "__main__":
    main()
