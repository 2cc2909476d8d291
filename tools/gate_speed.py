"""How long `gradbench gate` takes over two runs of 1,000 cells and six meters, and what it loads.

python tools/gate_speed.py --cells 1000 --rounds 100
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.experiment.plan import PROTOCOL
from gradbench.records.measurements import (
    Ended,
    Environment,
    Fact,
    Measurement,
    Record,
    Started,
    Unit,
)
from gradbench.store.jsonl import write

MACHINE: dict[str, Fact] = {
    "protocol": PROTOCOL,
    "torch": "2.13.0+cpu",
    "cpu_capability": "AVX2",
    "cpu": "made up",
    "host": "here",
    "cores": 2,
    "python": "3.11.7",
}
BYTES = ("peak_allocated", "peak_transient", "saved_for_backward", "peak_rss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [
            write(records(given.cells, given.rounds, seed), Path(folder) / f"{seed}.jsonl")
            for seed in (1, 2)
        ]
        code = (
            "import sys, gradbench.cli\n"
            "try: gradbench.cli.main()\n"
            "except SystemExit as end: print('exit status', end.code)\n"
            "print('loaded:', *sorted({'torch', 'pandas'} & set(sys.modules)) or ['neither'])"
        )
        began = time.perf_counter()
        answer = subprocess.run(
            [sys.executable, "-c", code, "gate", "--baseline", *map(str, files)],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - began
    print(f"{given.cells} cells, {len(BYTES) + 2} meters, {given.rounds} rounds: {seconds:.2f} s")
    print("\n".join(answer.stdout.splitlines()[-3:]))


def records(cells: int, rounds: int, seed: int) -> Iterator[Record]:
    chosen = [
        Cell(model=f"model{number}", workload="inference", grad_mode=mode)
        for number in range(cells // len(GRAD_MODES))
        for mode in GRAD_MODES
    ]
    meters = ("step_time", "latency", *BYTES)
    yield Started(
        protocol=PROTOCOL,
        started_at=f"2026-01-0{seed}T00:00:00+00:00",
        command=(),
        cells=tuple(chosen),
        meters=meters,
        plan={},
    )
    yield Environment(facts=MACHINE)
    rng = random.Random(seed)
    for cell in chosen:
        for meter in meters:
            unit: Unit = "bytes" if meter in BYTES else "ns"
            many = 1 if unit == "bytes" else rounds
            values = (
                [4096]
                if unit == "bytes"
                else [rng.randrange(10**6, 11 * 10**5) for _ in range(many)]
            )
            yield Measurement(
                cell=cell,
                meter=meter,
                unit=unit,
                values=tuple(values),
                iterations=1,
                exact=unit == "bytes" and meter != "peak_rss",
            )
    yield Ended(seconds={}, load_after=0.0)


if __name__ == "__main__":
    main()
