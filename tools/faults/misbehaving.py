"""Measure models that misbehave and a good one in one run; count what went wrong.

python tools/faults/misbehaving.py > tools/faults/figures/misbehaving.json
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from datetime import UTC, datetime

import misbehaving_models
import psutil
from processes import MARK

from gradbench import Cell, Measurement, Plan, Skipped
from gradbench.runner import run
from gradbench.workloads.models import Model

METERS = ("step_time", "peak_allocated")
GOOD = "good"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=4.0, help="seconds for one process")
    parser.add_argument("--only", action="append", choices=misbehaving_models.MODELS)
    given = parser.parse_args()
    os.environ[MARK] = str(os.getpid())
    cases = {
        name: misbehaving_models.MODELS[name] for name in given.only or misbehaving_models.MODELS
    }
    cases[GOOD] = ("inference", Model(misbehaving_models.good, misbehaving_models.batch))
    models = {name: model for name, (_, model) in cases.items()}
    cells = [
        Cell(model=name, workload=workload, grad_mode="no_grad")
        for name, (workload, _) in cases.items()
    ]
    plan = Plan(budget_s=0.2, warmup_s=0.05, limit_s=given.limit)
    began = time.monotonic()
    outcomes = []
    for record in run(cells, plan=plan, models=models, meters=METERS):
        if isinstance(record, Measurement | Skipped):
            outcomes.append(record)
            print(
                f"{time.monotonic() - began:6.1f} s  {record.cell.model:32} {record.meter:15} "
                f"{getattr(record, 'reason', 'a number')[:90]}",
                file=sys.stderr,
                flush=True,
            )
    took_s = time.monotonic() - began
    time.sleep(0.5)
    found = Counter((one.cell.model, one.meter) for one in outcomes)
    reasons = [one for one in outcomes if isinstance(one, Skipped)]
    numbers = {one.cell.model for one in outcomes if isinstance(one, Measurement)}
    json.dump(
        {
            "date": datetime.now(UTC).date().isoformat(),
            "load": round(psutil.getloadavg()[0], 1),
            "models": len(cases) - 1,
            "limit_s": given.limit,
            "processes": len(cells) * len(METERS),
            "took_s": round(took_s, 1),
            "missing": [f"{m} {x}" for m in models for x in METERS if not found[m, x]],
            "doubled": [f"{model} {meter}" for (model, meter), n in found.items() if n > 1],
            "reasons_of_several_lines": [
                one.cell.model for one in reasons if len(one.reason.splitlines()) != 1
            ],
            "numbers_of": sorted(numbers - {GOOD} - misbehaving_models.MAY_STEP),
            "good_has_numbers": GOOD in numbers and GOOD not in {r.cell.model for r in reasons},
            "processes_left": living(),
            "causes": dict(Counter(one.cause for one in reasons)),
            "reasons": {f"{one.cell.model} {one.meter}": one.reason for one in reasons},
        },
        sys.stdout,
        indent=1,
    )
    print()


def living() -> list[str]:
    """Return what still runs of all that the models started."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(MARK) == str(os.getpid())
            if marked and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:80])
        except psutil.Error:
            continue
    return found


if __name__ == "__main__":
    main()
