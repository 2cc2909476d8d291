"""Ask whether a held ``torch.no_grad`` object slows steps beside the same flag set by a call.

Why `GradMode.hold` is what it is: both sides set the same flag, so every ratio should be 1. Where
it is not, and is turned over when the sides are swapped, it is the object's doing.

    python tools/held_object.py --blocks 10
"""

import argparse
import random
import statistics
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from gradbench import Cell, Plan
from gradbench.runner import attempts
from gradbench.runner.fork_server import ForkServer
from gradbench.runner.interleave import timed_rounds
from gradbench.runner.meters import StepTime
from gradbench.stats import estimates
from gradbench.workloads.arms import build, make_arm
from gradbench.workloads.grad_modes import MODES, GradMode
from gradbench.workloads.models import MODELS

CALL = MODES["no_grad"]
OBJECT = replace(CALL, hold=torch.no_grad)
PAIRS = {
    "call / object": (CALL, OBJECT),
    "object / call": (OBJECT, CALL),
    "call / call": (CALL, CALL),
    "object / object": (OBJECT, OBJECT),
}


def sides(pair: str, seed: int, budget_s: float) -> Iterator[list[list[int]]]:
    """Yield the batches of the tiny MLP's step under both ways to hold the mode."""
    cell = Cell(model="mlp_tiny", workload="inference", grad_mode="no_grad", batch_size=1)
    device = attempts.settle(cell)
    subject = build(cell, MODELS[cell.model], seed=seed)
    modes: tuple[GradMode, GradMode] = PAIRS[pair]
    arms = [replace(make_arm(cell, subject), mode=mode) for mode in modes]
    plan = Plan(budget_s=budget_s, precision_short=1e-9, max_rounds=1_000_000)
    clock, rng = StepTime.of(device), random.Random(seed)
    yield timed_rounds(arms, clock, plan=plan, rng=rng).batch_ns


def main() -> None:
    import held_object  # by its name, so that other processes can import the job

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--budget", type=float, default=2.0)
    given = parser.parse_args()
    server = ForkServer("time")
    for pair in PAIRS:
        ratios = []
        for seed in range(given.blocks):
            (batch_ns,) = server.run(held_object.sides, pair, seed, given.budget, limit_s=600)
            candidate, reference = (np.array(side, dtype=np.float64) for side in batch_ns)
            ratios.append(estimates.paired_ratio(candidate, reference))
        points = [ratio.point for ratio in ratios]
        held = sum(ratio.low <= 1 <= ratio.high for ratio in ratios)
        error = statistics.stdev(points) / len(points) ** 0.5
        print(
            f"{pair:16} mean {statistics.mean(points):.5f} +- {error:.5f}"
            f"  the interval holds 1 in {held} of {len(points)}",
            flush=True,
        )
    server.close()


if __name__ == "__main__":
    main()
