"""What `gradbench pack` and `gradbench history` take over a million records, here and in a bucket.

    python tools/history_fleet.py                            # a million records, under ten minutes
    python tools/history_fleet.py --runs 500 --no-s3         # a fifth of them, files alone
    python tools/history_fleet.py --doc docs/history-fleet.md

Makes run files of a fleet (every commit on several machines, a time and a peak of every cell, 2% of
noise, some series with a change), packs them, copies the pack to a bucket of a moto server that it
starts on this machine (`pip install 'moto[server]' s3fs`), and asks both. Every command is a
process of its own, whose wall time and peak memory are printed: its first call, and the median of
further ones. Beside them stands the same query over a pack of one run, in turns with the other:
what starting Python and importing libraries takes, whatever there is to read.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

import gradbench
from gradbench.experiment import matrix
from gradbench.experiment.plan import PROTOCOL
from gradbench.records import measurements
from gradbench.store import jsonl

METERS: Final = ("step_time", "peak_transient")
ROUNDS: Final = 12
YEAR_MINUTES: Final = 365 * 24 * 60
MACHINES: Final = 5
CHANGED: Final = 20
"""One cell of so many takes longer, and needs more, from the middle commit on."""
BUCKET: Final = "fleet"
LIMIT_S: Final = 2.0
LIMIT_BYTES: Final = 2**30
LIMIT_PAGE_BYTES: Final = 3 * 10**6
MISSING: Final = """import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in ("moto", "s3fs", "flask")))"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one process took."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    printed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a command took: its first call, the median of the others, its most memory."""

    what: str
    first_s: float
    cpu_s: float  # of the first call
    again_s: float | None
    start_s: float | None  # the same query over one run
    peak_bytes: int
    limited: bool  # whether it is a query, which has a limit of time


def one_run(cells: int) -> gradbench.Run:
    """Return a run with a time and a peak of each cell."""
    models = [f"model{number:03}" for number in range(cells // len(matrix.GRAD_MODES))]
    time = partial(
        measurements.Measurement,
        meter="step_time",
        unit="ns",
        values=(1_000_000,) * ROUNDS,
        iterations=1,
        exact=False,
    )
    peak = partial(
        measurements.Measurement,
        meter="peak_transient",
        unit="bytes",
        values=(4096,),
        iterations=1,
        exact=True,
    )
    measured = [
        figure(cell=cell) for cell in gradbench.Matrix(models=models) for figure in (time, peak)
    ]
    started = measurements.Started(
        protocol=PROTOCOL,
        started_at="2026-01-01T00:00:00+00:00",
        command=("made up",),
        cells=tuple(dict.fromkeys(one.cell for one in measured)),
        meters=METERS,
        plan={},
    )
    facts: dict[str, measurements.Fact] = {
        "protocol": PROTOCOL,
        "torch": "2.13.0+cpu",
        "python": "3.11.7",
        "cores": 16,
        "cpu": "some CPU",
        "cpu_capability": "AVX512",
        "host": "host0",
        "git_dirty": False,
        **{f"fact {number}": f"some text of fact {number}" for number in range(50)},
    }
    environment = measurements.Environment(facts=facts)
    ended = measurements.Ended(seconds={"timing": 1.0}, load_after=0.0)
    return gradbench.Run("run", (started, environment, *measured, ended), sealed=True)


class Fleet:
    """Writes the files of many runs, each made from one by replacing its numbers."""

    def __init__(self, folder: Path, *, runs: int, cells: int) -> None:
        self._folder, self._runs = folder, runs
        self._run = one_run(cells)
        template = jsonl.write(self._run.records, folder / "template.jsonl")
        lines = template.read_bytes().splitlines()[:-1]
        template.unlink()
        checksum = re.compile(rb',"crc32":"[0-9a-f]{8}"\}$')
        self._lines = [checksum.sub(b"", line) for line in lines]  # without their last brace
        self._rng = np.random.default_rng(0)

    def write(self) -> None:
        for number in range(self._runs):
            self.write_one(number)

    def write_one(self, number: int) -> Path:
        """Write the run of one commit on one machine."""
        lines = [self._with_checksum(self._line(at, number)) for at in range(len(self._lines))]
        body = b"".join(lines)
        seal = {
            "kind": "sealed",
            "records": len(lines),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        path = self._folder / f"20260101T{number:08}Z-aaaa.jsonl"
        path.write_bytes(body + json.dumps(seal).encode() + b"\n")
        return path

    def _line(self, at: int, number: int) -> bytes:
        commit, host = divmod(number, MACHINES)
        line = self._lines[at]
        if at == 0:
            when = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(
                minutes=number * YEAR_MINUTES // self._runs
            )
            return line.replace(b"2026-01-01T00:00:00+00:00", when.isoformat().encode())
        if at == 1:
            commit_id = hashlib.sha1(b"%d" % commit, usedforsecurity=False).hexdigest()
            commits = f'"host":"host{host}","git_commit":"{commit_id}"'
            return line.replace(b'"host":"host0"', commits.encode())
        before, is_measurement, behind = line.partition(b'"values":[')
        if not is_measurement:
            return line
        cell = (at - 2) // len(METERS)
        slower = 1.1 if cell % CHANGED == 0 and commit >= self._runs // MACHINES // 2 else 1.0
        rest = behind[behind.index(b"]") :]
        if b"peak_transient" in line:
            values = np.array([4096 * slower])
        else:
            level = 1e6 * (1 + host / 10) * slower * (1 + 0.02 * self._rng.normal())
            values = level * (1 + 0.01 * self._rng.normal(size=ROUNDS))
        return before + is_measurement + b",".join(b"%d" % round(value) for value in values) + rest

    @staticmethod
    def _with_checksum(line: bytes) -> bytes:
        return line + b',"crc32":"%08x"}\n' % zlib.crc32(line + b"}")


def gradbench_command(*arguments: str | Path) -> Cost:
    """Run a command of gradbench's in a process of its own."""
    command = [sys.executable, "-m", "gradbench", *map(str, arguments)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    cpu_s = used.ru_utime + used.ru_stime
    return Cost(wall_s=wall_s, cpu_s=cpu_s, peak_bytes=used.ru_maxrss * 1024, printed=printed)


def asked(what: str, query: Sequence[str], pack: str, *, small: str, turns: int) -> Row:
    """Ask a pack, and one of one run, in turns."""
    costs, starts = [], []
    for _ in range(turns + 1):
        costs.append(gradbench_command("history", pack, *query))
        starts.append(gradbench_command("history", small, *query))
    return Row(
        what=what,
        first_s=costs[0].wall_s,
        cpu_s=costs[0].cpu_s,
        again_s=statistics.median(cost.wall_s for cost in costs[1:]),
        start_s=statistics.median(cost.wall_s for cost in starts[1:]),
        peak_bytes=max(cost.peak_bytes for cost in costs),
        limited=True,
    )


def once(what: str, *arguments: str | Path) -> tuple[Row, str]:
    """Run a command that is no query once; return what it printed last, too."""
    cost = gradbench_command(*arguments)
    row = Row(
        what=what,
        first_s=cost.wall_s,
        cpu_s=cost.cpu_s,
        again_s=None,
        start_s=None,
        peak_bytes=cost.peak_bytes,
        limited=False,
    )
    return row, cost.printed.splitlines()[-1]


QUERIES: Final = {
    "one model": ("--model", "model007"),
    "one model, one meter, one mode": (
        *("--model", "model007", "--meter", "step_time"),
        *("--grad-mode", "no_grad"),
    ),
    "one model since June": ("--model", "model007", "--since", "2026-06-01"),
}


@contextmanager
def bucket() -> Iterator[None]:
    """Start a moto server with a bucket, and let s3fs find it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET)
        yield
    finally:
        server.terminate()
        server.wait()


def in_files(folder: Path, fleet: Fleet, *, runs: int, turns: int) -> Iterator[Row]:
    """Pack, add a run, ask, and make the page."""
    pack, small = str(folder / "pack"), str(folder / "small")
    row, words = once("pack all", "pack", folder / "runs", "-o", pack)
    print(words, flush=True)
    yield row
    gradbench_command("pack", fleet.write_one(runs), "-o", small)
    yield once("pack one run more", "pack", folder / "runs", "-o", pack)[0]
    for what, query in QUERIES.items():
        yield asked(what, query, pack, small=small, turns=turns)
    row, words = once("everything, with its page", "history", pack, "-o", folder / "h" / "all.html")
    print(words, flush=True)
    yield row


def in_bucket(folder: Path, fleet: Fleet, *, runs: int, turns: int) -> Iterator[Row]:
    """Ask the same of a bucket, to which the pack is copied."""
    import s3fs

    files = s3fs.S3FileSystem()
    for name in ("pack", "small"):
        for path in (folder / name).rglob("*.parquet"):
            files.put_file(str(path), f"{BUCKET}/{path.relative_to(folder)}")
    pack, small = (f"s3://{BUCKET}/{name}" for name in ("pack", "small"))
    path = fleet.write_one(runs + 1)
    yield once("pack one run more, to the bucket", "pack", path, "-o", pack)[0]
    for what, query in QUERIES.items():
        yield asked(f"{what}, from the bucket", query, pack, small=small, turns=turns)
    page = folder / "h" / "bucket.html"
    yield once("everything from the bucket, with its page", "history", pack, "-o", page)[0]


def table(rows: Sequence[Row]) -> str:
    """Return what commands took, as Markdown."""
    lines = [
        "| command | first, s | CPU, s | again, s | over one run, s | peak memory, MiB | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        again, start = ("" if s is None else f"{s:.2f}" for s in (row.again_s, row.start_s))
        met = row.peak_bytes < LIMIT_BYTES and not (row.limited and row.first_s >= LIMIT_S)
        numbers = f"{row.first_s:.2f} | {row.cpu_s:.2f} | {again} | {start}"
        verdict = "met" if met else "**missed**"
        lines.append(f"| {row.what} | {numbers} | {row.peak_bytes / 2**20:.0f} | {verdict} |")
    return "\n".join(lines)


def pages(folder: Path) -> str:
    """Return what the page takes, in words."""
    first = (folder / "all.html").stat().st_size
    others = [path.stat().st_size for path in (folder / "all-pages").glob("*.html")]
    met = "met" if first < LIMIT_PAGE_BYTES else "**missed**"
    return (
        f"The page: {first / 1e6:.2f} MB the first file (asked: under "
        f"{LIMIT_PAGE_BYTES / 1e6:.0f} MB: {met}), {len(others)} behind it, "
        f"{max(others, default=0) / 1e6:.2f} MB the largest, {sum(others) / 1e6:.1f} MB all."
    )


def document(rows: Sequence[Row], words: Sequence[str], *, command: str) -> str:
    """Return the document: how it was made, and what it says."""
    where = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    text = "\n\n".join(
        [
            "# History at fleet size: figures",
            f"Printed by `{command}` ({where}).",
            *words,
            table(rows),
            f"Asked: a query under {LIMIT_S:.0f} s, its first call too, and every command under "
            f"{LIMIT_BYTES // 2**20:,} MiB. A query is a process of its own: *over one run* is the "
            "same command over a pack of one run, asked in turns with the other. The bucket is a "
            "moto server on the same machine, so its own time is in those figures, and a network's "
            "is not.",
        ]
    )
    return f"{text}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2500)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3, help="further calls of each query")
    parser.add_argument("--s3", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--doc", type=Path, help="write the document here")
    given = parser.parse_args()
    if given.s3 and subprocess.run([sys.executable, "-c", MISSING], check=False).returncode:
        raise SystemExit("pip install 'moto[server]' s3fs, or leave the bucket out with --no-s3")
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "runs").mkdir()
        fleet = Fleet(folder / "runs", runs=given.runs, cells=given.cells)
        fleet.write()
        rows = [*in_files(folder, fleet, runs=given.runs, turns=given.turns)]
        pack = [path.stat().st_size for path in (folder / "pack").rglob("*.parquet")]
        words = [
            f"{given.runs:,} runs of {given.cells} cells, {given.runs * given.cells * 2:,} records "
            f"in all: {len(pack)} Parquet files, {sum(pack) / 2**20:.0f} MiB.",
            pages(folder / "h"),
        ]
        if given.s3:
            with bucket():
                rows += in_bucket(folder, fleet, runs=given.runs, turns=given.turns)
    text = document(rows, words, command=" ".join(["python", *sys.argv]))
    print(text)
    if given.doc:
        given.doc.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
