"""Time ``gradbench history`` over a pack of many runs, made up from one.

python tools/history_speed.py --runs 1000 --cells 200
"""

import argparse
import resource
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import gradbench
from gradbench.experiment import matrix
from gradbench.experiment.plan import PROTOCOL
from gradbench.history import parquet
from gradbench.records import measurements


def one_run(cells: int) -> gradbench.Run:
    """Return a run with a time and a memory figure of each cell."""
    models = [f"model{number}" for number in range(cells // len(matrix.GRAD_MODES))]
    measured = [
        measurements.Measurement(
            cell=cell, meter=meter, unit=unit, values=values, iterations=1, exact=exact
        )
        for cell in gradbench.Matrix(models=models)
        for meter, unit, values, exact in (
            ("step_time", "ns", (1_000_000,) * 12, False),
            ("peak_transient", "bytes", (4096,), True),
        )
    ]
    started = measurements.Started(
        protocol=PROTOCOL,
        started="2026-01-01T00:00:00+00:00",
        command=("made up",),
        cells=tuple(dict.fromkeys(m.cell for m in measured)),
        meters=("step_time", "peak_transient"),
        plan={},
    )
    facts = measurements.Environment(facts={"host": "here", "torch": "2.13.0", "git_dirty": False})
    return gradbench.Run("run", (started, facts, *measured), sealed=True)


def multiply(folder: Path, *, runs: int, a_file: int = 100) -> None:
    """Replace a pack of one run by one of many, with noise of 2% and a change in one series."""
    (first,) = folder.rglob("*.parquet")
    table = pq.read_table(first, partitioning=None)
    first.unlink()
    rng = np.random.default_rng(0)
    exact = np.array(table["exact"])

    def text(value: str) -> pa.Array:
        return pa.array([value] * table.num_rows).dictionary_encode()

    for start in range(0, runs, a_file):
        parts = []
        for number in range(start, min(start + a_file, runs)):
            named = {
                "run": f"run{number:06}",
                "git_commit": f"{number:040x}",
                "started": (datetime(2026, 1, 1) + timedelta(minutes=number)).isoformat(),
            }
            part = table
            for column, value in named.items():
                at = part.schema.get_field_index(column)
                part = part.set_column(at, part.schema.field(at), text(value))
            for column in ("value", "ratio"):
                was = np.array(table[column].to_pandas(), dtype=np.float64)
                made = np.where(exact, was, was * (1 + 0.02 * rng.normal(size=len(was))))
                made[2] *= 1.1 if number >= runs // 2 else 1
                at = part.schema.get_field_index(column)
                values = pa.array(made, from_pandas=True)
                part = part.set_column(at, part.schema.field(at), values)
            parts.append(part)
        pq.write_table(
            pa.concat_tables(parts).unify_dictionaries(),
            first.with_name(f"{start:06}.parquet"),
            compression="zstd",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=200)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        parquet.pack([one_run(given.cells)], folder)
        multiply(Path(folder), runs=given.runs)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        start = time.perf_counter()
        command = [sys.executable, "-m", "gradbench", "history", folder]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        wall_s = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(answer.stdout.splitlines()[-1])
    print(
        f"{given.runs} runs x {given.cells} cells, {size / 2**20:.1f} MiB of Parquet: "
        f"{wall_s:.1f} s wall, {used.ru_utime + used.ru_stime:.1f} s CPU, "
        f"{used.ru_maxrss / 2**10:.0f} MiB at most"
    )


if __name__ == "__main__":
    main()
