"""Make runs of many cells that nobody measured, render their pages, and print what that costs.

python tools/page_cost.py            # 16 and 1,000 cells, each in a process of its own
python tools/page_cost.py 84
"""

import argparse
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from gradbench.experiment.matrix import GRAD_MODES, Cell, Matrix
from gradbench.experiment.plan import PROTOCOL
from gradbench.records.measurements import (
    PARTS,
    Breakdown,
    Ended,
    Environment,
    Measurement,
    Record,
    Skipped,
    Started,
)
from gradbench.records.run import Run

ROUNDS = 400
METERS = ("step_time", "latency", "peak_allocated", "peak_transient", "saved_for_backward")
UNREADABLE = ("host_time", "device_time", "energy", "peak_reserved")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=int, nargs="*", default=[16, 1000])
    parser.add_argument("--here", action="store_true", help="in this process, one number only")
    given = parser.parse_args()
    if given.here:
        print(cost(given.cells[0]))
        return
    for count in given.cells:
        command = [sys.executable, __file__, str(count), "--here"]
        begin = time.monotonic()
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        print(f"{answer}; the whole process {time.monotonic() - begin:.1f} s", flush=True)


def cost(count: int) -> str:
    """Render a run of so many cells and return in words what it took."""
    run = synthetic(count)
    begin = time.process_time()
    from gradbench.report import write

    loaded = time.process_time()
    with TemporaryDirectory() as folder:
        page = write(run, Path(folder) / "page.html")
        done, size = time.process_time(), page.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"{len(run.header.cells)} cells: imports {loaded - begin:.1f} s of CPU, "
        f"page {done - loaded:.1f} s, "
        f"peak RSS {peak:.0f} MiB, {size / 1e6:.2f} MB"
    )


def synthetic(count: int) -> Run:
    """Return a run of ``count`` cells with every kind of record."""
    cells: list[Cell] = []
    for number in range(count):
        matrix = Matrix(
            models=[f"model_{number:02}"],
            workloads=["inference", "training", "training_reenabled"],
            batch_sizes=[1, 8, 32, 128],
        )
        cells += matrix
        if len(cells) >= count:
            break
    cells = cells[:count]
    chance = random.Random(0)
    first = Started(
        protocol=PROTOCOL,
        started_at="2026-01-02T03:04:05+00:00",
        command=("gradbench", "run"),
        cells=tuple(cells),
        meters=(*METERS, *UNREADABLE, "breakdown"),
        plan={"budget_s": 6.0},
    )
    facts = Environment(facts={"cpu": "none", "cores": 2, "torch": "2.13.0"})
    records: list[Record] = [first, facts]
    for cell in cells:
        records += outcomes(cell, chance)
    return Run("synthetic", (*records, Ended(seconds={"timing": 1.0}, load_after=0.5)), sealed=True)


def outcomes(cell: Cell, chance: random.Random) -> Iterator[Record]:
    """Yield what a run would hold of one cell."""
    recorded = cell.grad_mode == "global_on"
    if cell.workload == "training" and not recorded:
        for meter in METERS:
            yield Skipped(cell=cell, meter=meter, cause="cannot_train", reason="no graph here")
        return
    step_ns = 10_000 * cell.batch_size * (1 + 0.1 * recorded)
    for meter in ("step_time", "latency"):
        values = [int(step_ns * chance.lognormvariate(0, 0.05)) for _ in range(ROUNDS)]
        yield Measurement(
            cell=cell,
            meter=meter,
            unit="ns",
            values=tuple(values),
            iterations=1,
            exact=False,
            notes={"stopped_by": "precision", "load": 0.5},
        )
    mode = GRAD_MODES.index(cell.grad_mode)
    saved = 4096 * cell.batch_size * (mode == 0)
    for meter, size in (("peak_allocated", 90_000), ("peak_transient", 1_000), (METERS[4], 0)):
        value = (size + saved,)
        yield Measurement(
            cell=cell, meter=meter, unit="bytes", values=value, iterations=1, exact=True
        )
    for meter in UNREADABLE:
        reason = "a CPU has no clock of its own"
        yield Skipped(cell=cell, meter=meter, cause="unreadable", reason=reason)
    parts = {"parameters": 60_000, "inputs": 30_000, "saved": saved, "other": 1_000}
    yield Breakdown(
        cell=cell,
        parts=dict.fromkeys(PARTS, 0) | parts,
        first_parts=parts,
        timeline={part: tuple(size * i // 64 for i in range(64)) for part, size in parts.items()},
        phases=("prepare",) * 4 + ("forward",) * 30 + ("backward",) * 30,
        modules={f"layer.{i}": saved // 10 for i in range(10)},
    )


if __name__ == "__main__":
    main()
