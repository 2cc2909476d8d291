"""Two benchmarks a trial, one after the other: `peers` hands this file to pytest-benchmark.

It is run as a copy outside of the package, as a user's own would be.
"""

import json
import os
import time
from typing import Any

import pytest

from gradbench.experiment.plan import Plan
from gradbench.selfcheck import trials
from gradbench.selfcheck.effort import TINY
from gradbench.workloads.models import MODELS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Ask for both sides of every trial that the environment names."""
    asked = json.loads(os.environ["GRADBENCH_PEER"])
    sides = [
        (trial, injected, side)
        for trial in range(asked["count"])
        for injected in asked["injections"]
        for side in ("base", "variant")
    ]
    metafunc.parametrize(("trial", "injected", "side"), sides)


@pytest.fixture(scope="session")
def prepared() -> tuple[trials.Prepared, trials.Pad]:
    """Return the tiny MLP's step, warm, and work of known size."""
    bench = trials.prepare(TINY, MODELS[TINY.model], Plan())
    return bench, trials.measure_pad(time.perf_counter_ns)


def test_step(
    trial: int,
    injected: float,
    side: str,
    prepared: tuple[trials.Prepared, trials.Pad],
    benchmark: Any,
) -> None:
    """Time one side of a trial."""
    bench, pad = prepared
    extra = pad.iterations(injected * bench.typical_ns) if injected and side == "variant" else 0
    benchmark.extra_info |= {"trial": trial, "injected": injected, "side": side}
    arm = trials.padded(bench.arm, extra)
    with arm.held():
        benchmark(arm.step)
