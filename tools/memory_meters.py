"""Hold memory meters against arithmetic: the same steps through gradbench and through others.

    pip install pytest-benchmem   # memray's peak beside pytest-benchmark; left out where missing
    python tools/memory_meters.py > docs/memory-meters.md

Each figure comes from a fresh process. The truth is what the step adds at its worst, counted by
hand: an MLP of L hidden layers of width w keeps L activations of B*w*4 bytes for backward and
needs one more for the layer that runs; without a graph two are live at once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from gradbench import devices
from gradbench.memory.usage import memory_usage
from gradbench.runner.meters import peak_rss
from gradbench.workloads.models import mlp

LAYERS = 8
SIZES = ((64, 64), (256, 512), (1024, 2048))  # batch, width
MODES = ("grad", "no_grad")
POLL_S = 0.01
PLUGIN = """
import memory_meters
def test_step(benchmark):
    benchmark.pedantic(memory_meters.step(*memory_meters.cell()), rounds=3, warmup_rounds=1)
"""


WORDS = """
An error of -100% means that the meter saw nothing. The kernel's mark and polling see resident
pages, so a step that fits into pages the process has touched before is invisible to them, and
polling sees what it happens to meet. memray counts every allocation of the process while the step
runs, Python's own objects among them."""


def cell() -> tuple[int, int, str]:
    """Return batch, width and mode that this process is to run."""
    batch, width, mode = os.environ["CELL"].split(",")
    return int(batch), int(width), mode


def truth(batch: int, width: int, mode: str) -> int:
    """Return the bytes that a step adds at its worst, by hand."""
    return (LAYERS + 1 if mode == "grad" else 2) * batch * width * 4


def step(batch: int, width: int, mode: str, device: str = "cpu") -> Callable[[], object]:
    """Return one warm forward step."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = mlp(*[width] * (LAYERS + 1), 10).to(device)
    x = torch.randn(batch, width, device=device)

    def forward() -> None:
        with torch.no_grad() if mode == "no_grad" else nullcontext():
            model(x)

    forward()
    return forward


def by_gradbench() -> int:
    """Count every allocation of one step."""
    return memory_usage(step(*cell())).peak_bytes


def by_high_water() -> int:
    """Take the kernel's high-water mark over the step, less what was resident before."""
    forward = step(*cell())
    before = psutil.Process().memory_info().rss
    peak, bias = peak_rss(forward, steps=1)
    if bias:
        sys.exit(bias)
    return peak - before


def by_polling() -> int:
    """Poll resident memory every 10 ms, as most tools do, while the step runs for a while."""
    forward, process = step(*cell()), psutil.Process()
    before = most = process.memory_info().rss
    over = threading.Event()

    def poll() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, process.memory_info().rss)
            time.sleep(POLL_S)

    thread = threading.Thread(target=poll)
    thread.start()
    forward()
    over.set()
    thread.join()
    return most - before


def by_benchmem() -> int:
    """Run pytest-benchmem on a test of the step and read its peak from the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        test, report = Path(folder) / "test_step.py", Path(folder) / "report.json"
        test.write_text(PLUGIN, "utf-8")
        here = str(Path(__file__).parent)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:gradbench", str(test)]
        command += ["--benchmark-memory", f"--benchmark-json={report}", f"--rootdir={folder}"]
        paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.exists():
            sys.exit(done.stdout + done.stderr)
        (bench,) = json.loads(report.read_text("utf-8"))["benchmarks"]
        return int(min(bench["extra_info"]["benchmem"]["peak_bytes"]))


def by_counters() -> int:
    """Read the caching allocator's own counters around one step on the GPU."""
    _, window = devices.find("cuda").ledger().observe(step(*cell(), device="cuda"))
    return window.peak_bytes - window.before_bytes


METHODS: dict[str, tuple[str, Callable[[], int]]] = {
    "gradbench": ("gradbench, allocator events", by_gradbench),
    "high_water": ("VmHWM, reset before the step", by_high_water),
    "benchmem": ("pytest-benchmem (memray)", by_benchmem),
    "polling": ("psutil, polled every 10 ms", by_polling),
    "counters": ("CUDA's own counters", by_counters),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, help="print one figure, for CELL")
    options = parser.parse_args()
    if options.method:
        print(METHODS[options.method][1]())
        return
    missing = {
        "benchmem": "" if find_spec("pytest_benchmem") else "pytest-benchmem is not installed",
        "counters": "" if "cuda" in devices.available() else "there is no CUDA device",
    }
    methods = [name for name in METHODS if not missing.get(name)]
    left_out = "".join(f" Not here: {why}." for why in missing.values() if why)
    print("# Memory meters against arithmetic\n")
    print("Made by `python tools/memory_meters.py`: what a forward step of an MLP with 8 hidden")
    print("layers adds to memory at its worst, and how far each meter is from that, least and most")
    print(f"of three fresh processes. torch {torch.__version__}.{left_out}\n")
    print("| batch × width | mode | by hand | " + " | ".join(METHODS[m][0] for m in methods) + " |")
    print("| --- | --- | ---: |" + " ---: |" * len(methods))
    for batch, width in SIZES:
        for mode in MODES:
            true = truth(batch, width, mode)
            row = [f"{batch} × {width}", mode, f"{true:,} B"]
            for method in methods:
                figures = [run(method, batch, width, mode) - true for _ in range(3)]
                least, most = min(figures), max(figures)
                exact = least == most == 0
                row.append("0 B" if exact else f"{least / true:+.1%} … {most / true:+.1%}")
            print(f"| {' | '.join(row)} |", flush=True)
    print(WORDS)


def run(method: str, batch: int, width: int, mode: str) -> int:
    """Return one figure from a fresh process."""
    answer = subprocess.run(
        [sys.executable, __file__, "--method", method],
        # Freed memory goes back to the kernel, or a process's size would say nothing of a step.
        env={
            **os.environ,
            "CELL": f"{batch},{width},{mode}",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        sys.exit(answer.stderr)
    return int(answer.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
